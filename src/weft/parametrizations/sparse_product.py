"""Products of a sparse matrix, given by its values and pattern, with dense ones; differentiable to any order.

Letters: R, C = rows and columns of the sparse matrix; n = its non-zeros; B = columns of the dense one.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pattern(NamedTuple):
    """Positions of the non-zeros of a sparse matrix, in 32-bit integers, in both orders that its products need.

    Args:
        rows: of every non-zero, row by row, (n,).
        columns: likewise.
        starts: where each row begins among them, and their number, (R + 1,).
        order: of the same non-zeros column by column, (n,).
        column_starts: where each column begins in that order, and their number, (C + 1,).
    """

    rows: Tensor
    columns: Tensor
    starts: Tensor
    order: Tensor
    column_starts: Tensor


def sparse_product(values: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    """S x by the sparse kernels of the processor, with gradients.

    Args:
        values: of the non-zeros, row by row, (n,).
        x: (C, B), of the same dtype, fp32 or fp64.
        pattern: where they are.

    Returns:
        (R, B).
    """
    return _SparseProduct.apply(values, x, pattern, False)


def product_by_rows(values: Tensor, x: Tensor, columns: Tensor, starts: Tensor) -> Tensor:
    """S x by the sparse kernels of the processor, without gradients.

    Args:
        values: of the non-zeros, row by row, (n,).
        x: (C, B), of the same dtype, fp32 or fp64.
        columns: of the non-zeros.
        starts: where each row begins among them, and their number, (R + 1,).

    Returns:
        (R, B).
    """
    _say_beta_once()
    size = (len(starts) - 1, len(x))
    matrix = torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)
    return (matrix @ x[:, 0]).unsqueeze(1) if x.shape[1] == 1 else matrix @ x  # a vector's kernel is three times faster


@functools.cache
def _say_beta_once() -> None:
    """Let torch say that its compressed tensors are in beta, once per process, to nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()


def _product(values: Tensor, x: Tensor, pattern: Pattern, transposed: bool) -> Tensor:
    """S x, or S^T x: the columns of S are the rows of a matrix in the same form, torch would sort in every call."""
    if not transposed:
        return product_by_rows(values, x, pattern.columns, pattern.starts)
    rows, values = (each.index_select(0, pattern.order) for each in (pattern.rows, values))
    return product_by_rows(values, x, rows, pattern.column_starts)


class _SparseProduct(torch.autograd.Function):
    """S x or S^T x by the sparse kernels of the processor, with its gradients in the same form, of any order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, pattern: Pattern, transposed: bool) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.pattern, ctx.transposed = pattern, transposed
        return _product(values, x, pattern, transposed)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        (values, x), slope = ctx.saved_tensors, slopes[0].contiguous()
        to_values = to_x = None
        if ctx.needs_input_grad[0]:
            left, right = (x, slope) if ctx.transposed else (slope, x)
            to_values = _SampledProduct.apply(left, right, ctx.pattern)
        if ctx.needs_input_grad[1]:
            to_x = _SparseProduct.apply(values, slope, ctx.pattern, not ctx.transposed)
        return to_values, to_x, None, None


class _SampledProduct(torch.autograd.Function):
    """The entries of left right^T at a pattern: left (R, B), right (C, B)."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.pattern = pattern
        zeros, size = left.new_zeros(len(pattern.columns)), (len(left), len(right))
        matrix = torch.sparse_csr_tensor(pattern.starts, pattern.columns, zeros, size=size, check_invariants=False)
        return torch.sparse.sampled_addmm(matrix, left, right.T, beta=0.0).values()

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        (left, right), slope = ctx.saved_tensors, slopes[0].contiguous()
        to_left = _SparseProduct.apply(slope, right, ctx.pattern, False)
        return to_left, _SparseProduct.apply(slope, left, ctx.pattern, True), None
