"""Independent answers: slow, from the definitions, sharing no code with the library.

Letters: O, I = rows and columns of a matrix; n = components of a hypercomplex number; K = kernel positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.parametrizations import Stage


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().double().numpy()


def product_of_two(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices, as the sum of the outer products of columns and rows.

    Args:
        left: (O, R).
        right: (R, I).

    Returns:
        (O, I), in double precision.
    """
    a, b = _numpy(left), _numpy(right)
    total = np.zeros((a.shape[0], b.shape[1]))
    for r in range(a.shape[1]):
        total += np.outer(a[:, r], b[r])
    return torch.from_numpy(total)


def monarch(left: Tensor, right: Tensor, shape: tuple[int, int]) -> Tensor:
    """W[j*L + l, k*P + i] = sum_r left[l, j, k*R + r] right[k, l*R + r, i], entry by entry.

    Args:
        left: (L, J, K*R).
        right: (K, L*R, P).
        shape: (O, I); what is beyond is not there.

    Returns:
        (O, I), in double precision.
    """
    a, b = _numpy(left), _numpy(right)
    groups, blocks, width = a.shape[0], b.shape[0], b.shape[2]
    rank = a.shape[2] // blocks
    matrix = np.zeros(shape)
    for row, column in itertools.product(range(shape[0]), range(shape[1])):
        (j, g), (k, i) = divmod(row, groups), divmod(column, width)
        matrix[row, column] = sum(a[g, j, k * rank + r] * b[k, g * rank + r, i] for r in range(rank))
    return torch.from_numpy(matrix)


def butterfly(factors: Tensor, levels: int, shape: tuple[int, int]) -> Tensor:
    """The product of all factors as whole matrices, each filled pair by pair.

    Args:
        factors: (D*M, 4, N/2); pair h of factor m joins the numbers g*2^(m+1) + t and the one 2^m further, where
            h = g*2^m + t.
        levels: M.
        shape: (O, I); what is beyond is cut off.

    Returns:
        (O, I), in double precision.
    """
    pairs = factors.shape[-1]
    matrix = np.eye(2 * pairs)
    for index, values in enumerate(_numpy(factors).reshape(-1, 2, 2, pairs)):
        level = index % levels
        factor = np.zeros((2 * pairs, 2 * pairs))
        for h, block in enumerate(values.transpose(2, 0, 1)):
            first = h // 2**level * 2 ** (level + 1) + h % 2**level
            places = [first, first + 2**level]
            factor[np.ix_(places, places)] = block
        matrix = factor @ matrix
    return torch.from_numpy(matrix[: shape[0], : shape[1]].copy())


