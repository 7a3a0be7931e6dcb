"""``weft fit`` and its kin: what a run leaves, how it is stopped and resumed, and what is refused before any work."""

import csv
import io
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from weft.cli.main import main
from weft.data import ImageData
from weft.models import SmallCNN
from weft.train import Classifier

RECIPE = """
seed_everything: 1
trainer:
  {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false, log_every_n_steps: 1}
model:
  model:
    class_path: weft.models.SmallCNN
    init_args: {widths: [8, 8], parametrization: kronecker, options: {n: 2}}
  mixup_alpha: 0.2
data: {source: digits, batch_size: 160, crop_padding: 1}
"""  # eight steps an epoch, random numbers in every step


class Signal(Callback):
    """Sends the process a signal after a training step, or in the validation that follows it.

    Args:
        step: number of the step.
        signum: the signal.
        validating: in the validation.
    """

    def __init__(self, step: int, signum: int, validating: bool = False) -> None:
        self.step, self.signum, self.validating = step, signum, validating

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.validating:
            os.kill(os.getpid(), self.signum)

    def on_validation_batch_start(self, trainer, *_):
        if trainer.global_step == self.step and self.validating:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder with one recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def fit(run_dir, *more):
    return main(["fit", "--config", "tiny.yaml", "--run_dir", str(run_dir), *more])


def stopped(step, signum, validating=False):
    """Arguments that stop a run after a step."""
    init = {"step": step, "signum": int(signum), "validating": str(validating).lower()}
    given = [f"--trainer.callbacks.init_args.{name}={value}" for name, value in init.items()]
    return ["--trainer.callbacks+=test_fit.Signal", *given]


def last(run_dir):
    return torch.load(Path(run_dir) / "checkpoints" / "last.ckpt", weights_only=True)


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def curve(run_dir, name):
    """A metric by epoch, over all starts of a run."""
    tables = sorted(Path(run_dir).glob("logs/*/metrics.csv"))
    rows = [row for table in tables for row in rows_of(table)]
    return {row["epoch"]: row[name] for row in rows if row.get(name)}


def everything(path):
    return {file: file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


def test_run_leaves_a_whole_folder_and_is_never_overwritten(capsys):
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    run = Path("runs/tiny")
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (run / "config.yaml").is_file() and any((run / "logs/version_0").glob("events.*"))
    assert curve(run, "val/acc").keys() == curve(run, "train/loss").keys() == {"0", "1"}
    before = everything(run)
    assert main(["fit", "--config", "tiny.yaml"]) == 2
    assert "runs/tiny already holds a run: resume it with --ckpt_path last, or" in capsys.readouterr().err
    assert everything(run) == before


def test_start_with_nothing_left_to_train_tells_what_the_run_came_to():
    assert fit("run") == 0
    assert fit("run", "--ckpt_path", "last") == 0
    first, second = (json.loads(Path(f"run/{name}").read_text(encoding="utf-8")) for name in ("fit.json", "fit.2.json"))
    assert second["metrics"] == first["metrics"] and first["metrics"].keys() >= {"train/loss", "val/acc"}
    assert first["steps"] == second["steps"] == 16
    assert 0 < second["seconds"] <= first["seconds"] < 60
    assert fit("none", "--trainer.max_epochs=0") == 0
    none = json.loads(Path("none/fit.json").read_text(encoding="utf-8"))
    assert (none["metrics"], none["steps"]) == ({}, 0) and none["seconds"] < 1


def test_trial_of_the_code_leaves_nothing(capsys):
    assert fit("run", "--trainer.fast_dev_run=true") == 0, capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_algebra_penalty_and_residual_gates_are_options_of_a_run():
    assert fit("plain") == 0
    assert fit("sparse", "--model.algebra_l1=0.05") == 0
    assert not curve("plain", "train/penalty")
    assert curve("sparse", "train/penalty").keys() == {"0", "1"}
    sizes = [
        sum(float(weight.abs().sum()) for name, weight in last(run)["state_dict"].items() if name.endswith("mixing"))
        for run in ("plain", "sparse")
    ]
    assert sizes[1] < 0.9 * sizes[0]
    text = Path("tiny.yaml").read_text(encoding="utf-8").replace("SmallCNN", "CifarResNet")
    Path("tiny.yaml").write_text(text.replace("widths: [8, 8]", "depth: 8, widths: [4, 4, 4]"), encoding="utf-8")
    gate = ["--model.model.init_args.in_channels=1", "--model.model.init_args.residual_gate=true"]
    assert fit("gated", *gate) == 0
    assert sum(name.endswith("alpha") for name in last("gated")["state_dict"]) == 3


@pytest.mark.parametrize(
    ("step", "signum", "validating", "code"),
    [
        (3, signal.SIGINT, False, 130), (11, signal.SIGTERM, False, 143), (8, signal.SIGTERM, False, 143),
        (8, signal.SIGINT, True, 130),
    ],
    ids=["ctrl_c_in_first_epoch", "sigterm_in_second_epoch", "sigterm_before_validation", "ctrl_c_in_validation"],
)  # fmt: skip
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(capsys, step, signum, validating, code):
    assert fit("whole") == 0
    assert fit("parts", *stopped(step, signum, validating)) == code
    assert "--ckpt_path last" in capsys.readouterr().err
    assert step <= last("parts")["global_step"] <= step + 1
    assert fit("parts", "--ckpt_path", "last") == 0
    whole, parts = last("whole"), last("parts")
    assert whole["global_step"] == parts["global_step"] == 16
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, parts["state_dict"][name]), name
    assert curve("parts", "val/acc") == curve("whole", "val/acc")
    assert {path.name for path in Path("parts").glob("config*")} == {"config.yaml", "config.2.yaml"}


