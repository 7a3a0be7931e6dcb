"""Pictures of partitions: every block once, in its colour, with its rank where that is legible."""

import sys

import pytest
import torch

import weft
from weft.errors import OptionError
from weft.parametrizations import HEDLR, HODLR, HMat, LowRank

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


def heights_and_widths(ax):
    (blocks,) = ax.collections
    boxes = [path.get_extents() for path in blocks.get_paths()]
    return [((int(box.y0), int(box.y1)), (int(box.x0), int(box.x1))) for box in boxes]


@pytest.mark.parametrize(
    "member",
    [
        HMat((60, 60), numbers=1500, min_block=2),
        HEDLR((40, 60), numbers=700, depth=4),
        HODLR((60, 40), depth=4, rank=4),
    ],
    ids=lambda member: member.family,
)
def test_every_block_is_drawn(member):
    ax = weft.plot_partition(member)
    blocks = member.partition()
    places = [((rows.start, rows.stop), (columns.start, columns.stop)) for rows, columns, *_ in blocks]
    assert heights_and_widths(ax) == places
    assert ax.get_ylim() == (member.shape[0], 0)
    assert ax.get_xlim() == (0, member.shape[1])
    colors = ax.collections[0].get_facecolors()
    dense = {tuple(color) for color, block in zip(colors, blocks, strict=True) if block.dense}
    low = {tuple(color) for color, block in zip(colors, blocks, strict=True) if not block.dense}
    assert len(dense) == any(block.dense for block in blocks)
    assert not dense & low
    for word in (member.family, f"{member.shape[0]} x {member.shape[1]}", f"{len(blocks)} blocks"):
        assert word in ax.get_title()


def test_ranks_stand_in_their_blocks_and_never_overlap():
    target = torch.randn(200, 200)
    target[100:, :100] = 0
    member = weft.approximate(target, "hmat", 0.3, min_block=2)
    ax = weft.plot_partition(member)
    ax.figure.canvas.draw()
    blocks = {
        ((columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2): (rows, columns, rank)
        for rows, columns, rank, _ in member.partition()
    }
    assert len(ax.texts) > 20
    assert len(ax.texts) < len(blocks)
    for text in ax.texts:
        rows, columns, rank = blocks[text.get_position()]
        assert text.get_text() == str(rank)
        box = ax.transData.inverted().transform(text.get_window_extent())
        assert columns.start <= box[:, 0].min() <= box[:, 0].max() <= columns.stop
        assert rows.start <= box[:, 1].min() <= box[:, 1].max() <= rows.stop


def test_it_draws_into_given_axes():
    figure, axes = pyplot.subplots(1, 2, layout="constrained")
    assert weft.plot_partition(HODLR((32, 32), depth=3, rank=2), axes[1]) is axes[1]
    assert not axes[0].collections
    inner = figure.subfigures().subplots()
    assert weft.plot_partition(HODLR((32, 32), depth=3, rank=2), inner).figure is not figure


def test_matrices_without_blocks_are_refused():
    with pytest.raises(OptionError, match=r"'low_rank' has no blocks to draw; those that have: .*hodlr, .*hmat"):
        weft.plot_partition(LowRank((8, 12), rank=2))


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs matplotlib: pip install 'weft\[train\]'"):
        weft.plot_partition(HODLR((32, 32), depth=3, rank=2))
