"""The multilayer perceptron, in any family."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from weft.models.factory import LayerFactory, PrependZeros


class MLP(nn.Module):
    """Linear layers with an activation between them; inputs are flattened.

    Args:
        in_features: size of a flattened input, any number; zeros are put in front up to a multiple of n.
        hidden: sizes of the hidden layers, possibly none.
        out_features: size of the output.
        activation: "relu" or "leaky_relu".
        parametrization: family of the hidden layers; None takes those of ``torch.nn``.
        options: of the family, such as ``{"n": 4}``.
        family_head: whether the last layer is of the family too.

    Example:
        >>> net = MLP(4, (200, 100), 4, parametrization="kronecker", options={"n": 4}, family_head=True)
        >>> sum(p.numel() for p in net.parameters())
        5796
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: Literal["relu", "leaky_relu"] = "relu",
        parametrization: str | None = None,
        options: Mapping[str, Any] | None = None,
        family_head: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = out_features
        factory = LayerFactory(parametrization, options)
        family_first = bool(hidden) or family_head
        pad = PrependZeros(in_features, factory.multiple if family_first else 1)
        steps: list[nn.Module] = [nn.Flatten(), pad]
        before = pad.channels
        for width in hidden:
            steps += [factory.linear(before, width), nn.ReLU() if activation == "relu" else nn.LeakyReLU()]
            before = width
        steps.append(factory.linear(before, out_features) if family_head else nn.Linear(before, out_features))
        self.layers = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
