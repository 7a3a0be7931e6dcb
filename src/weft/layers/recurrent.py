"""RNN, GRU and LSTM with weights of any family; torch's own kernels run them.

Every gate is a matrix of its own: weight_ih_l0 of a GRU, (3H, I), is three members (H, I) on top of one another. So no
component of a hypercomplex number spans two gates, and a low rank is that of each gate.

Letters: H, I = hidden and input size; T = time steps.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from weft.errors import SizeError
from weft.layers.composite import Composite, Maker
from weft.layers.linear import Linear
from weft.modes import is_autocast
from weft.parametrizations import Stacked

_ARGUMENTS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")


class _Recurrent(Composite):
    """What the three share. The arguments, their checks and the forward pass are torch's."""

    torch_class: ClassVar[type[nn.RNNBase]]
    _has_paths = False  # one kernel of torch takes all weights
    _gates: ClassVar[int]
    _more_arguments: ClassVar[tuple[str, ...]] = ()
    input_size: int
    hidden_size: int
    batch_first: bool

    def _set_up(
        self,
        template: nn.RNNBase,
        parametrization: str | Maker,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        options: dict[str, Any],
    ) -> None:
        """Take the arguments over from torch's own module, which has checked them, and make the weights."""
        for name in {*_ARGUMENTS, *self._more_arguments, "proj_size", "mode"}:
            setattr(self, name, getattr(template, name))
        self._names: list[str] = list(template._flat_weights_names)
        maker = self._maker(parametrization, device, dtype, options)
        for name in self._names:
            shape = tuple(getattr(template, name).shape)
            if name.startswith("bias"):
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
                continue
            gates = 1 if name.startswith("weight_hr") else self._gates
            variance = 1 / (3 * self.hidden_size)
            members = [maker((shape[0] // gates, shape[1]), variance=variance) for _ in range(gates)]
            layer = Linear(shape[1], shape[0], bias=False, parametrization=Stacked(members), path="dense")
            self.add_module(name.removeprefix("weight_"), layer)
        with torch.no_grad():
            self._reset_biases()

    def _reset_biases(self) -> None:
        bound = self.hidden_size**-0.5
        for bias in self._parameters.values():
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    def _plain_parameters(self) -> dict[str, list[tuple[str, str]]]:
        return {
            name: [(name.removeprefix("weight_"), "weight")] if name.startswith("weight") else [("", name)]
            for name in self._names
        }

    def _arguments(self) -> dict[str, Any]:
        return self._arguments_of(self)

    @classmethod
    def _arguments_of(cls, module: Any) -> dict[str, Any]:
        return {name: getattr(module, name) for name in (*_ARGUMENTS, *cls._more_arguments)}

    # ------------------------------------------------------------------ what torch's forward pass asks of its module

    def __getattr__(self, name: str) -> Any:
        child = self.__dict__.get("_modules", {}).get(name.removeprefix("weight_"))
        if child is not None and name.startswith("weight_"):
            return child.weight
        return super().__getattr__(name)

    @property
    def _flat_weights(self) -> list[Tensor]:
        """The weights and biases in torch's order, built or from the cache; in full precision, as torch's are."""
        layers, parameters = self._modules, self._parameters
        first: Any = layers[self._names[0].removeprefix("weight_")]
        if is_autocast(first._device_type):
            with torch.autocast(first._device_type, enabled=False):
                return self._flat_weights
        return [
            layers[name.removeprefix("weight_")]._effective_weight() if name.startswith("weight") else parameters[name]  # type: ignore[union-attr, operator, misc]
            for name in self._names
        ]

    def _update_flat_weights(self) -> None:
        pass

    def flatten_parameters(self) -> None:
        """Nothing: there are no stored weights to lay out. Here because models call it on torch's modules."""

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Refuse inputs of the wrong width; torch's own check would build every weight to see its dtype.

        Args:
            input: with features last.
            batch_sizes: of a packed sequence, None otherwise.

        Raises:
            SizeError: the wrong number of dimensions or features.
        """
        rank = 3 if batch_sizes is None else 2
        if input.dim() != rank or input.shape[-1] != self.input_size:
            raise SizeError(
                f"input must have {rank} dimensions, the last of size input_size={self.input_size}; "
                f"got shape {tuple(input.shape)}"
            )

    get_expected_hidden_size = nn.RNNBase.get_expected_hidden_size
    check_hidden_size = nn.RNNBase.check_hidden_size
    check_forward_args: Any = nn.RNNBase.check_forward_args
    permute_hidden: Any = nn.RNNBase.permute_hidden

    def _kernel_macs(self, input: Any, *_: Any, **__: Any) -> int:
        data = input.data if isinstance(input, PackedSequence) else input
        steps = data.numel() // self.input_size  # of all sequences together
        return steps * sum(math.prod(layer.parametrization.shape) for layer in self._layers().values())


class RNN(_Recurrent):
    """Elman network with weights of any family: ``h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``.

    Takes the arguments of ``torch.nn.RNN`` and gives what it gives (packed sequences, several layers, both
    directions). The weights are built once per call, however many time steps there are, and kept in evaluation.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: number of layers, at least 1.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bias: whether to add biases.
        batch_first: whether inputs are (batch, T, I) instead of (T, batch, I).
        dropout: between the layers, in [0, 1].
        bidirectional: whether a second network runs backwards.
        device: as in torch.
        dtype: as in torch.
        parametrization: family name (``weft.families()``), or a function ``make(shape, variance=..., device=...,
            dtype=...)`` that gives a member.
        **options: of the family, such as ``n`` or ``share``; they hold for every weight of every gate.

    Raises:
        SizeError: sizes that the family cannot take; ``weft.convert`` keeps such a weight dense instead.
        OptionError: an unknown name or option; the message gives the nearest.

    Source:
        Parcollet et al. 2019, Quaternion Recurrent Neural Networks, https://arxiv.org/abs/1806.04418.

    Example:
        >>> import torch, weft
        >>> layer = weft.RNN(8, 16, parametrization="kronecker", n=4)
        >>> y, h = layer(torch.randn(5, 2, 8))
        >>> tuple(y.shape), tuple(h.shape), tuple(layer.weight_ih_l0.shape)
        ((5, 2, 16), (1, 2, 16), (16, 8))
    """

    torch_class, _gates, _more_arguments = nn.RNN, 1, ("nonlinearity",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        parametrization: str | Maker = "dense",
        **options: Any,
    ) -> None:
        super().__init__()
        template = nn.RNN(
            input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device="meta"
        )  # fmt: skip
        self._set_up(template, parametrization, device, dtype, options)

    forward = nn.RNN.forward


class GRU(_Recurrent):
    """Gated recurrent unit with weights of any family; every one of its three gates is a member by itself.

    Gives what ``torch.nn.GRU`` gives; the weights are built once per call, and kept in evaluation.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: number of layers, at least 1.
        bias: whether to add biases.
        batch_first: whether inputs are (batch, T, I) instead of (T, batch, I).
        dropout: between the layers, in [0, 1].
        bidirectional: whether a second network runs backwards.
        device: as in torch.
        dtype: as in torch.
        parametrization: family name (``weft.families()``), or a function ``make(shape, variance=..., device=...,
            dtype=...)`` that gives a member.
        **options: of the family, such as ``n`` or ``share``; they hold for every weight of every gate.

    Source:
        Cho et al. 2014, https://arxiv.org/abs/1406.1078, in torch's variant.

    Example:
        >>> import torch, weft
        >>> layer = weft.GRU(8, 16, num_layers=2, bidirectional=True, parametrization="low_rank", share=0.5)
        >>> y, h = layer(torch.randn(5, 2, 8))
        >>> tuple(y.shape), tuple(h.shape)
        ((5, 2, 32), (4, 2, 16))
    """

    torch_class, _gates = nn.GRU, 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        parametrization: str | Maker = "dense",
        **options: Any,
    ) -> None:
        super().__init__()
        template = nn.GRU(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device="meta"
        )  # fmt: skip
        self._set_up(template, parametrization, device, dtype, options)

    forward = nn.GRU.forward


class LSTM(_Recurrent):
    """Long short-term memory with weights of any family; every one of its four gates is a member by itself.

    Gives what ``torch.nn.LSTM`` gives; the weights are built once per call, and kept in evaluation.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: number of layers, at least 1.
        bias: whether to add biases.
        batch_first: whether inputs are (batch, T, I) instead of (T, batch, I).
        dropout: between the layers, in [0, 1].
        bidirectional: whether a second network runs backwards.
        proj_size: size of the projected hidden state, smaller than H; 0 for no projection.
        device: as in torch.
        dtype: as in torch.
        parametrization: family name (``weft.families()``), or a function ``make(shape, variance=..., device=...,
            dtype=...)`` that gives a member.
        **options: of the family, such as ``n`` or ``share``; they hold for every weight of every gate.

    Source:
        Hochreiter and Schmidhuber 1997, in torch's variant; with quaternion weights Parcollet et al. 2019,
        https://arxiv.org/abs/1806.04418.

    Example:
        >>> import torch, weft
        >>> layer = weft.LSTM(8, 16, parametrization="kronecker", algebra="quaternion")
        >>> y, (h, c) = layer(torch.randn(5, 2, 8))
        >>> tuple(y.shape), tuple(c.shape)
        ((5, 2, 16), (1, 2, 16))
    """

    torch_class, _gates, _more_arguments = nn.LSTM, 4, ("proj_size",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        parametrization: str | Maker = "dense",
        **options: Any,
    ) -> None:
        super().__init__()
        template = nn.LSTM(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device="meta"
        )  # fmt: skip
        self._set_up(template, parametrization, device, dtype, options)

    forward = nn.LSTM.forward
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden
