"""The picture of a layer shows every node, sub-layer and skip."""

import sys

import pytest

import weft

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def no_window():
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


def test_everything_is_drawn(tmp_path):
    layer = weft.EPConv2d(
        3, 8, [3, (1, 5), 1], 1, width=2, batch_norm=True, residual=True, residual_intervals=[1, -1],
        residual_mode="learn",
    )  # fmt: skip
    ax = weft.overparam.plot_graph(layer)
    texts = [text.get_text() for text in ax.texts]
    assert texts[:4] == ["3", "16", "16", "8"]
    assert texts[4:7] == ["3 x 3, BN", "1 x 5, BN", "1 x 1, BN"]
    assert texts[7:] == ["G"] * 4
    assert len(ax.patches) == 3 + 4
    for kind in ("png", "svg"):
        ax.figure.savefig(tmp_path / f"layer.{kind}")
        assert (tmp_path / f"layer.{kind}").stat().st_size > 1000


def test_axes_may_be_given():
    _, ax = pyplot.subplots()
    assert weft.overparam.plot_graph(weft.EPLinear(4, 4, batch_norm="output"), ax) is ax
    assert "then BN" in ax.get_title()
    assert [text.get_text() for text in ax.texts[3:]] == ["linear", "linear"]


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs matplotlib: pip install 'weft\[train\]'"):
        weft.overparam.plot_graph(weft.EPLinear(4, 4))
