"""Training of superposed networks: penalties, dynamic mode, filter, statistics, checkpoints."""

import math

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weft
from weft.data import ImageData
from weft.errors import OptionError, SizeError
from weft.models import SmallCNN, mimonet
from weft.superposition import isometry_penalty
from weft.train import SuperposedClassifier


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", **{"max_epochs": 1, "limit_val_batches": 1, **quiet, **options})


def network(num_inputs=2, **options):
    return mimonet(10, 0.5, 1, num_inputs=num_inputs, in_channels=1, **options)


def fit(module, data=None, **options):
    pl.seed_everything(0, verbose=False)
    run = trainer(**options)
    run.fit(module, datamodule=data or ImageData("digits", batch_size=32))
    return run


class Watch(pl.Callback):
    """Notes weights and buffers before and after every step, and which S was used."""

    def __init__(self):
        self.before, self.after, self.used = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batch = batch
        self.before.append({k: v.clone() for k, v in module.model.state_dict().items()})
        self.seen = module.net.trunk[0].branch[0].num_batches_tracked.clone()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.after.append({k: v.clone() for k, v in module.model.state_dict().items()})
        norm = module.net.trunk[0].branch[0]
        self.used.append([s for s, n, b in zip(norm.capacities, norm.num_batches_tracked, self.seen) if n > b])  # noqa: B905


def test_one_step_is_the_gradient_of_the_whole_loss():
    torch.manual_seed(3)
    net = network().double()
    with torch.no_grad():
        net.binding.vectors.mul_(1.3)  # so that the penalty pulls
    module = SuperposedClassifier(
        net,
        lr=0.05,
        momentum=0,
        weight_decay=0,
        schedule="constant",
        orthogonal_regularization=0.01,
        binding_regularization=0.3,
    )
    watch = Watch()
    data = ImageData("digits", batch_size=16)
    fit(module, data, max_steps=1, precision="64-true", callbacks=[watch])
    copy = network().double()
    copy.load_state_dict(watch.before[0])
    images, labels = watch.batch
    loss = F.cross_entropy(copy.train()(images.double()), labels)
    loss = loss + 0.3 * copy.binding.penalty() + 0.01 * isometry_penalty(copy.trunk)
    loss.backward()
    for name, parameter in copy.named_parameters():
        torch.testing.assert_close(watch.after[0][name], (parameter - 0.05 * parameter.grad).detach(), msg=name)


def test_dynamic_mode_draws_s_per_batch_and_validates_both():
    watch = Watch()
    module = SuperposedClassifier(network(), sup_low=1, sup_frequency=0.7)
    run = fit(module, callbacks=[watch], max_epochs=2)
    share = sum(used == [2] for used in watch.used) / len(watch.used)
    assert all(used in ([1], [2]) for used in watch.used)
    assert 0.5 < share < 0.9
    assert module.net.num_superposed == 2
    metrics = run.callback_metrics
    assert {"val/acc", "val/acc_S1", "val/acc_S2"} <= metrics.keys()
    assert metrics["val/acc"] == metrics["val/acc_S2"]


def test_scalars_of_the_log():
    run = fit(SuperposedClassifier(network(skip_init=True), sup_low=1, sup_frequency=0.5), max_epochs=2)
    names = {
        "GradientNormIsometryRegularization",
        "GradientNormTotal",
        "GradientNonfiniteFraction",
        "GradientRejectedFraction",
        "AbsoluteAlpha",
        "AverageReLUParam",
        "VarianceReLUParam",
        "LearningRate",
        "Binding_Regularization",
        "Isometry_Regularization",
    }
    assert names <= run.callback_metrics.keys()
    assert all(torch.isfinite(run.callback_metrics[name]) for name in names)
    assert run.callback_metrics["GradientNormTotal"] > run.callback_metrics["GradientNormIsometryRegularization"] > 0


class Blow(pl.Callback):
    """Makes the gradient of one step huge, or not a number."""

    def __init__(self, step, factor):
        self.step, self.factor = step, factor

    def on_after_backward(self, trainer, module):
        if trainer.global_step == self.step:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.factor)


@pytest.mark.parametrize(("factor", "step"), [(math.nan, 3), (1e2, 47)])
def test_filter_skips_a_bad_step_and_sets_the_batch_norms_back(factor, step):
    watch = Watch()
    module = SuperposedClassifier(network(), gradient_filter=10.0, mixup_alpha=0.0)
    run = fit(module, callbacks=[watch, Blow(step, factor)], max_steps=step + 2, max_epochs=3)
    for number, (before, after) in enumerate(zip(watch.before, watch.after, strict=True)):
        same = [torch.equal(before[name], after[name]) for name in before]
        assert all(same) == (number == step), number
    assert run.callback_metrics["GradientRejectedFraction"] > 0
    assert (run.callback_metrics["GradientNonfiniteFraction"] > 0) == math.isnan(factor)


