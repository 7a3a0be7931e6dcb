"""A run that is interrupted and resumed ends with the very numbers of one that was not."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from weft.data import ImageData
from weft.errors import OptionError
from weft.models import SmallCNN
from weft.train import Classifier

EPOCHS, STEPS = 3, 4


class Interrupt(pl.Callback):
    """Breaks a run off after a number of steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.steps:
            raise InterruptedError


def run(folder, seed, *, steps=None, resume=None, every=None, epochs=EPOCHS, data_options=None, **options):
    pl.seed_everything(seed, verbose=False)
    data = ImageData("digits", batch_size=323, **(data_options or {}))  # four steps an epoch
    model = SmallCNN((8, 8), parametrization="kronecker", options={"n": 4})
    model.head = nn.Sequential(nn.Dropout(0.3), model.head)
    module = Classifier(model, **options)
    last = ModelCheckpoint(folder, "last", enable_version_counter=False, every_n_train_steps=every)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[last, *([Interrupt(steps)] if steps is not None else [])],
        logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=2,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    except InterruptedError:
        assert steps is not None
        return None
    assert steps is None
    assert trainer.global_step == epochs * STEPS
    return {name: value.clone() for name, value in module.state_dict().items()}


CASES = {
    "random_everything": {"mixup_alpha": 0.4, "data_options": {"crop_padding": 1, "flip": True}},
    "adamw_cosine": {"optimizer": "adamw", "lr": 1e-2, "schedule": "cosine"},
    "average": {"ema_decay": 0.7, "mixup_alpha": 0.4},
}


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty", "ignore:.*resuming from a checkpoint that ended"
)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("every", "steps"), [(None, STEPS), (None, 2 * STEPS + 1), (3, 2 * STEPS + 2), (STEPS, STEPS + 1)]
)
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, name, every, steps):
    options = CASES[name]
    whole = run(tmp_path / "whole", 1, every=every, **options)
    run(tmp_path / "parts", 1, steps=steps, every=every, **options)
    # the second process has another seed: everything must come from the checkpoint
    resumed = run(tmp_path / "parts", 2, resume=tmp_path / "parts" / "last.ckpt", every=every, **options)
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    assert not all(
        torch.equal(value, other)
        for value, other in zip(whole.values(), run(tmp_path / "b", 2, **options).values(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_resuming_into_another_length_is_refused(tmp_path):
    run(tmp_path, 1, schedule="cosine")
    with pytest.raises(OptionError, match="was to take 12 steps, this one takes 20"):
        run(tmp_path, 1, schedule="cosine", epochs=5, resume=tmp_path / "last.ckpt")


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_constant_schedule_may_go_on_for_longer(tmp_path):
    run(tmp_path, 1, schedule="constant")
    assert run(tmp_path, 1, schedule="constant", epochs=5, resume=tmp_path / "last.ckpt") is not None


def test_checkpoint_holds_tensors_and_numbers_only(tmp_path):
    run(tmp_path, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["weft"]["steps"] == EPOCHS * STEPS


def test_checkpoint_brings_back_settings_and_weights(tmp_path):
    weights = run(tmp_path, 1, optimizer="adamw", lr=0.02, betas=(0.5, 0.9))
    model = SmallCNN((8, 8), parametrization="kronecker", options={"n": 4})
    model.head = nn.Sequential(nn.Dropout(0.3), model.head)
    module = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", model=model)
    assert (module.hparams.optimizer, module.hparams.lr, module.hparams.betas) == ("adamw", 0.02, (0.5, 0.9))
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
