"""Products of a sparse matrix, given by its values and pattern, with dense ones; differentiable to any order.

Letters: R, C = rows and columns of the sparse matrix; B = columns of the dense one.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor


def sparse_product(values: Tensor, x: Tensor, starts: Tensor, columns: Tensor, rows: int) -> Tensor:
    """S x by the sparse kernels of the processor.

    Args:
        values: of the non-zeros, row by row.
        x: (C, B), of the same dtype, fp32 or fp64.
        starts: where each row begins among the values, and their number, (R + 1,).
        columns: of the values.
        rows: R.

    Returns:
        (R, B).
    """
    _say_beta_once()
    return _SparseProduct.apply(values, x, starts, columns, False, rows)


@functools.cache
def _say_beta_once() -> None:
    """Let torch say that its compressed tensors are in beta, once per process, to nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()
        torch.eye(1).to_sparse_csc()


class _SparseProduct(torch.autograd.Function):
    """S x by the sparse kernels of the processor, with its gradients in the same form, of any order.

    The pattern is that of compressed rows; the same three tensors read as compressed columns are S^T.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, starts: Tensor, columns: Tensor, transposed: bool, rows: int
    ) -> Tensor:
        ctx.save_for_backward(values, x, starts, columns)
        ctx.transposed = transposed
        make = torch.sparse_csc_tensor if transposed else torch.sparse_csr_tensor
        return make(starts, columns, values, size=(rows, x.shape[0]), check_invariants=False) @ x

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        values, x, starts, columns = ctx.saved_tensors
        slope = slopes[0].contiguous()
        to_x = _SparseProduct.apply(values, slope, starts, columns, not ctx.transposed, len(x))
        left, right = (x, slope) if ctx.transposed else (slope, x)
        return _SampledProduct.apply(left, right, starts, columns), to_x, None, None, None, None


class _SampledProduct(torch.autograd.Function):
    """The entries of left right^T at a pattern: left (R, B), right (C, B)."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, starts, columns)
        size = (len(left), len(right))
        zeros = torch.sparse_csr_tensor(
            starts, columns, left.new_zeros(len(columns)), size=size, check_invariants=False
        )
        return torch.sparse.sampled_addmm(zeros, left, right.T, beta=0.0).values()

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        left, right, starts, columns = ctx.saved_tensors
        slope = slopes[0].contiguous()
        to_left = _SparseProduct.apply(slope, right, starts, columns, False, len(left))
        to_right = _SparseProduct.apply(slope, left, starts, columns, True, len(right))
        return to_left, to_right, None, None
