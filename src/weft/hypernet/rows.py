"""One tensor per row of the batch, in the form in which a generator makes it; the product need not build it.

    dense        W_b
    from a head  W_b = scale * (H_0 + sum_k g_b[k] H_k)      so  W_b x = scale * (H_0 x + sum_k g_b[k] (H_k x))
    scaled       W_b = diag(s_b) W diag(t_b)                 so  W_b x = s_b * (W (t_b * x))
    low rank     W_b = A_b C_b                               so  W_b x = A_b (C_b x)

Letters: B = rows, each with a network of its own; K = samples per row; I, O = features of input and output; h = width
of the generator's last hidden layer.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.modes import is_autocast, is_plain, is_recording

#: Writing, reading and differentiating one number of a weight that is built for one row takes as long as so many
#: multiply-adds of a large matrix product: while the weights of all rows fit the caches, and beyond. Measured on one
#: thread for 784 -> 32, hidden 16: with 64 rows building wins from 8 samples per row on, with 512 rows from 17 on.
_MACS_PER_NUMBER, _MACS_PER_FAR_NUMBER, _CACHE_BYTES = 100, 240, 2**25


class RowWeights(abc.ABC):
    """A tensor per row, (B, *shape)."""

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """The tensors themselves, (B, *shape), differentiable."""

    def linear(self, x: Tensor) -> Tensor:
        """The product of matrices (O, I) with the samples of their rows.

        Args:
            x: (B, K, I).

        Returns:
            (B, K, O).
        """
        return row_products(x, self.dense())

    def convolve(self, x: Tensor, conv: Any) -> Tensor:
        """The convolution with kernels in torch's layout, without bias.

        Args:
            x: (B, K, channels, *space), padded already.
            conv: the convolution that the kernels belong to, for its geometry.

        Returns:
            (B, K, out_channels, *space).
        """
        return row_convolutions(x, self.dense(), conv)

    def settled(self) -> RowWeights:
        """The same, with nothing left to choose by the number of samples: for one network and all rows of a batch."""
        return DenseRows(self.dense())

    def way(self, samples: int) -> tuple[str, str]:
        """How ``linear`` runs.

        Args:
            samples: K.

        Returns:
            name of the path and the reason, in words.
        """
        return "batched matmul", "the weights of every row are there as they are, so all rows are one batched product"

    convolution_way = ("grouped convolution", "the kernels of all rows are the groups of one convolution")


class DenseRows(RowWeights):
    """Tensors that are there.

    Args:
        tensors: (B, *shape).
    """

    def __init__(self, tensors: Tensor) -> None:
        self.tensors = tensors

    def dense(self) -> Tensor:
        return self.tensors

    def way(self, samples: int) -> tuple[str, str]:
        if self.tensors.shape[0] == 1:
            return "matmul", "one network: its weight is made once, for all samples"
        return super().way(samples)


class HeadRows(RowWeights):
    """Tensors from the last, linear layer of a generator.

    Args:
        code: (B, h), the last hidden layer.
        weight: (h, numbers), H_1 ... H_h.
        bias: (*shape), H_0.
        scale: (), the fixed standard deviation of the tensor.
    """

    def __init__(self, code: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> None:
        self.code, self.bias, self.scale = code, bias, scale
        self.weight = weight.unflatten(1, bias.shape) if bias.dim() > 1 else weight

    def dense(self) -> Tensor:
        flat = torch.addmm(self.bias.reshape(-1), self.code, self.weight.reshape(len(self.weight), self.bias.numel()))
        # under autocast too a generated parameter has the type of a parameter
        return (flat * self.scale).to(self.bias.dtype).reshape(self.code.shape[0], *self.bias.shape)

    def linear(self, x: Tensor) -> Tensor:
        if self._builds(x.shape[1]):
            return row_products(x, self.dense())
        hidden, out, features = self.weight.shape
        rows, samples, _ = x.shape
        if out <= features:  # (H_k x) for every k, then their sum weighted by g: rows * h * O numbers in between
            y = F.linear(x, self.weight.reshape(hidden * out, features)).reshape(rows, samples, hidden, out)
            y = (self.code[:, None, :, None].to(y.dtype) * y).sum(2)
        else:  # the outer products of g and x first: rows * h * I numbers in between
            outer = self.code[:, None, :, None].to(x.dtype) * x[:, :, None, :]
            matrix = self.weight.transpose(0, 1).reshape(out, hidden * features)
            y = F.linear(outer.reshape(rows, samples, hidden * features), matrix)
        return (y + F.linear(x, self.bias)) * self.scale.to(y.dtype)

    def _builds(self, samples: int) -> bool:
        """Whether building the weights takes less time; with one sample per row never."""
        hidden = len(self.weight)
        near = is_recording() or self.code.shape[0] * self.bias.numel() * self.bias.element_size() < _CACHE_BYTES
        return samples * hidden > hidden + samples + (_MACS_PER_NUMBER if near else _MACS_PER_FAR_NUMBER)

    def way(self, samples: int) -> tuple[str, str]:
        hidden, out, features = self.weight.shape
        if self._builds(samples):
            return "batched matmul", f"{samples} samples share the weights of a row, so building them is cheaper"
        between = f"(rows, {hidden} hidden, {min(out, features)})"
        order = "the input meets the head first" if out <= features else "hidden units times input meet the head"
        return "contraction", f"the head is linear: no weight is built; {order}, {between} numbers in between"


class ScaledRows(RowWeights):
    """A shared tensor whose first two dimensions are scaled.

    Args:
        base: W (O, I, ...).
        out_scale: s (B, O).
        in_scale: t (B, I).
    """

    def __init__(self, base: Tensor, out_scale: Tensor, in_scale: Tensor) -> None:
        self.base, self.out_scale, self.in_scale = base, out_scale, in_scale

    def dense(self) -> Tensor:
        out, columns, *size = self.base.shape
        rows, ones = self.out_scale.shape[0], (1,) * len(size)
        return self.base * self.out_scale.reshape(rows, out, 1, *ones) * self.in_scale.reshape(rows, 1, columns, *ones)

    def linear(self, x: Tensor) -> Tensor:
        y = F.linear(x * self.in_scale[:, None].to(x.dtype), self.base)
        return y * self.out_scale[:, None].to(y.dtype)

    def convolve(self, x: Tensor, conv: Any) -> Tensor:
        rows, samples, channels = x.shape[:3]
        ones = (1,) * (x.dim() - 3)
        scale = self.in_scale.repeat(1, channels // self.base.shape[1])  # every group has the same
        y = (x * scale.reshape(rows, 1, channels, *ones).to(x.dtype)).flatten(0, 1)
        y = _convolution(y, self.base, conv, conv.groups)
        return y.unflatten(0, (rows, samples)) * self.out_scale.reshape(rows, 1, len(self.base), *ones).to(y.dtype)

    def settled(self) -> RowWeights:
        return self

    def way(self, samples: int) -> tuple[str, str]:
        return "scaling", "one product with the shared weight, inputs and outputs scaled per row"

    convolution_way = ("scaling", "one convolution with the shared kernel, inputs and outputs scaled per row")


class LowRankRows(RowWeights):
    """Matrices of two thin factors; further dimensions belong to the columns.

    Args:
        left: A (B, O, r).
        right: C (B, r, I).
        shape: of one tensor.
    """

    def __init__(self, left: RowWeights, right: RowWeights, shape: torch.Size) -> None:
        self.left, self.right, self.shape = left, right, shape

    def dense(self) -> Tensor:
        left, right = self.left.dense(), self.right.dense()
        return torch.bmm(left, right).to(left.dtype).unflatten(2, self.shape[1:])

    def linear(self, x: Tensor) -> Tensor:
        return self.left.linear(self.right.linear(x))

    def settled(self) -> RowWeights:
        return LowRankRows(self.left.settled(), self.right.settled(), self.shape)

    def way(self, samples: int) -> tuple[str, str]:
        ways = [self.right.way(samples)[0], self.left.way(samples)[0]]
        return "factors", f"two thin products, by {' and '.join(dict.fromkeys(ways))}"


class _OneSampleProducts(torch.autograd.Function):
    """A batched matmul of one sample per row: its gradients by outer products, which BLAS does badly as matmuls."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        by_x = torch.bmm(slope, weight) if ctx.needs_input_grad[0] else None
        by_weight = slope.transpose(1, 2) * x if ctx.needs_input_grad[1] else None
        return by_x, by_weight


