"""``weft check`` finds every fault of a recipe, says where and what is nearest, and builds nothing."""

import pytest
import torch

from weft.cli.main import main
from weft.data import sources

GOOD = """
seed_everything: 1
trainer:
  max_epochs: 2
  callbacks:
    - {class_path: lightning.pytorch.callbacks.LearningRateMonitor, init_args: {logging_interval: step}}
model:
  model:
    class_path: weft.models.SmallCNN
    init_args: {widths: [8, 8], parametrization: kronecker, options: {n: 2}}
  lr: 1e-2
data: {source: digits, batch_size: 64}
"""

FAULTS = {
    "max_epochs: 2 -> max_epoch: 2": "trainer.max_epoch: unknown argument of Trainer; did you mean 'max_epochs'?",
    "max_epochs: 2 -> max_epochs: two": "trainer.max_epochs: expected int, null, got 'two'",
    "trainer: -> trainr:": "trainr: unknown section; did you mean 'trainer'?",
    "seed_everything: 1 -> seed_everything: one": "seed_everything: expected bool, int, got 'one'",
    "LearningRateMonitor -> LearningRateMonitr": "trainer.callbacks[0].class_path: 'lightning.pytorch.callbacks' "
    "has no 'LearningRateMonitr'; did you mean 'LearningRateMonitor'?",
    "logging_interval -> logging_intervall": "trainer.callbacks[0].init_args.logging_intervall: unknown argument of "
    "LearningRateMonitor; did you mean 'logging_interval'?",
    "weft.models -> weft.modles": "model.model.class_path: there is no module 'weft.modles'",
    "init_args: {widths -> init_arg: {widths": "model.model.init_arg: unknown key; did you mean 'init_args'?",
    "widths -> width": "model.model.init_args.width: unknown argument of SmallCNN; did you mean 'widths'?",
    "[8, 8] -> [8, wide]": "model.model.init_args.widths: expected int, got 'wide' in [8, 'wide']",
    "lr: 1e-2 -> model: null": "key 'model' is written twice",
    "parametrization: kronecker -> parametrization: kroneker": "got 'kroneker'; did you mean 'kronecker'?",
    "{n: 2} -> {m: 2}": "family 'kronecker' has no option 'm' (it takes: n, algebra, rank, weight_init)",
    "{n: 2} -> {n: two}": "model.model.init_args.options.n: expected int, null, got 'two'",
    "{n: 2} -> {share: 0.5}": "options.share: family 'kronecker' is not sized by share, but by 'n'",
    "kronecker, options: {n: 2} -> low_rank, options: {share: 1.5}": "options.share: must be in (0, 1], got 1.5",
    "lr: 1e-2 -> lr: fast": "model.lr: expected float, got 'fast'",
    "lr: 1e-2 -> optimizer: sdg": "model.optimizer: expected one of ['sgd', 'adam', 'adamw'], got 'sdg'; did you "
    "mean 'sgd'?",
    "lr: 1e-2 -> {lr: 1": "line ",
    "seed_everything: 1 -> seed_everything: -1": "seed_everything: must be in [0, 2**32), got -1",
    "seed_everything: 1 -> seed_everything: 4294967296": "seed_everything: must be in [0, 2**32), got 4294967296",
    "{source: digits, batch_size: 64} -> null": "data: must hold the arguments of ImageData, got None; give them, or",
    "{source: digits, batch_size: 64} -> &a {source: digits, augmentations: [*a]}": "an anchor (&NAME) is used (*NAME) "
    "inside of what it stands for",
    "batch_size: 64 -> batch_size: 64, batch_size: 32": "key 'batch_size' is written twice",
    "{source: digits, batch_size: 64} -> {class_path: torch.nn.Identity}": "data: expected LightningDataModule",
}


def write(folder, text, name="recipe.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_good_recipe_passes_and_nothing_is_built(capsys, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was built")

    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    monkeypatch.setattr(sources, "load", refuse)
    path = write(tmp_path, GOOD)
    assert main(["check", path]) == 0
    assert capsys.readouterr().out == f"{path}: good\n"


@pytest.mark.parametrize("change", FAULTS)
def test_fault_is_found_and_named(capsys, tmp_path, change):
    before, after = change.split(" -> ")
    assert before in GOOD
    path = write(tmp_path, GOOD.replace(before, after))
    assert main(["check", path]) == 2
    printed = capsys.readouterr().err
    assert FAULTS[change] in printed
    assert printed.startswith(f"{path}: 1 fault\n"), printed


def test_all_faults_of_all_recipes_are_told_at_once(capsys, tmp_path):
    first = write(
        tmp_path, GOOD.replace("max_epochs", "max_epoch").replace("1e-2", "fast").replace("n: 2", "m: 2"), "a.yaml"
    )
    second, third = write(tmp_path, GOOD, "b.yaml"), write(tmp_path, "- a list", "c.yaml")
    assert main(["check", first, second, third, str(tmp_path / "d.yaml")]) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{second}: good\n"
    assert (
        f"{first}: 3 faults" in printed.err and f"{third}: 1 fault" in printed.err and "does not exist" in printed.err
    )


def test_family_of_a_layer_is_checked_where_its_options_are_keywords(capsys, tmp_path):
    init = "{in_features: 64, out_features: 10, parametrization: low_rank}"
    layer = f"{{class_path: weft.Linear, init_args: {init}, dict_kwargs: {{rnk: 2}}}}"
    path = write(tmp_path, f"model: {{model: {layer}}}")
    assert main(["check", path]) == 2
    assert "family 'low_rank' has no option 'rnk'" in capsys.readouterr().err
    assert main(["check", write(tmp_path, f"model: {{model: {layer.replace('rnk', 'rank')}}}")]) == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "lightning.pytorch.callbacks.Timer",
            "model.model: Import path lightning.pytorch.callbacks.Timer does not correspond to",
        ),
        ("torch.nn.Bilinear", "model.model.init_args.in1_features: missing; Bilinear needs it"),
        ("torch.nn.init", "model.model.class_path: 'torch.nn.init' is neither a class nor a function"),
    ],
)
def test_class_that_cannot_stand_there_is_refused(capsys, tmp_path, model, message):
    assert main(["check", write(tmp_path, f"model: {{model: {{class_path: {model}}}}}")]) == 2
    assert message in capsys.readouterr().err