def test_killed_run_goes_on_from_the_last_checkpoint():
    command = [sys.executable, "-m", "weft", "fit", "--config", "tiny.yaml", "--run_dir", "killed"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    more = ["--checkpoint_every_n_steps=3", *stopped(11, signal.SIGKILL)]
    done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert last("killed")["global_step"] == 9
    assert fit("killed", "--ckpt_path=last", "--checkpoint_every_n_steps=3") == 0
    assert fit("whole", "--checkpoint_every_n_steps=3") == 0
    for name, weight in last("whole")["state_dict"].items():
        assert torch.equal(weight, last("killed")["state_dict"][name]), name


def test_test_and_predict_use_the_best_checkpoint_and_agree(capsys):
    assert fit("run") == 0
    for _ in range(2):
        assert main(["test", "--config", "tiny.yaml", "--run_dir", "run"]) == 0
    (metrics,) = json.loads(Path("run/test.json").read_text(encoding="utf-8"))
    assert Path("run/test.2.json").read_text(encoding="utf-8") == Path("run/test.json").read_text(encoding="utf-8")
    assert main(["predict", "--config", "tiny.yaml", "--run_dir", "run"]) == 0
    rows = rows_of(Path("run/predictions.csv"))
    labels = torch.cat([labels for _, labels in ImageData("digits").test_dataloader()]).tolist()
    hits = [int(row["class"]) == label for row, label in zip(rows, labels, strict=True)]
    assert sum(hits) / len(hits) == pytest.approx(metrics["test/acc"])
    network = SmallCNN((8, 8), parametrization="kronecker", options={"n": 2})
    loaded = Classifier.load_from_checkpoint("run/checkpoints/best.ckpt", model=network, weights_only=True)
    assert loaded.hparams.mixup_alpha == 0.2
    assert all(max(range(10), key=lambda c: float(row[f"output_{c}"])) == int(row["class"]) for row in rows[:50])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_epoch", "3"], "unknown argument --trainer.max_epoch; did you mean '--trainer.max_epochs'?"),
        (["--model.lr", "fast"], "model.lr: expected float, got 'fast'"),
        (["--model.model.init_args.width", "[8]"], "unknown argument 'width' of weft.models.SmallCNN; did you mean 'w"),
        (["--model.model.class_path", "weft.models.SmalCNN"], "has no 'SmalCNN'; did you mean 'SmallCNN'?"),
        (["--model.model.init_args.options.n", "3"], "3 does not divide 8"),
        (["--model.model.init_args.options={n: x}"], "model.model.init_args.options.n: expected int, null, got 'x'"),
        (["--seed_everything=-1"], "seed_everything must be in [0, 2**32), got -1"),
        (["--model.optimizer=adamw", "--model.betas=[2,2]"], "betas must be two numbers in [0, 1), got (2.0, 2.0)"),
        (["--data.source", "nowhere"], "source='nowhere' was not found"),
        (["--checkpoint_every_n_steps", "0"], "checkpoint_every_n_steps must be at least 1, got 0"),
        (["--ckpt_path", "last"], "ckpt_path last: there is no checkpoint runs/tiny/checkpoints/last.ckpt"),
        (["--ckpt_path", "other.ckpt"], "ckpt_path other.ckpt: there is no checkpoint other.ckpt"),
        (["--config", "tinny.yaml"], "recipe tinny.yaml does not exist; did you mean 'tiny.yaml'?"),
    ],
)  # fmt: skip
def test_mistake_is_told_in_one_line_and_nothing_is_written(capsys, arguments, message):
    assert main(["fit", "--config", "tiny.yaml", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("weft: ") and printed.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_all_faults_of_a_recipe_are_told_before_any_work(capsys):
    Path("tiny.yaml").write_text(
        RECIPE.replace("max_epochs", "max_epoch").replace("batch_size", "batchsize"), encoding="utf-8"
    )
    assert main(["fit", "--config", "tiny.yaml"]) == 2
    printed = capsys.readouterr().err
    assert "did you mean 'max_epochs'?" in printed and "did you mean 'batch_size'?" in printed
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_predicting_nothing_is_refused(good, capsys):
    assert main(["predict", "--config", "tiny.yaml", "--run_dir", "good", "--trainer.limit_predict_batches=0"]) == 2
    assert "there was nothing to predict" in capsys.readouterr().err


def test_checkpoint_of_another_optimizer_is_refused(capsys):
    same = ["--model.schedule=constant", "--trainer.limit_val_batches=0"]
    assert fit("run", *same, "--trainer.max_steps=1") == 0
    assert fit("run", *same, "--trainer.max_steps=2", "--ckpt_path=last", "--model.optimizer=adamw") == 2
    assert "does not fit the model or its optimizer" in capsys.readouterr().err


def test_testing_an_untrained_recipe_is_refused(capsys):
    assert main(["test", "--config", "tiny.yaml"]) == 2
    assert "there is no checkpoint runs/tiny/checkpoints/last.ckpt" in capsys.readouterr().err


class Bomb:
    """Leaves a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("exploded").absolute(),)


@pytest.fixture
def good(folder):
    """A checkpoint of one step."""
    assert fit("good", "--trainer.max_steps=1", "--trainer.limit_val_batches=0") == 0
    return torch.load(folder / "good" / "checkpoints" / "last.ckpt", weights_only=True)


def test_file_that_is_no_whole_checkpoint_of_this_model_is_refused(good, capsys):
    whole, state = Path("good/checkpoints/last.ckpt").read_bytes(), good["state_dict"]
    name = "model.features.1.parametrization.blocks"
    files = {
        "cut": (whole[: len(whole) // 2], "cut.ckpt cannot be read"), "empty": (b"", "empty.ckpt cannot be read"),
        "text": (b"hello world", "text.ckpt cannot be read"),
        "list": ([1], "holds a list, not a checkpoint"), "tensor": (torch.ones(2), "holds a Tensor, not a checkpoint"),
        "weights": (state, "it lacks pytorch-lightning_version, state_dict"),
        "lacks": ({**good, "state_dict": {key: state[key] for key in state if key != name}},
                  f'Missing key(s) in state_dict: "{name}"'),
        "other": ({**good, "state_dict": {**state, name: state[name][:1]}}, f"size mismatch for {name}"),
    }  # fmt: skip
    capsys.readouterr()
    for kind, (content, message) in files.items():
        path = Path(f"{kind}.ckpt")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        for command in ("test", "fit"):
            assert main([command, "--config", "tiny.yaml", "--run_dir", "new", "--ckpt_path", str(path)]) == 2
            printed = capsys.readouterr().err
            assert printed.startswith("weft: ") and printed.count("\n") == 1, (kind, command, printed)
            assert message in printed, (kind, command)
    torch.save({key: good[key] for key in good if key != "optimizer_states"}, "weights.ckpt")
    assert fit("new2", "--ckpt_path", "weights.ckpt") == 2
    assert "it lacks optimizer_states" in capsys.readouterr().err
    assert not Path("new2").exists()


def test_checkpoint_that_would_run_code_is_refused(capsys):
    torch.save({"state_dict": Bomb()}, "foreign.ckpt", pickle_module=pickle)
    assert main(["test", "--config", "tiny.yaml", "--ckpt_path", "foreign.ckpt"]) == 2
    assert "could run code" in capsys.readouterr().err
    assert not Path("exploded").exists()