def low_displacement_rank(row_operator: Tensor, column_operator: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum_i K(A, g_i) K(B^T, h_i)^T, the Krylov matrices built column by column from whole operators.

    Args:
        row_operator: (3, O), entries of A at the columns i - 1, i and i + 1 of row i, that go around and add up.
        column_operator: (3, I), of B.
        left: (O, R), the vectors g.
        right: (I, R), the vectors h.

    Returns:
        (O, I), in double precision; min(O, I) columns of every Krylov matrix.
    """

    def whole(bands: Any) -> Any:
        side = bands.shape[1]
        matrix = np.zeros((side, side))
        for i, offset in itertools.product(range(side), (-1, 0, 1)):
            matrix[i, (i + offset) % side] += bands[offset + 1, i]
        return matrix

    a, b = whole(_numpy(row_operator)), whole(_numpy(column_operator))
    total = np.zeros((len(a), len(b)))
    for g, h in zip(_numpy(left).T, _numpy(right).T, strict=True):
        for _ in range(min(total.shape)):
            total += np.outer(g, h)
            g, h = a @ g, b.T @ h
    return torch.from_numpy(total)


def sparse_product(
    values: Tensor, rows: Tensor, columns: Tensor, counts: Sequence[int], shape: tuple[int, int]
) -> Tensor:
    """The product of the factors as whole matrices, filled number by number.

    Args:
        values: (T,), those of the first factor first.
        rows: (T,) positions.
        columns: (T,) positions.
        counts: numbers of every factor.
        shape: (O, I); the sides in between are the larger of the two.

    Returns:
        (O, I), in double precision.
    """
    width, matrix, first = max(shape), np.eye(shape[0]), 0
    for j, count in enumerate(counts):
        factor = np.zeros((matrix.shape[1], shape[1] if j == len(counts) - 1 else width))
        for value, row, column in zip(
            *(_numpy(t)[first : first + count] for t in (values, rows, columns)), strict=True
        ):
            factor[int(row), int(column)] = value
        # The first factor has as many rows as the matrix, so the product needs no cutting.
        matrix, first = matrix @ factor, first + count
    return torch.from_numpy(matrix)


def toeplitz_like(left: Tensor, right: Tensor, shape: tuple[int, int]) -> Tensor:
    """1/2 sum_j [g_j, Z_1 g_j, Z_1^2 g_j, ...] [h_j, Z_-1 h_j, ...] with h_j reversed, column after column.

    Args:
        left: (R, N), the rows g_j.
        right: (R, N), the rows h_j.
        shape: (O, I); what is beyond is cut off.

    Returns:
        (O, I), in double precision.
    """

    def columns(first: np.ndarray, factor: int) -> np.ndarray:
        found = [first]
        while len(found) < len(first):
            last = found[-1]
            found.append(np.concatenate([factor * last[-1:], last[:-1]]))
        return np.stack(found, axis=1)

    pairs = zip(_numpy(left), _numpy(right), strict=True)
    total = sum(columns(g, 1) @ columns(h[::-1], -1) for g, h in pairs) / 2
    return torch.from_numpy(total[: shape[0], : shape[1]].copy())


def sum_of_kroneckers(first: Tensor, second: Tensor) -> Tensor:
    """sum_i first[i] (x) second[i], one Kronecker product after the other.

    Args:
        first: (n, p, q).
        second: (n, o, c).

    Returns:
        (p*o, q*c), in double precision.
    """
    total: np.ndarray | float = 0.0
    for a, s in zip(_numpy(first), _numpy(second), strict=True):
        total = total + np.kron(a, s)
    return torch.from_numpy(np.asarray(total))


def sum_of_outer_products(*factors: Tensor) -> Tensor:
    """sum_r a[:, r] o b[:, r] o c[:, r], one outer product after the other.

    Args:
        *factors: a, b and c, each (n, R).

    Returns:
        (n, n, n), in double precision.
    """
    columns = zip(*(_numpy(factor).T for factor in factors), strict=True)
    return torch.from_numpy(np.sum([np.multiply.outer(np.multiply.outer(a, b), c) for a, b, c in columns], axis=0))


def hedlr_matrix(member: Any) -> Tensor:
    """A grid of blocks, by recursion over a tree of which everything is split.

    Args:
        member: with ``values``, ``ranks``, ``shape``, ``positions`` and ``depth`` of the family ``hedlr``.

    Returns:
        (O, I), in double precision.
    """
    return _hierarchical_matrix(member, lambda level, *_: level == member.depth - 1)


def hmat_matrix(member: Any) -> Tensor:
    """An H-matrix, by recursion over a tree that ends where blocks are far from the diagonal or small.

    Args:
        member: with ``values``, ``ranks``, ``shape``, ``positions``, ``min_block`` and ``eta`` of the family ``hmat``.

    Returns:
        (O, I), in double precision.
    """
    height, width = member.shape[0], member.shape[1] // member.positions

    def ends(_: int, rows: range, columns: range) -> bool:
        a, b, c, d = (
            Fraction(end, total) for r, total in ((rows, height), (columns, width)) for end in (r.start, r.stop)
        )
        distance = max(a - d, c - b, Fraction(0))
        far = max(b - a, d - c) <= 2 * Fraction(member.eta) * distance
        return far or min(len(rows), len(columns)) <= 2 * member.min_block

    return _hierarchical_matrix(member, ends)


def _hierarchical_matrix(member: Any, ends: Callable[[int, range, range], bool]) -> Tensor:
    """Blocks in the order in which they are stored, level by level.

    First the V from left to right, then from top to bottom the U of every row of blocks and its dense blocks.
    """
    matrix, positions = np.zeros(member.shape), member.positions
    levels: dict[int, list[tuple[range, range]]] = {}

    def split(level: int, rows: range, columns: range) -> None:
        if ends(level, rows, columns):
            levels.setdefault(level, []).append((rows, columns))
            return
        r, c = len(rows) // 2, len(columns) // 2
        for part in (rows[:r], rows[r:]):
            for other in (columns[:c], columns[c:]):
                split(level + 1, part, other)

    split(0, range(member.shape[0]), range(member.shape[1] // positions))
    values, ranks = _numpy(member.values).tolist(), member.ranks.tolist()
    for _, blocks in sorted(levels.items()):
        blocks.sort(key=lambda block: (block[0].start, block[1].start))
        shapes = [(len(r), len(c) * positions) for r, c in blocks]
        here, ranks = ranks[: len(blocks)], ranks[len(blocks) :]
        low = [rank * (a + c) <= a * c for rank, (a, c) in zip(here, shapes, strict=True)]
        factors: list[list[Any]] = [[None, None] for _ in blocks]

        def taken(rows: int, columns: int) -> Any:
            numbers, values[: rows * columns] = values[: rows * columns], []
            return np.array(numbers).reshape(rows, columns)

        for b in sorted(range(len(blocks)), key=lambda b: blocks[b][1].start):
            if low[b]:
                factors[b][1] = taken(here[b], shapes[b][1])
        for b in sorted(range(len(blocks)), key=lambda b: (blocks[b][0].start, not low[b])):
            factors[b][0] = taken(here[b] if low[b] else shapes[b][1], shapes[b][0]).T
        for (rows, columns), (left, right) in zip(blocks, factors, strict=True):
            whole = left if right is None else left @ right
            matrix[rows.start : rows.stop, columns.start * positions : columns.stop * positions] = whole
    return torch.from_numpy(matrix)


def semiseparable_matrix(member: Any) -> Tensor:
    """A sequentially semiseparable matrix, from the recursions: each column is the answer to one unit input.

    Args:
        member: with the features ``plan`` (sizes of the stages and states) and the parameters of the family ``sss``,
            whose blocks stand one after the other.

    Returns:
        (O, I), in double precision.
    """
    rows, columns, lower, upper = member.plan
    last = len(rows) - 1

    def blocks(name: str, sizes: list[tuple[int, int]]) -> list[Any]:
        values, place, found = _numpy(getattr(member, name)), 0, []
        for r, c in sizes:
            found.append(values[place : place + r * c].reshape(r, c))
            place += r * c
        assert place == values.size, f"{name} stores {values.size} numbers, must be {place}"
        return found

    d = blocks("diagonal", [(rows[k], columns[k]) for k in range(last + 1)])
    b = blocks("lower_input", [(lower[k], columns[k]) for k in range(last)])
    a = blocks("lower_state", [(lower[k], lower[k - 1]) for k in range(1, last)])
    c = blocks("lower_output", [(rows[k + 1], lower[k]) for k in range(last)])
    f = blocks("upper_input", [(upper[k], columns[k + 1]) for k in range(last)])
    e = blocks("upper_state", [(upper[k - 1], upper[k]) for k in range(1, last)])
    g = blocks("upper_output", [(rows[k], upper[k]) for k in range(last)])
    ends = np.cumsum(columns)
    answers = []
    for unit in np.eye(sum(columns)):
        u = np.split(unit, ends[:-1])
        y = [d[k] @ u[k] for k in range(last + 1)]
        if last:
            x = b[0] @ u[0]
            for k in range(1, last + 1):
                y[k] = y[k] + c[k - 1] @ x
                if k < last:
                    x = a[k - 1] @ x + b[k] @ u[k]
            z = f[last - 1] @ u[last]
            for k in range(last - 1, -1, -1):
                y[k] = y[k] + g[k] @ z
                if k > 0:
                    z = e[k - 1] @ z + f[k - 1] @ u[k]
        answers.append(np.concatenate(y))
    return torch.from_numpy(np.stack(answers, axis=1))


def hamilton_product(p: Sequence[float], q: Sequence[float]) -> tuple[float, float, float, float]:
    """The product of two quaternions by Hamilton's formula, with i^2 = j^2 = k^2 = ijk = -1.

    Args:
        p: real, i, j and k part of the left factor.
        q: of the right factor.

    Returns:
        the parts of p q.

    Example:
        >>> hamilton_product((0, 1, 0, 0), (0, 0, 1, 0))  # i j = k
        (0, 0, 0, 1)
    """
    a1, b1, c1, d1 = p
    a2, b2, c2, d2 = q
    return (
        a1 * a2 - b1 * b2 - c1 * c2 - d1 * d2,
        a1 * b2 + b1 * a2 + c1 * d2 - d1 * c2,
        a1 * c2 - b1 * d2 + c1 * a2 + d1 * b2,
        a1 * d2 + b1 * c2 - c1 * b2 + d1 * a2,
    )


def quaternion_matrix(blocks: Tensor) -> Tensor:
    """The matrix that multiplies quaternion columns from the left, one entry after the other by Hamilton's formula.

    Args:
        blocks: (4, O/4, I/4), real, i, j and k parts.

    Returns:
        (O, I), component major, in double precision.
    """
    parts = _numpy(blocks)
    _, rows, columns = parts.shape
    matrix = np.zeros((4 * rows, 4 * columns))
    for o, c, q in itertools.product(range(rows), range(columns), range(4)):
        unit = [float(q == component) for component in range(4)]
        for p, value in enumerate(hamilton_product(parts[:, o, c].tolist(), unit)):
            matrix[p * rows + o, q * columns + c] = value
    return torch.from_numpy(matrix)


def rotation_blocks(quaternions: Tensor, scale: Tensor, n: int) -> Tensor:
    """The matrix whose blocks turn vectors v into w v w*/|w|^2 times a scale, by Hamilton's formula on unit vectors.

    Args:
        quaternions: w, (4, O/n, I/n).
        scale: (O/n, I/n), or one number.
        n: 3 for vectors (x, y, z); 4 for (real, x, y, z), of which the real part is 0.

    Returns:
        (O, I), component major, in double precision.
    """
    parts = _numpy(quaternions)
    _, rows, columns = parts.shape
    scales = np.broadcast_to(_numpy(scale), (rows, columns))
    matrix = np.zeros((n, rows, n, columns))
    for o, c, q in itertools.product(range(rows), range(columns), (1, 2, 3)):
        w, unit = parts[:, o, c], [float(q == component) for component in range(4)]
        image = hamilton_product(hamilton_product(w.tolist(), unit), (w * [1, -1, -1, -1]).tolist())
        for p in (1, 2, 3):
            matrix[p - 4, o, q - 4, c] = scales[o, c] * image[p] / (w**2).sum()
    return torch.from_numpy(matrix.reshape(n * rows, n * columns))


def complex_matrix(blocks: Tensor) -> Tensor:
    """The real matrix of a complex one: what it does to real and imaginary unit vectors.

    Args:
        blocks: (2, O/2, I/2), real and imaginary parts.

    Returns:
        (O, I), all real parts first, in double precision.
    """
    weight = _numpy(blocks)[0] + 1j * _numpy(blocks)[1]
    images = np.concatenate([weight, weight * 1j], axis=1)  # of the unit vectors 1 and i of each column
    return torch.from_numpy(np.concatenate([images.real, images.imag], axis=0))


def apply_stages(stages: Sequence[Stage], x: Tensor) -> Tensor:
    """The map that stages stand for, by the equation in their docstring.

    Args:
        stages: first applied first.
        x: (B, I).

    Returns:
        (B, O).
    """
    for matrix, inner in stages:
        groups, rows, columns = matrix.shape
        blocks = x.reshape(len(x), groups, columns, inner)
        x = torch.einsum("goi,bgit->bgot", matrix, blocks).reshape(len(x), groups * rows * inner)
    return x


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """A convolution in any number of dimensions by the definition, one kernel position after the other.

    y[b, o, t] = bias[o] + sum_{c, k} weight[o, c, k] x[b, c, t*stride + k*dilation - padding], x = 0 outside.

    Args:
        x: (B, I, *size).
        weight: (O, I, *kernel).
        bias: (O,) or None.
        stride: one per dimension.
        padding: zeros at each end, one per dimension.
        dilation: one per dimension.

    Returns:
        (B, O, *size), in double precision.
    """
    kernel = weight.shape[2:]
    data: Any = np.pad(_numpy(x), [(0, 0), (0, 0), *((p, p) for p in padding)])
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    sizes = [(n - span) // s + 1 for n, span, s in zip(data.shape[2:], spans, stride, strict=True)]
    taps = _numpy(weight)
    total = np.zeros((len(x), weight.shape[0], *sizes))
    for position in itertools.product(*map(range, kernel)):
        starts = [k * d for k, d in zip(position, dilation, strict=True)]
        window = tuple(slice(a, a + s * n, s) for a, s, n in zip(starts, stride, sizes, strict=True))
        total += np.einsum("oc,bc...->bo...", taps[(..., *position)], data[(..., *window)])
    if bias is not None:
        total += _numpy(bias).reshape(-1, *(1,) * len(sizes))
    return torch.from_numpy(total)


def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """A transposed convolution by the definition: every input position stamps the kernel onto the output.

    Args:
        x: (B, I, *size).
        weight: (I, O, *kernel), torch's layout.
        bias: (O,) or None.
        stride: one per dimension.
        padding: numbers cut off each end of the output, one per dimension.
        dilation: one per dimension.

    Returns:
        (B, O, *size), in double precision.
    """
    kernel, taps, data = weight.shape[2:], _numpy(weight), _numpy(x)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    full = [(n - 1) * s + span for n, s, span in zip(x.shape[2:], stride, spans, strict=True)]
    total: Any = np.zeros((len(x), weight.shape[1], *full))
    for start in itertools.product(*map(range, x.shape[2:])):
        for position in itertools.product(*map(range, kernel)):
            at = tuple(t * s + k * d for t, s, k, d in zip(start, stride, position, dilation, strict=True))
            total[(..., *at)] += data[(..., *start)] @ taps[(..., *position)]
    total = total[(..., *(slice(p, n - p) for p, n in zip(padding, full, strict=True)))]
    if bias is not None:
        total += _numpy(bias).reshape(-1, *(1,) * len(full))
    return torch.from_numpy(total)


def weighted_error(matrix: Tensor, target: Tensor, inputs: Tensor | None = None) -> float:
    """||matrix - target|| / ||target||, or with inputs X (rows are samples) that of the outputs X W^T.

    Args:
        matrix: (O, I).
        target: (O, I).
        inputs: (B, I), or None for the plain norm.

    Returns:
        the ratio.
    """
    difference, size = _numpy(matrix) - _numpy(target), _numpy(target)
    if inputs is not None:
        difference, size = _numpy(inputs) @ difference.T, _numpy(inputs) @ size.T
    return math.sqrt(float((difference**2).sum()) / float((size**2).sum()))


def hodlr_matrix(
    left: Tensor, right: Tensor, shape: tuple[int, int], depth: int, rank: int, positions: int = 1
) -> Tensor:
    """A hierarchically off-diagonal low-rank matrix, entry by entry from its stored numbers.

    Args:
        left: leaf after leaf [D | U], flat.
        right: leaf after leaf V, flat.
        shape: (out, in).
        depth: levels of the tree, the root counted.
        rank: of the off-diagonal blocks.
        positions: columns of one input channel.

    Returns:
        (out, in), in double precision.
    """
    a, b, leaves, width = list(_numpy(left)), list(_numpy(right)), 2 ** (depth - 1), (depth - 1) * rank
    row_leaf, column_leaf = ([i for i, part in enumerate(np.array_split(range(n), leaves)) for _ in part]
        for n in (shape[0], shape[1] // positions))  # fmt: skip
    column_leaf = [leaf for leaf in column_leaf for _ in range(positions)]
    near, up, down = {}, {}, {}
    for o, leaf in enumerate(row_leaf):
        for i in (i for i in range(shape[1]) if column_leaf[i] == leaf):
            near[o, i] = a.pop(0)
        for k in range(width):
            up[o, k] = a.pop(0)
    for leaf in range(leaves):
        for k in range(width):
            for i in (i for i in range(shape[1]) if column_leaf[i] == leaf):
                down[k, i] = b.pop(0)
    total = np.zeros(shape)
    for o, i in itertools.product(range(shape[0]), range(shape[1])):
        if (o, i) in near:
            total[o, i] = near[o, i]
            continue
        level = depth - 1 - (row_leaf[o] ^ column_leaf[i]).bit_length()  # the split that parts the two leaves
        total[o, i] = sum(up[o, k] * down[k, i] for k in range(level * rank, (level + 1) * rank))
    return torch.from_numpy(total)
