"""Trees of blocks: the published counts of leaves, tilings without gap or overlap, distances in scaled sides."""

import numpy as np
import pytest
import torch

from weft.parametrizations import HEDLR, HODLR, HMat, LowRank
from weft.parametrizations.partition import admissible_tree, cuts, grid

MEMBERS = [
    *(HMat(shape, numbers=900, min_block=2, dtype=torch.float64) for shape in ((64, 64), (40, 51), (51, 40), (30, 90))),
    *(HEDLR(shape, numbers=900, depth=4, dtype=torch.float64) for shape in ((64, 64), (40, 51), (51, 40))),
    *(HODLR(shape, depth=3, rank=2, dtype=torch.float64) for shape in ((64, 64), (40, 51), (51, 40))),
    HMat((31, 54), numbers=700, min_block=1, positions=3, dtype=torch.float64),
    HEDLR((31, 54), numbers=700, depth=3, positions=3, dtype=torch.float64),
    HODLR((31, 54), depth=3, rank=1, positions=3, dtype=torch.float64),
]


@pytest.mark.parametrize(("side", "leaves"), [(64, 112), (300, 1048), (512, 1102)])
def test_counts_of_leaves_are_the_published_ones(side, leaves):
    assert sum(len(level.row) for level in admissible_tree((side, side), 1, 2, 0.5)) == leaves
    assert HMat((side, side), numbers=side**2 // 2, min_block=2).blocks == leaves


def test_count_of_leaves_of_the_grid():
    assert HEDLR((64, 64), numbers=1000, depth=4).blocks == 64
    assert len(grid((64, 64), 1, 3)[0].row) == 64


@pytest.mark.parametrize("member", MEMBERS, ids=repr)
def test_blocks_tile_the_matrix_and_have_their_ranks(member):
    matrix, seen = member.dense().detach().numpy(), np.zeros(member.shape, dtype=int)
    for rows, columns, rank, dense in member.partition():
        seen[rows, columns] += 1
        assert columns.start % member.positions == columns.stop % member.positions == 0
        block = matrix[rows, columns]
        assert block.size > 0
        assert np.linalg.matrix_rank(block) == rank
        assert dense == (rank == min(block.shape))
    assert (seen == 1).all()


def test_a_matrix_without_blocks_has_no_partition():
    assert LowRank((8, 12), rank=2).partition() is None


@pytest.mark.parametrize("shape", [(64, 64), (40, 51), (51, 40), (24, 200)])
@pytest.mark.parametrize("eta", [0.3, 0.5, 0.9])
def test_blocks_end_where_they_are_far_or_small(shape, eta):
    """Every leaf is far or small, no parent of one is; with distances between the points of the scaled sides."""
    for level, row, column, first, sizes in admissible_tree(shape, 1, 2, eta):
        for i, j, start, size in zip(row, column, first, sizes, strict=True):
            assert far(start, size, shape, eta) or min(size) <= 4
            if level:
                ends = [cuts(side, level - 1)[place // 2 :][:2] for side, place in zip(shape, (i, j), strict=True)]
                above = [np.array([end[0] for end in ends]), np.array([end[1] - end[0] for end in ends])]
                assert not far(*above, shape, eta)
                assert min(above[1]) > 4


def far(start, size, shape, eta):
    (a, b), (c, d) = (np.linspace(s, s + n, 2) / side for s, n, side in zip(start, size, shape, strict=True))
    distance = 0 if a < d and c < b else min(abs(a - d), abs(c - b))
    return max(b - a, d - c) <= 2 * eta * distance + 1e-12


def test_distances_do_not_depend_on_the_proportions():
    """The earlier code compared row numbers with column numbers, and could find negative distances (defect D17)."""
    square = admissible_tree((64, 64), 1, 2, 0.5)
    for shape, positions in (((64, 192), 1), ((320, 64), 1), ((64, 576), 9)):
        for level, other in zip(square, admissible_tree(shape, positions, 2, 0.5), strict=True):
            assert level.level == other.level
            assert (level.row == other.row).all()
            assert (level.column == other.column).all()