def row_products(x: Tensor, weight: Tensor) -> Tensor:
    """Every row times its own matrix.

    Args:
        x: (B, K, I).
        weight: (B, O, I).

    Returns:
        (B, K, O).
    """
    wants_gradients = torch.is_grad_enabled() and weight.requires_grad and x.dtype == weight.dtype
    if not wants_gradients or x.shape[1] != 1 or is_autocast(x.device.type):
        return torch.bmm(x, weight.transpose(1, 2))
    if not torch.compiler.is_compiling() and is_plain():  # in this order: a compiler cannot look at the second
        return _OneSampleProducts.apply(x, weight)
    return (weight * x).sum(-1).unsqueeze(1)  # what compilers and transforms can take apart, as fast


def row_convolutions(x: Tensor, kernel: Tensor, conv: Any) -> Tensor:
    """Every row convolved with its own kernel, as the groups of one convolution.

    Args:
        x: (B, K, channels, *space), padded already.
        kernel: (B, out_channels, channels/groups, *size).
        conv: the convolution, for stride, dilation and groups.

    Returns:
        (B, K, out_channels, *space).
    """
    rows, samples, channels = x.shape[:3]
    if not rows:  # no groups: the shape alone
        y = _convolution(x.new_zeros(1, *x.shape[2:]), x.new_zeros(kernel.shape[1:]), conv, conv.groups)
        return y.new_zeros(0, samples, *y.shape[1:])
    x = x.transpose(0, 1).reshape(samples, rows * channels, *x.shape[3:])
    y = _convolution(x, kernel.flatten(0, 1), conv, rows * conv.groups)
    return y.unflatten(1, (rows, kernel.shape[1])).transpose(0, 1)


def padded(x: Tensor, conv: Any) -> Tensor:
    """The input with the margins that a convolution takes from the input itself; zeros are the convolution's work.

    Args:
        x: (B, K, channels, *space).
        conv: the convolution.

    Returns:
        the same with more space.
    """
    if conv.padding_mode == "zeros":
        return x
    rows = x.shape[:2]
    margins = conv._reversed_padding_repeated_twice  # of the last dimension first, as F.pad takes them
    return F.pad(x.flatten(0, 1), margins, mode=conv.padding_mode).unflatten(0, rows)


def _convolution(x: Tensor, kernel: Tensor, conv: Any, groups: int) -> Tensor:
    function = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}[type(conv)]
    padding = conv.padding if conv.padding_mode == "zeros" else 0
    return function(x, kernel, None, conv.stride, padding, conv.dilation, groups)
