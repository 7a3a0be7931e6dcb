"""Files are whole or as they were."""

import pytest
from matplotlib.figure import Figure

from weft.cli.files import save_figure, write


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write(path, b"old")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    for attempt in (lambda: write(path, b"new"), lambda: save_figure(Figure(), path)):
        with pytest.raises(OSError, match="space"):
            attempt()
    assert path.read_text() == "old"


def test_a_figure_is_a_png_file(tmp_path):
    save_figure(Figure(), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir()] == ["figure.png"]
