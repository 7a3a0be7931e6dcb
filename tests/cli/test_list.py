"""``weft list`` prints the records, whole and true."""

import json

import pytest

import weft
from weft.cli.main import main


def test_overview_names_every_family(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in weft.families())


@pytest.mark.parametrize("name", weft.families())
def test_one_family_is_shown_in_full(capsys, name):
    record = weft.families()[name]
    assert main(["list", name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)[name]
    assert shown.keys() == record.__dataclass_fields__.keys()
    assert shown["options"] == dict(record.options) and shown["weight_decay"] == dict(record.weight_decay)
    assert shown["cls"].endswith(record.cls.__qualname__)
    assert main(["list", name]) == 0
    words = capsys.readouterr().out
    assert record.title in words and record.parameters.split()[0] in words


def test_unknown_family_is_answered_with_the_nearest(capsys):
    assert main(["list", "low_rnk"]) == 2
    assert "did you mean 'low_rank'?" in capsys.readouterr().err
