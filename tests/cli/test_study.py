"""``weft study``: which runs are made, what is skipped, what is chosen, and what is written."""

import json
import statistics

import pytest

from weft.cli.main import main
from weft.cli.study.plan import read
from weft.errors import OptionError

# Lightning's command line runs on jsonargparse's older interface, which says so whenever it is built.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

RECIPE = """
trainer: {max_epochs: 1, accelerator: cpu, limit_train_batches: 3, log_every_n_steps: 1}
model:
  model: {class_path: weft.models.SmallCNN, init_args: {widths: [4, 4]}}
data: {source: digits, batch_size: 64}
"""
STUDY = """
title: Two widths
seeds: [0, 1]
metrics: [test/acc, val/loss]
set: {model.momentum: 0.8}
arms:
  narrow: {recipe: small.yaml}
  "wide, deep": {recipe: small.yaml, set: {model.model.init_args.widths: [8, 8, 8]}}
"""
SELECT = "select: {key: model.lr, values: [1.0e-6, 0.1], metric: val/loss, mode: min}\n"


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE)
    (tmp_path / "two.yaml").write_text(STUDY)
    return tmp_path


def test_every_run_is_made_once_and_tabulated(study, capsys):
    assert main(["study", "two.yaml", "--max_runs", "3"]) == 0, capsys.readouterr().err
    assert "stopped after 3 runs" in capsys.readouterr().out
    folder = study / "runs" / "two"
    made = sorted(str(each.parent.relative_to(folder)) for each in folder.glob("**/result.json"))
    assert made == ["narrow/seed-0", "narrow/seed-1", "wide-deep/seed-0"]
    stamps = {each: each.stat().st_mtime_ns for each in folder.glob("**/*.ckpt")}
    assert main(["study", "two.yaml", "--results_dir", "out"]) == 0
    assert all(each.stat().st_mtime_ns == stamp for each, stamp in stamps.items()), "finished runs are left alone"
    assert {each.name for each in (study / "out").iterdir()} == {"two.md", "two.json", "two.png"}
    results = json.loads((folder / "results.json").read_text())["results"]
    assert [(each["arm"], each["seed"]) for each in results] == [
        ("narrow", 0), ("narrow", 1), ("wide, deep", 0), ("wide, deep", 1)
    ]  # fmt: skip
    config = (folder / "wide-deep" / "seed-1" / "config.yaml").read_text()
    assert "momentum: 0.8" in config
    assert "seed_everything: 1" in config
    values = [each["metrics"]["test/acc"] for each in results[:2]]
    row = (folder / "table.md").read_text().splitlines()[-2]
    assert f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" in row
    assert len((folder / "results.csv").read_text().splitlines()) == 5
    (tested,) = json.loads((folder / "narrow" / "seed-0" / "test.json").read_text())
    assert tested["test/acc"] == results[0]["metrics"]["test/acc"]
    assert results[0]["steps"] == 3


def test_an_arm_chooses_its_value_by_validation_and_keeps_the_trial_as_a_run(study, capsys):
    (study / "two.yaml").write_text(STUDY + SELECT)
    assert main(["study", "two.yaml", "--only", "narrow"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "is at the end of the values tried" in out
    assert "[3/3] narrow, 0.1, seed 1" in out
    results = json.loads((study / "runs" / "two" / "results.json").read_text())["results"]
    assert [(each["value"], each["seed"]) for each in results] == [(0.1, 0), (0.1, 1)]
    assert len(list((study / "runs" / "two").glob("**/result.json"))) == 3
    (study / "two.yaml").write_text(STUDY + SELECT.replace("val/loss", "val/los"))
    assert main(["study", "two.yaml", "--only", "narrow"]) == 2
    assert "no run logs 'val/los'; did you mean 'val/loss'" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_from_its_checkpoint(study, capsys):
    assert main(["study", "two.yaml", "--only", "narrow", "--seeds", "0"]) == 0
    place = study / "runs" / "two" / "narrow" / "seed-0"
    (place / "result.json").unlink()  # as if the machine had stopped before the test
    assert main(["study", "two.yaml", "--only", "narrow", "--seeds", "0"]) == 0
    assert "narrow, seed 0, resumed" in capsys.readouterr().out
    assert (place / "result.json").is_file()


def test_a_folder_of_another_study_is_refused(study, capsys):
    assert main(["study", "two.yaml", "--only", "narrow", "--seeds", "0"]) == 0
    (study / "two.yaml").write_text(STUDY.replace("0.8", "0.7"))
    assert main(["study", "two.yaml"]) == 2
    assert "it was made with --model.momentum=0.8, this one asks for --model.momentum=0.7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("arms:", "arm:"), "unknown key 'arm'; did you mean 'arms'"),
        (("recipe: small.yaml}", "recip: small.yaml}"), "arms.narrow must be a mapping with a recipe"),
        (("recipe: small.yaml}", "recipe: smal.yaml}"), "did you mean 'small.yaml'"),
        (("seeds: [0, 1]", "seeds: 3"), "seeds must be a list of integers"),
        (("metrics: [test/acc, val/loss]", "metrics: []"), "metrics must be a list"),
        (('"wide, deep"', '"narrow!"'), "differ in punctuation only"),
        (("set: {model.momentum: 0.8}", "select: {key: model.lr}"), "select must give a key and its values"),
        (("set: {model.momentum: 0.8}", "select: {key: model.lr, values: [1], mode: up}"), "select.mode must be"),
    ],
)
def test_bad_studies_are_named(study, change, words):
    (study / "two.yaml").write_text(STUDY.replace(*change, 1))
    with pytest.raises(OptionError, match=words):
        read(study / "two.yaml")


def test_bad_arguments_are_named(study, capsys):
    assert main(["study", "two.yaml", "--only", "narow"]) == 2
    assert "no arm is called 'narow'; did you mean 'narrow'" in capsys.readouterr().err
    (study / "two.yaml").write_text(STUDY.replace("model.momentum", "model.momentun"))
    assert main(["study", "two.yaml"]) == 2
    assert "momentun" in capsys.readouterr().err