def test_a_skipped_step_of_several_batches_sets_back_all_of_them():
    watch = Watch()
    module = SuperposedClassifier(network(), mixup_alpha=0.0, schedule="constant")
    module._filter.previous = 1e-12  # refuses whatever comes
    fit(module, callbacks=[watch], accumulate_grad_batches=3, max_steps=2)
    last = watch.after[5]
    assert all(torch.equal(last[name], value) for name, value in watch.before[0].items())
    assert not all(torch.equal(watch.after[1][name], value) for name, value in watch.before[0].items())


def test_filter_off_lets_large_steps_pass():
    watch = Watch()
    fit(SuperposedClassifier(network(), gradient_filter=None), callbacks=[watch, Blow(2, 1e2)], max_steps=3)
    assert not torch.equal(watch.before[2]["head.weight"], watch.after[2]["head.weight"])


def test_threshold_is_in_the_checkpoint(tmp_path):
    module = SuperposedClassifier(network())
    run = fit(module)
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert 0 < module._filter.previous < math.inf
    again = SuperposedClassifier(network())
    resumed = trainer(max_epochs=1)
    resumed.fit(again, datamodule=ImageData("digits", batch_size=32), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert again._filter.previous == module._filter.previous


def test_testing_calibrates_an_s_that_was_not_trained_with(tmp_path):
    data = ImageData("digits", batch_size=64)
    module = SuperposedClassifier(network(4), sup_low=1, sup_frequency=0.5, evaluate_at=[2], calibration_batches=3)
    run = fit(module, data)
    assert module.net.uncalibrated() == [2]
    weights = {n: p.clone() for n, p in module.net.named_parameters()}
    run.save_checkpoint(tmp_path / "a.ckpt")  # it says that the loader has served the whole epoch
    again = ImageData("digits", batch_size=64)
    result = trainer().test(module, datamodule=again, ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False)[
        0
    ]
    assert {"test/acc", "test/acc_S1", "test/acc_S2", "test/acc_S4"} <= result.keys()
    assert module.net.uncalibrated() == []
    assert module.net.trunk[0].branch[0].num_batches_tracked[1] == 3
    assert all(torch.equal(weights[n], p) for n, p in module.net.named_parameters())


def test_accuracy_is_that_of_the_network_at_each_s():
    data = ImageData("digits", batch_size=32, eval_batch_size=500)
    module = SuperposedClassifier(network(), sup_low=1, sup_frequency=0.5)
    run = fit(module, data)
    result = run.test(module, datamodule=data, verbose=False)[0]
    images, labels = next(iter(data.test_dataloader()))
    for s in (1, 2):
        guesses = module.net.eval()(data.normalise(images), num_superposed=s).argmax(1)
        assert result[f"test/acc_S{s}"] == pytest.approx((guesses == labels).float().mean().item(), abs=1e-6)


def test_transfer_takes_what_matches(tmp_path):
    source = network()
    torch.save(source.state_dict(), tmp_path / "bare.pt")
    torch.save({"state_dict": {f"model.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "lightning.ckpt")
    target = SuperposedClassifier(
        mimonet(10, 0.5, 1, num_inputs=4, in_channels=1), transfer_from=str(tmp_path / "lightning.ckpt")
    )
    weft.train.superposed.transfer(target, tmp_path / "lightning.ckpt")
    assert torch.equal(target.net.trunk[0].branch[2].weight, source.trunk[0].branch[2].weight)
    assert target.net.unbinding.weight.shape != source.unbinding.weight.shape
    with pytest.raises(OptionError, match="no tensor has the name"):
        weft.train.superposed.transfer(nn.Linear(2, 2), tmp_path / "bare.pt")
    with pytest.raises(OptionError, match="there is no checkpoint"):
        weft.train.superposed.transfer(target, tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello world")
    with pytest.raises(OptionError, match="cannot be read"):
        weft.train.superposed.transfer(target, tmp_path / "text.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(OptionError, match="no tensor has the name"):
        weft.train.superposed.transfer(target, tmp_path / "list.pt")
    fit(target, max_steps=1)


def test_passes_keep_the_number_of_updates():
    for inputs in (1, 2):
        run = fit(SuperposedClassifier(network(inputs)), ImageData("digits", batch_size=40 * inputs, passes=inputs))
        assert run.global_step == inputs * (1293 // (40 * inputs))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sup_low": 3}, SizeError, "must divide num_inputs=4"),
        ({"evaluate_at": [3]}, SizeError, "must divide num_inputs=4"),
        ({"sup_frequency": 1.5}, OptionError, r"sup_frequency must be in \[0, 1\]"),
        ({"binding_regularization": -1}, OptionError, "binding_regularization must be at least 0"),
        ({"orthogonal_regularization": math.inf}, OptionError, "orthogonal_regularization must be"),
        ({"gradient_filter": 0}, OptionError, "gradient_filter must be above 0"),
        ({"calibration_batches": 0}, OptionError, "calibration_batches must be at least 1"),
    ],
)
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        SuperposedClassifier(network(4), **options)


def test_a_plain_network_is_refused():
    with pytest.raises(OptionError, match=r"model must be a weft\.MIMO network, got SmallCNN"):
        SuperposedClassifier(SmallCNN((8, 8)))
