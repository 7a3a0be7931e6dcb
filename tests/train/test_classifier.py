import math
import re

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weft
from weft.data import ImageData
from weft.errors import OptionError
from weft.models import SmallCNN
from weft.train import Classifier

PHC = {"parametrization": "kronecker", "options": {"n": 4}}


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", **{"max_epochs": 1, **quiet, **options})


def network(**options):
    return SmallCNN((8, 8), **{**PHC, **options})


def whole(loader, data):
    images, labels = zip(*loader, strict=True)
    return data.normalise(torch.cat(images)), torch.cat(labels)


def fit(module=None, data=None, **options):
    pl.seed_everything(0, verbose=False)
    module = module or Classifier(network())
    run = trainer(**options)
    run.fit(module, datamodule=data or ImageData("digits"))
    return module, run


class Steps(pl.Callback):
    """Notes what the optimizer has after every step."""

    def __init__(self):
        self.rates, self.weights = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append({name: p.detach().clone() for name, p in module.model.named_parameters()})


# ---------------------------------------------------------------------- metrics


def test_reported_losses_and_accuracies_are_means_over_all_samples():
    data = ImageData("digits", batch_size=100, eval_batch_size=23)  # batches of unequal size, of 144 and 360 images
    module, run = fit(data=data, max_epochs=2)
    run.test(module, datamodule=data, verbose=False)
    module.eval()
    for stage, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        inputs, labels = whole(loader, data)
        with torch.no_grad():
            scores = module(inputs)
        metrics = (run.validate if stage == "val" else run.test)(module, datamodule=data, verbose=False)[0]
        assert metrics[f"{stage}/loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)
        assert metrics[f"{stage}/acc"] == pytest.approx((scores.argmax(1) == labels).double().mean().item(), rel=1e-6)


def test_training_loss_is_the_smoothed_mean_over_the_epoch():
    data = ImageData("digits", batch_size=160, val_share=0)
    # no batch norm, and a step too small to see: the epoch's mean is that of one fixed network
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module, run = fit(Classifier(model, lr=1e-12, schedule="constant", label_smoothing=0.3), data, limit_val_batches=0)
    pl.seed_everything(0, verbose=False)
    inputs, labels = whole(ImageData("digits", batch_size=160, val_share=0).train_dataloader(), data)
    assert len(labels) == 8 * 160
    targets = 0.7 * F.one_hot(labels, 10) + 0.03
    scores = module(inputs)
    expected = -(targets * scores.log_softmax(1)).sum(1).mean()
    assert run.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    accuracy = (scores.argmax(1) == labels).float().mean().item()
    assert run.callback_metrics["train/acc"].item() == pytest.approx(accuracy, rel=1e-5)


def test_mixup_loss_is_that_of_mixed_images_and_mixed_targets():
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), mixup_alpha=0.5, label_smoothing=0.1)
    module.log = lambda *_, **__: None
    inputs, labels = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
    torch.manual_seed(1)
    loss = module.training_step((inputs, labels), 0)
    torch.manual_seed(1)
    share = torch.distributions.Beta(torch.tensor(0.5), torch.tensor(0.5)).sample()
    partner = torch.randperm(32)
    assert 0.1 < share < 0.9
    mixed = share * inputs + (1 - share) * inputs[partner]
    targets = share * F.one_hot(labels, 10) + (1 - share) * F.one_hot(labels[partner], 10)
    expected = -((0.9 * targets + 0.01) * module(mixed).log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def one_step(**options):
    """Gradients of one training step in float64, what it returned and what it logged."""
    torch.manual_seed(0)
    module = Classifier(nn.Sequential(nn.Flatten(), weft.PHMLinear(64, 12, n=4), nn.ReLU(), weft.PHMLinear(12, 4, n=2)),
                        **options).double()  # fmt: skip
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    loss = module.training_step((torch.randn(32, 1, 8, 8, dtype=torch.float64), torch.randint(4, (32,))), 0)
    loss.backward()
    return module, loss.item(), logged


def test_algebra_penalty_adds_its_sign_to_the_gradient_of_the_algebras_only():
    (plain, loss, quiet), (module, total, logged) = one_step(), one_step(algebra_l1=0.03)
    mixings = [p.detach() for name, p in module.named_parameters() if name.endswith("mixing")]
    assert len(mixings) == 2
    assert total == pytest.approx(loss + 0.03 * sum(float(a.abs().sum()) for a in mixings), rel=1e-12)
    for (name, before), after in zip(plain.named_parameters(), module.parameters(), strict=True):
        pull = 0.03 * after.detach().sign() if name.endswith("mixing") else 0.0
        torch.testing.assert_close(after.grad, before.grad + pull, rtol=0, atol=1e-14)
    assert logged["loss"].item() == quiet["loss"].item() == pytest.approx(loss), "the logged loss is that of the task"
    assert set(logged) - set(quiet) == {"train/penalty"}
    assert logged["train/penalty"].item() == pytest.approx(total - loss, rel=1e-9)


def test_no_algebra_penalty_costs_nothing(monkeypatch):
    def fails(*_):
        raise AssertionError("the penalty is computed")

    monkeypatch.setattr(weft, "algebra_penalty", fails)
    one_step()
    one_step(algebra_l1=0)
    with pytest.raises(AssertionError, match="is computed"):
        one_step(algebra_l1=1e-3)


def test_penalty_is_logged_once_an_epoch_and_shrinks_the_algebras():
    data = ImageData("digits", batch_size=160)
    sizes = {}
    for weight in (0.0, 0.1):
        module, run = fit(Classifier(network(), algebra_l1=weight), data, max_epochs=2)
        sizes[weight] = weft.algebra_penalty(module.model, 1.0).item()
        assert ("train/penalty" in run.callback_metrics) == (weight > 0)
    assert sizes[0.1] < 0.8 * sizes[0.0]
    assert run.callback_metrics["train/penalty"].item() > 0.1 * sizes[0.1], "a mean over the steps, in which it shrinks"


def test_predictions_are_probabilities_of_the_test_set_in_order():
    data = ImageData("digits", eval_batch_size=77)
    module, run = fit(data=data)
    probabilities = torch.cat(run.predict(module, datamodule=data))
    inputs, _ = whole(data.test_dataloader(), data)
    module.eval()
    with torch.no_grad():
        assert torch.allclose(probabilities, module(inputs).softmax(1), atol=1e-6)
    assert torch.allclose(module.predict_step(inputs[:3], 0), probabilities[:3], atol=1e-6)


def test_it_learns_the_digits():
    data = ImageData("digits", batch_size=64)
    module, run = fit(Classifier(SmallCNN((16, 32, 64), **PHC), lr=0.1), data, max_epochs=8)
    assert run.test(module, datamodule=data, verbose=False)[0]["test/acc"] > 0.95


# ---------------------------------------------------------------------- optimizer and schedule


@pytest.mark.parametrize("epochs", [2, 3])
def test_schedules_span_the_whole_run_whatever_its_length(epochs):
    total = 8 * epochs

    def rates(**options):
        steps = Steps()
        fit(
            Classifier(network(), lr=0.2, **options),
            ImageData("digits", batch_size=160),
            max_epochs=epochs,
            callbacks=[steps],
        )
        assert len(steps.rates) == total
        return steps.rates

    cosine = [0.1 * (1 + math.cos(math.pi * t / total)) for t in range(total)]
    assert rates(schedule="cosine") == pytest.approx(cosine, rel=1e-6)
    assert rates(schedule="constant") == [0.2] * total
    steps = rates(schedule="multistep", milestones=(0.75, 0.5), gamma=0.5)
    assert steps == pytest.approx([0.2] * (total // 2) + [0.1] * (total // 4) + [0.05] * (total // 4))
    cycle = rates(schedule="onecycle")
    assert max(cycle) == pytest.approx(0.2, rel=0.05)
    assert abs(cycle.index(max(cycle)) - (0.3 * total - 1)) <= 1
    assert cycle[0] == pytest.approx(0.2 / 25)
    assert cycle[-1] < 1e-5


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizer_has_the_given_settings_and_every_parameter_once(name, kind):
    module = Classifier(
        network(), optimizer=name, lr=0.01, momentum=0.8, betas=(0.5, 0.99), weight_decay=0.02, schedule="constant"
    )
    _, run = fit(module, ImageData("digits", batch_size=500))
    optimizer = run.optimizers[0]
    assert type(optimizer) is kind
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    blocks = {id(m.parametrization.blocks) for m in module.model.modules() if isinstance(m, weft.Conv2d)}
    faster = 1 if name == "sgd" else 2  # blocks of n = 4 under Adam: n^0.5
    assert all(rate == 0.01 * (faster if key in blocks else 1) for key, rate in rates.items())
    assert all(g["momentum"] == 0.8 if name == "sgd" else g["betas"] == (0.5, 0.99) for g in optimizer.param_groups)
    listed = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in module.model.parameters())


def test_weight_decay_follows_the_families():
    module = Classifier(network(), weight_decay=0.02)
    _, run = fit(module, ImageData("digits", batch_size=500))
    decay = {id(p): g["weight_decay"] for g in run.optimizers[0].param_groups for p in g["params"]}
    layers = [m for m in module.model.modules() if isinstance(m, weft.Conv2d)]
    assert layers
    assert {decay[id(layer.parametrization.mixing)] for layer in layers} == {0.0}
    assert {decay[id(layer.parametrization.blocks)] for layer in layers} == {0.02}


def test_schedule_without_an_end_is_refused():
    with pytest.raises(OptionError, match=r"schedule='cosine' spans the whole run.*max_epochs"):
        fit(Classifier(network(), schedule="cosine"), max_epochs=-1)


def test_milestones_outside_the_run_are_refused():
    with pytest.raises(OptionError, match=r"shares of the run.*\[30, 60\]"):
        fit(Classifier(network(), schedule="multistep", milestones=(30, 60)))


# ---------------------------------------------------------------------- averaging


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # Lightning, of callbacks used in training
def test_average_follows_its_recursion_and_is_what_is_evaluated_and_saved(tmp_path):
    class Validated(Steps):
        def on_validation_epoch_end(self, trainer, module):
            self.validated = {name: p.detach().clone() for name, p in module.model.named_parameters()}

    data, steps = ImageData("digits", batch_size=160), Validated()
    module, run = fit(Classifier(network(), ema_decay=0.8), data, callbacks=[steps])
    average = dict(steps.weights[0])
    for weights in steps.weights[1:]:
        average = {name: 0.8 * average[name] + 0.2 * weights[name] for name in average}
    final = dict(module.model.named_parameters())
    for name, value in average.items():
        assert torch.allclose(final[name], value, atol=1e-6), name
        assert torch.allclose(steps.validated[name], value, atol=1e-6), name
        assert not torch.allclose(steps.weights[-1][name], value, atol=1e-6), name
    module.eval()
    inputs, labels = whole(data.val_dataloader(), data)
    with torch.no_grad():
        loss = F.cross_entropy(module(inputs), labels).item()
    assert run.callback_metrics["val/loss"].item() == pytest.approx(loss, rel=1e-4)
    run.save_checkpoint(tmp_path / "average.ckpt")
    loaded = Classifier(network(), ema_decay=0.8)
    trainer().test(loaded, datamodule=data, ckpt_path=tmp_path / "average.ckpt", verbose=False)
    for name, value in loaded.model.named_parameters():
        assert torch.allclose(value, average[name], atol=1e-6), name


# ---------------------------------------------------------------------- fitting together


def test_half_precision_is_the_trainers():
    module, run = fit(data=ImageData("digits", batch_size=160), precision="bf16-true")
    assert {p.dtype for p in module.model.parameters()} == {torch.bfloat16}
    assert math.isfinite(run.callback_metrics["train/loss"].item())


@pytest.mark.parametrize(("name", "value", "want"), [("num_classes", 7, 10), ("in_channels", 3, 1)])
def test_model_that_does_not_fit_the_data_is_refused(name, value, want):
    with pytest.raises(OptionError, match=f"model has {name}={value}, the data have {want}"):
        fit(Classifier(network(**{name: value})))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0), ("weight_decay", -1e-4), ("momentum", 1.0), ("gamma", 0), ("label_smoothing", 1.0),
        ("mixup_alpha", -0.1), ("ema_decay", 1.0), ("algebra_l1", -1e-3), ("algebra_l1", math.inf),
        ("algebra_l1", math.nan), ("betas", (2, 2)), ("betas", (0.9, 1.0)), ("betas", (0.9,)),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(OptionError, match=rf"{option} must be .*got {re.escape(str(value))}"):
        Classifier(network(), **{option: value})
