"""Checkpoints are replaced whole, and files of a run get names of their own."""

import pytest
import torch

from weft.cli import checkpoints
from weft.cli.runs import claim, numbered
from weft.errors import OptionError


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    writer = checkpoints.AtomicCheckpoints()
    writer.save_checkpoint({"step": 1}, path)

    def break_off(checkpoint, file):
        file.write(b"half a check")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(OSError, match="disk full"):
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_numbered_finds_the_first_free_name(tmp_path):
    path = tmp_path / "config.yaml"
    for name in ("config.yaml", "config.2.yaml", "config.3.yaml"):
        free = numbered(path)
        assert free.name == name
        free.touch()


def test_folder_of_a_run_may_only_be_gone_on_with(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    claim(tmp_path / "run", None)
    checkpoint.parent.mkdir(parents=True)
    claim(tmp_path / "run", None)  # it was stopped before it had anything to lose
    checkpoint.touch()
    claim(tmp_path / "run", checkpoint)
    for resumed in (None, tmp_path / "other" / "checkpoints" / "last.ckpt"):
        with pytest.raises(OptionError, match="already holds a run"):
            claim(tmp_path / "run", resumed)
