"""``weft study``: what it runs, chooses and writes, how it goes on, and what it refuses before any work."""

import contextlib
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Union

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset

from weft.cli import lightning
from weft.cli.lock import exclusive
from weft.cli.main import main
from weft.cli.study import results as study_results
from weft.cli.study.plan import merged, read

# Lightning's command line runs on jsonargparse's older interface, which says so whenever it is built.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

TRAINER = {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1}
DIGITS = {
    "trainer": {**TRAINER, "limit_train_batches": 2},
    "model": {"model": {"class_path": "weft.models.SmallCNN", "init_args": {"widths": [4]}}, "lr": 0.1},
    "data": {"source": "digits", "batch_size": 100},
}
LINE = {
    "trainer": TRAINER,
    "model": {"class_path": "test_study.Line"},
    "data": {"class_path": "test_study.Points"},
}


class Line(pl.LightningModule):
    """A module that logs names of its own.

    Args:
        lr: of SGD.
        start: of the slope.
    """

    def __init__(self, lr: float = 0.1, start: float = 0.0) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor([start]))
        self.lr = lr

    def _loss(self, batch):
        return (self.slope * batch[0] - 3 * batch[0]).square().mean()

    def training_step(self, batch, _):
        loss = self._loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        self.log("val/gap", self._loss(batch))

    def test_step(self, batch, index):
        self.log("test/gap_S4", self._loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Points(pl.LightningDataModule):
    """Numbers of variance one, in four batches."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.tensor([[-1.0], [1.0]] * 4)), 2, num_workers=0)

    val_dataloader = test_dataloader = train_dataloader


class Signal(Callback):
    """Sends the process SIGTERM after the first epoch, once."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 4 and not Path("signalled").exists():
            Path("signalled").touch()
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder with two recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    for name, recipe in (("digits", DIGITS), ("line", LINE)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """The command lines of ``weft fit`` and ``weft test`` that a study made."""
    made, run = [], lightning.run
    monkeypatch.setattr(lightning, "run", lambda command, argv: made.append((command, argv)) or run(command, argv))
    return made


def study(*more, **content):
    """Run a study of lines; keys replace those of the file."""
    base = {"seeds": [0, 1], "metrics": ["test/gap_S4"], "arms": {"a line": {"recipe": "line.yaml"}}}
    Path("s.yaml").write_text(yaml.safe_dump({**base, **content}, sort_keys=False), encoding="utf-8")
    return main(["study", "s.yaml", *more])


def results(folder="runs/s"):
    return json.loads((Path(folder) / "results.json").read_text())


def gap(lr, start=0.0, steps=4):
    """Loss of the line after some steps: every step multiplies the error by 1 - 2 lr."""
    return ((start - 3) * (1 - 2 * lr) ** steps) ** 2


SELECT = {"key": "model.init_args.lr", "values": [0.01, 0.95, 0.2, 0.05], "metric": "val/gap", "mode": "min"}
TWO = {"slow": {"recipe": "line.yaml"}, "from 2": {"recipe": "line.yaml", "set": {"model.init_args.start": 2.0}}}


def test_digits_are_trained_tested_tabulated_and_drawn(calls, capsys):
    arms = {"CNN": {"recipe": "digits.yaml"}, "wider": {"recipe": "digits.yaml",
            "set": {"model.model.init_args.widths": [6]}}}  # fmt: skip
    set_ = {"model.momentum": 0.8}
    assert study("--results_dir", "kept", arms=arms, metrics=["test/acc", "val/acc"], set=set_) == 0
    assert [command for command, _ in calls] == ["fit", "test"] * 4
    found = results()["results"]
    assert [(each["arm"], each["seed"]) for each in found] == [("CNN", 0), ("CNN", 1), ("wider", 0), ("wider", 1)]
    config = yaml.safe_load(Path("runs/s/wider/seed-1/config.yaml").read_text())
    assert (config["seed_everything"], config["model"]["momentum"]) == (1, 0.8)
    assert found[0]["parameters"] < found[2]["parameters"]
    assert found[0]["metrics"]["test/loss"] != found[1]["metrics"]["test/loss"], "seeds draw other weights"
    own = [each["metrics"]["test/acc"] for each in found[:2]]
    cell = f"| {statistics.mean(own):.4f} ± {statistics.stdev(own):.4f} |"
    assert cell in Path("runs/s/table.md").read_text()
    rows = list(csv.DictReader(Path("runs/s/results.csv").read_text().splitlines()))
    assert [float(row["test/acc"]) for row in rows] == [each["metrics"]["test/acc"] for each in found]
    assert {each.name for each in Path("kept").iterdir()} == {"s.md", "s.json", "s.png"}
    assert Path("kept/s.png").read_bytes().startswith(b"\x89PNG")
    assert "[4/4] wider, seed 1: test/acc" in capsys.readouterr().out


def test_every_arm_trains_at_the_value_that_its_own_validation_prefers(calls, capsys):
    set_ = {"slow": {"recipe": "line.yaml", "set": {"trainer.limit_train_batches": 4}}, "from 2": TWO["from 2"]}
    assert study(arms=set_, select=SELECT) == 0, capsys.readouterr().err
    assert sum(command == "fit" for command, _ in calls) == 2 * (4 + 1), "the trial at seed 0 is one of the runs"
    found = results()
    assert [each["value"] for each in found["results"]] == [0.2] * 4
    values = [each["metrics"]["test/gap_S4"] for each in found["results"]]
    assert values == pytest.approx([gap(0.2)] * 2 + [gap(0.2, 2.0)] * 2, rel=1e-5)
    tried = {each["value"]: each["metrics"]["val/gap"] for each in found["trials"] if each["arm"] == "slow"}
    assert tried == pytest.approx({lr: gap(lr) for lr in SELECT["values"]}, rel=1e-5)
    assert "is at the end of the values tried" not in capsys.readouterr().out
    assert "| slow | 1 | 0.2 |" in Path("runs/s/table.md").read_text()


def test_the_end_of_the_values_is_the_largest_or_smallest_not_the_last_written(capsys):
    assert study(seeds=[0], select={**SELECT, "values": [0.2, 0.01, 0.05], "mode": "max"}) == 0
    assert "the best model.init_args.lr, 0.01, is at the end of the values tried" in capsys.readouterr().out
    assert study("--run_dir", "b", seeds=[0], select={**SELECT, "values": [0.01, 0.05, 0.2]}) == 0
    assert "0.2, is at the end" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the training loss of epoch 0 is not finite")
def test_a_diverged_trial_loses_and_the_study_goes_on(capsys):
    select = {**SELECT, "values": [1e30, 0.2, 0.05]}
    assert study(select=select) == 0, capsys.readouterr().err
    assert [each["value"] for each in results()["results"]] == [0.2, 0.2]
    assert "diverged" in capsys.readouterr().out


def test_a_finished_study_makes_no_run_again_and_stops_after_max_runs(calls, capsys):
    for done in (1, 2):
        assert study("--max_runs", "1", "--results_dir", "kept") == 0
        assert len(results()["results"]) == done
        assert len(calls) == 2 * done
        assert Path("kept").exists() == (done == 2), "half a study is not kept"
    stamps = {each: each.stat().st_mtime_ns for each in Path("runs/s").glob("**/*.ckpt")}
    assert study() == 0
    assert len(calls) == 4
    assert stamps
    assert all(each.stat().st_mtime_ns == stamp for each, stamp in stamps.items())
    assert study("--max_runs", "-1") == 2
    assert "max_runs must be at least 0" in capsys.readouterr().err


def test_results_are_written_after_every_run(monkeypatch):
    seen, run = [], lightning.run

    def noting(command, argv):
        if command == "fit":
            seen.append(len(results()["results"]) if Path("runs/s/results.json").exists() else None)
        return run(command, argv)

    monkeypatch.setattr(lightning, "run", noting)
    assert study(seeds=[0, 1, 2]) == 0
    assert seen == [None, 1, 2]


def test_parts_of_a_study_add_up(calls):
    assert study("--only", "from 2", "--seeds", "1", arms=TWO) == 0
    assert study("--only", "slow", arms=TWO) == 0
    assert len(calls) == 2 * 3
    assert [(each["arm"], each["seed"]) for each in results()["results"]] == [("slow", 0), ("slow", 1), ("from 2", 1)]


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(calls, capsys):
    callbacks = {"set": {"trainer.max_epochs": 2, "trainer.callbacks": [{"class_path": "test_study.Signal"}]}}
    assert study(seeds=[0], **callbacks) == 143
    assert not Path("runs/s/table.md").exists()
    assert study(seeds=[0], **callbacks) == 0, capsys.readouterr().err
    assert [command for command, _ in calls] == ["fit", "fit", "test"]
    assert calls[1][1][-2:] == ["--ckpt_path", "last"]
    (found,) = results()["results"]
    assert found["metrics"]["test/gap_S4"] == pytest.approx(gap(0.1, steps=8), rel=1e-5)
    assert found["steps"] == 4


def test_a_trial_stopped_after_its_last_step_keeps_what_it_came_to(calls, capsys):
    callbacks = {"set": {"trainer.callbacks": [{"class_path": "test_study.Signal"}]}}
    select = {**SELECT, "values": [0.2, 0.05, 0.01]}
    assert study(seeds=[0], select=select, **callbacks) == 143
    assert study(seeds=[0], select=select, **callbacks) == 0, capsys.readouterr().err
    assert [command for command, _ in calls] == ["fit", "fit", "test", "fit", "test", "fit", "test"]
    (found,) = results()["results"]
    assert found["value"] == 0.2, "the trial with nothing left to train is the best, not one that diverged"
    assert found["metrics"]["val/gap"] == pytest.approx(gap(0.2), rel=1e-5)
    assert found["metrics"]["train/loss"] > found["metrics"]["val/gap"]
    assert (found["steps"], 0 < found["seconds"] < 60) == (4, True)


def test_a_number_of_batches_stays_one_whatever_was_imported_first(monkeypatch):
    # what Optional[Union[int, float]] of Lightning's signature is, once rich has written the other order
    kinds = pl.Trainer.__init__.__wrapped__.__annotations__
    for name in ("limit_val_batches", "limit_train_batches", "val_check_interval"):
        monkeypatch.setitem(kinds, name, Union[float, int, None])  # noqa: UP007 - `|` is not what Lightning wrote
    set_ = {"trainer.limit_val_batches": 1, "trainer.limit_train_batches": 0.5, "trainer.val_check_interval": 2}
    assert study(seeds=[0], set=set_) == 0
    config = yaml.safe_load(Path("runs/s/a-line/seed-0/config.yaml").read_text())["trainer"]
    kept = config["limit_val_batches"], config["limit_train_batches"], config["val_check_interval"]
    assert [(type(each), each) for each in kept] == [(int, 1), (float, 0.5), (int, 2)]


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(30)
"""


def test_a_run_that_another_process_makes_is_passed_over_until_that_ends(calls, capsys):
    place = Path("runs/s/a-line/seed-0")
    place.mkdir(parents=True)
    (place / "checkpoints").mkdir()
    (place / "checkpoints" / "best.ckpt").write_text("of the other process")
    other = subprocess.Popen([sys.executable, "-c", HOLD, place / ".lock"], stdout=subprocess.PIPE)
    with other:
        assert other.stdout.readline() == b"held\n"
        assert study("--results_dir", "kept") == 0
        printed = capsys.readouterr().out
        assert "[1/2] a line, seed 0: another process is making it" in printed
        assert "another process is making: a line, seed 0; when it has ended, the same command goes on" in printed
        assert [command for command, _ in calls] == ["fit", "test"]
        assert [each["seed"] for each in results()["results"]] == [1]
        assert (place / "checkpoints" / "best.ckpt").read_text() == "of the other process"
        assert not Path("kept").exists(), "half a study is not kept"
        other.kill()
    assert study("--results_dir", "kept") == 0, "the lock of a killed process is none"
    assert [each["seed"] for each in results()["results"]] == [0, 1]
    assert Path("kept").exists()


def test_an_arm_waits_with_its_choice_until_every_trial_has_ended(monkeypatch, calls, capsys):
    select, stack, run = {**SELECT, "values": [0.2, 0.05, 0.01]}, contextlib.ExitStack(), lightning.run
    stack.enter_context(exclusive(Path("runs/s/a-line/0.2/seed-0")))

    def free_at_the_second_arm(command, argv):
        if any("from-2" in each for each in argv):
            stack.close()
        return run(command, argv)

    monkeypatch.setattr(lightning, "run", free_at_the_second_arm)
    arms = {"a line": {"recipe": "line.yaml"}, "from 2": TWO["from 2"]}
    assert study(arms=arms, select=select) == 0, capsys.readouterr().err
    assert sum(command == "fit" for command, _ in calls) == 2 * (3 + 1), "every run once"
    found = results()["results"]
    assert [(each["arm"], each["seed"], each["value"]) for each in found] == [
        ("a line", 0, 0.2), ("a line", 1, 0.2), ("from 2", 0, 0.2), ("from 2", 1, 0.2)
    ]  # fmt: skip


def test_a_run_that_another_process_has_just_ended_is_not_made_again(monkeypatch, calls):
    assert study(seeds=[0]) == 0
    calls.clear()
    stored, asked = study_results.stored, []

    def late(folder, run):
        asked.append(run)
        return None if len(asked) == 1 else stored(folder, run)

    monkeypatch.setattr(study_results, "stored", late)
    assert study(seeds=[0]) == 0
    assert not calls


def test_a_run_that_was_killed_before_its_test_is_only_tested(monkeypatch, calls):
    run = lightning.run

    def killed(command, argv):
        if command == "test":
            raise KeyboardInterrupt
        return run(command, argv)

    with monkeypatch.context() as patch:
        patch.setattr(lightning, "run", killed)
        assert study(seeds=[0]) == 130
    calls.clear()
    assert study(seeds=[0]) == 0
    assert [command for command, _ in calls] == ["test"]
    (found,) = results()["results"]
    assert found["steps"] == 4
    assert found["seconds"] < 60
    assert found["metrics"]["val/gap"] == pytest.approx(gap(0.1), rel=1e-5)


def test_a_run_that_was_killed_before_its_first_whole_epoch_starts_again():
    checkpoints = Path("runs/s/a-line/seed-0/checkpoints")
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.ckpt").write_bytes(b"of the validation, which comes before the end of the epoch")
    assert study(seeds=[0]) == 0
    assert len(results()["results"]) == 1


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_study_is_refused_by_its_first_difference(finished, capsys):
    assert study(seeds=[0], set={"model.init_args.lr": 0.2}) == 0
    if not finished:
        Path("runs/s/a-line/seed-0/result.json").unlink()
    assert study(seeds=[0], set={"model.init_args.lr": 0.1}) == 2
    assert "model.init_args.lr was 0.2, now 0.1" in capsys.readouterr().err
    Path("line.yaml").write_text(yaml.safe_dump({**LINE, "trainer": {**TRAINER, "max_epochs": 2}}))
    assert study(seeds=[0], set={"model.init_args.lr": 0.2}) == 2
    assert "trainer.max_epochs was 1, now 2" in capsys.readouterr().err


def test_a_metric_that_nothing_logs_is_named_with_the_nearest(capsys):
    assert study(seeds=[0], metrics=["test/gap_S4", "test/gap_S5"]) == 0
    out = capsys.readouterr().out
    assert "no run logs 'test/gap_S5'; did you mean 'test/gap_S4'?" in out
    assert study("--run_dir", "b", select={**SELECT, "metric": "val/gab"}) == 2
    assert "select.metric: no run of 'a line' logs 'val/gab'; did you mean 'val/gap'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'?"),
        ({"arms": {}}, "arms must name at least one arm"),
        ({"arms": {"a": {"recipes": "line.yaml"}}}, "arms.a must be a mapping with a recipe"),
        ({"arms": {"a": {"recipe": "line.yaml", "sett": {}}}}, "arms.a: unknown key 'sett'; did you mean 'set'?"),
        ({"arms": {"a": {"recipe": "lines.yaml"}}}, "recipe lines.yaml does not exist; did you mean 'line.yaml'?"),
        ({"arms": {"a b": {"recipe": "line.yaml"}, "a-b": {"recipe": "line.yaml"}}}, "would share a folder"),
        ({"set": {"model.init_args.l": 1}}, "'a line': model.init_args.l: unknown argument of Line; did you mean 'lr'"),
        ({"set": {"modl.lr": 1}}, "modl: unknown section; did you mean 'model'?"),
        ({"set": {"trainer.max_epochs": "two"}}, "trainer.max_epochs: expected"),
        ({"set": [1]}, "set must map dotted keys to values"),
        ({"set": {"seed_everything": 1}}, "seed_everything is not set but written as seeds"),
        ({"set": {"run_dir": "x"}}, "run_dir is not set but chosen by the study"),
        ({"set": {"trainer.max_epochs.x": 1}}, "trainer.max_epochs.x: "),
        ({"seeds": [-1]}, "seeds must be a list of different integers in [0, 2**32), got [-1]"),
        ({"select": {**SELECT, "seed": 2**32}}, "select.seed must be an integer in [0, 2**32), got 4294967296"),
        (
            {"arms": {"a": {"recipe": "digits.yaml", "set": {"model.model.class_path": 5}}}},
            "must be an import path, got 5",
        ),
        ({"seeds": [True]}, "seeds must be a list of different integers"),
        ({"seeds": [1, 1]}, "seeds must be a list of different integers"),
        ({"metrics": []}, "metrics must be a list of names"),
        ({"select": {"key": "model.lr"}}, "select must give a key and its values"),
        ({"select": {**SELECT, "metrics": 1}}, "unknown key 'metrics'; did you mean 'metric'?"),
        ({"select": {**SELECT, "mode": "best"}}, "select.mode must be 'max' or 'min'"),
        ({"select": {**SELECT, "seed": "a"}}, "select.seed must be an integer"),
        ({"select": {**SELECT, "values": [1, None]}}, "select.values must be a list of different numbers or words"),
        ({"select": {**SELECT, "values": [1, -1]}}, "would share a folder"),
        ({"select": {**SELECT, "values": [0.1, "high"]}}, "model.init_args.lr: expected float, got 'high'"),
    ],
)
def test_faults_of_the_file_are_named_before_any_run(content, words, calls, capsys):
    assert study(**content) == 2
    assert words in capsys.readouterr().err
    assert not calls
    assert not Path("runs").exists()


def test_keys_are_set_as_the_command_line_sets_them(capsys):
    recipe = {"model": {"class_path": "test_study.Line", "init_args": {"lr": 0.1}}, "trainer": None}
    keys = {"model.start": 2.0, "model.init_args.lr": 0.2, "trainer.max_epochs": 1}
    assert merged(recipe, keys) == {
        "model": {"class_path": "test_study.Line", "init_args": {"lr": 0.2, "start": 2.0}}, "trainer": {"max_epochs": 1}
    }  # fmt: skip
    assert recipe["trainer"] is None
    inner = {"class_path": "weft.models.SmallCNN", "init_args": {"widths": [4], "in_channels": 1}}
    other = merged({"model": {"model": inner}}, {"model.model.class_path": "weft.models.CifarResNet"})
    assert other["model"]["model"] == {"class_path": "weft.models.CifarResNet", "init_args": inner["init_args"]}
    other = merged({"model": {"model": inner}}, {"model.model.class_path": "weft.models.MLP"})
    assert other["model"]["model"]["init_args"] == {}, "it has neither"
    # the short form, with and without other arguments, trains what the long one does
    assert study(seeds=[0], arms=TWO, set={"model.lr": 0.2}) == 0, capsys.readouterr().err
    values = [each["metrics"]["test/gap_S4"] for each in results()["results"]]
    assert values == pytest.approx([gap(0.2), gap(0.2, 2.0)], rel=1e-5)


def test_faults_of_the_command_line_are_named(capsys):
    assert study("--only", "line") == 2
    assert "no arm is called 'line'; did you mean 'a line'?" in capsys.readouterr().err
    assert main(["study", "t.yaml"]) == 2
    assert "t.yaml does not exist; did you mean 's.yaml'?" in capsys.readouterr().err
    assert study("--seeds", "0", "-1") == 2
    assert "seeds must be in [0, 2**32), got -1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["..", ".", "../.."])
def test_every_folder_is_inside_that_of_the_study(name):
    assert study("--max_runs", "0", arms={name: {"recipe": "line.yaml"}}, seeds=[0]) == 0
    run = read(Path("s.yaml")).run(name, 0)
    assert (Path("runs/s") / run.folder).resolve().parent.parent == Path("runs/s").resolve()
