"""Continual training: what a step minimises, what is logged about the past, what a resumed run needs."""

import copy
import csv

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import weft
from weft.data import ImageData, TaskSequence
from weft.errors import OptionError
from weft.models import HyperMLP
from weft.train import ContinualClassifier, forgetting

CHUNKED = {"kind": "chunked", "num_chunks": 6, "embedding_dim": 12, "hidden": (16,)}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def network(num_tasks=5, classes=2):
    return HyperMLP((64, 24, classes), num_tasks=num_tasks, **CHUNKED)


def trainer(**options):
    return pl.Trainer(**{**QUIET, "logger": False, "enable_checkpointing": False, "max_epochs": 5, **options})


def sequence(**options):
    return TaskSequence("digits", **{"steps_per_task": 30, "batch_size": 32, "eval_batch_size": 200, **options})


def learned(beta, folder=None, epochs=5):
    pl.seed_everything(0, verbose=False)
    module, data = ContinualClassifier(network(), beta=beta, lr=5e-3), sequence()
    logger = False if folder is None else pl.loggers.CSVLogger(folder, name="", version="")
    run = trainer(max_epochs=epochs, logger=logger, log_every_n_steps=10)
    run.fit(module, datamodule=data)
    return module, data, run


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    return *learned(1.0, folder), folder


def accuracies(module, data, split):
    """Of every task by its own network, image by image."""
    module.eval()
    images, labels = data._split()[1] if split == "val" else data._test_set()
    out, inferred = [], []
    with torch.no_grad():
        logits = [module.model(data.normalise(images), task=t) for t in range(5)]
        entropies = torch.stack([torch.distributions.Categorical(logits=each).entropy() for each in logits])
        for task in range(5):
            hits = [int(logits[task][row].argmax()) == int(label) - 2 * task for row, label in enumerate(labels)
                    if int(label) // 2 == task]  # fmt: skip
            out.append(sum(hits) / len(hits))
        for row, label in enumerate(labels.tolist()):
            task = int(entropies[:, row].argmin())
            inferred.append((task == label // 2, 2 * task + int(logits[task][row].argmax()) == label))
    return out, [sum(each) / len(each) for each in zip(*inferred, strict=True)]


def test_the_first_task_is_kept_with_the_regulariser_and_lost_without(kept):
    lost = learned(0.0)[0].accuracies
    held = kept[0].accuracies
    assert float(held.diagonal().min()) > 0.9
    assert float(lost.diagonal().min()) > 0.9
    assert float(held[4, 0]) > 0.95
    assert float(lost[4, 0]) < 0.9, f"without forgetting this shows nothing: {lost}"


def test_what_a_validation_logs(kept):
    module, data, run, _ = kept
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    table = module.accuracies.double()
    now, _ = accuracies(module, data, "val")
    for task in range(5):
        assert logged[f"val/acc_task{task}"] == pytest.approx(now[task], abs=1e-6)
        assert float(table[4, task]) == pytest.approx(now[task], abs=1e-6)
    assert logged["val/acc"] == pytest.approx(sum(now) / 5, abs=1e-6)
    lost = [float(table[t, t]) - now[t] for t in range(4)]
    for task in range(4):
        assert logged[f"val/forgetting_task{task}"] == pytest.approx(lost[task], abs=1e-6)
    assert logged["val/forgetting"] == pytest.approx(sum(lost) / 4, abs=1e-6)
    assert "val/forgetting_task4" not in logged


def test_the_mean_over_learned_tasks_leaves_out_those_to_come():
    module, _, run = learned(1.0, epochs=2)
    table = module.accuracies
    assert table[2:].isnan().all()
    assert float(run.callback_metrics["val/acc_learned"]) == pytest.approx(float(table[1, :2].mean()))
    assert float(run.callback_metrics["val/acc"]) == pytest.approx(float(table[1].mean()))


def test_a_test_knows_and_infers_the_task(kept):
    module, data, run, _ = kept
    (found,) = run.test(module, datamodule=data, verbose=False)
    now, (task, both) = accuracies(module, data, "test")
    assert found["test/acc"] == pytest.approx(sum(now) / 5, abs=1e-6)
    assert found["test/acc_task3"] == pytest.approx(now[3], abs=1e-6)
    assert found["test/task_acc"] == pytest.approx(task, abs=3e-3)  # ties of rounding
    assert found["test/acc_CL3"] == pytest.approx(both, abs=3e-3)
    assert found["test/acc_CL2"] >= found["test/acc_CL3"]


def test_predictions_are_by_the_task_or_the_inferred_one(kept):
    module, data, run, _ = kept
    outputs = torch.cat(run.predict(module, datamodule=data))
    assert outputs.shape == (360, 2)
    torch.testing.assert_close(outputs.sum(1), torch.ones(360))
    images = data.normalise(data._test_set()[0][:9])
    found = weft.hypernet.infer_task(module.model, images)
    torch.testing.assert_close(module.predict_step(images, 0), found.outputs.softmax(1))


def test_table_and_plot_are_written(kept):
    module, _, _, folder = kept
    rows = list(csv.reader((folder / "accuracies.csv").read_text().splitlines()))
    assert rows[0] == ["after task", *(f"task {t}" for t in range(5))]
    got = torch.tensor([[float(value) for value in row[1:]] for row in rows[1:]])
    torch.testing.assert_close(got, module.accuracies, atol=1e-5, rtol=0)
    assert (folder / "accuracies.png").stat().st_size > 5000


def test_forgetting_from_its_definition():
    table = torch.rand(6, 6, dtype=torch.float64)
    for after in range(6):
        expected = [float(table[t, t] - table[after, t]) for t in range(after)]
        assert forgetting(table[: after + 1]).tolist() == pytest.approx(expected)


class Watch(pl.Callback):
    """Notes the weights around every step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before, self.batch = copy.deepcopy(module.model.state_dict()), batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append((self.before, self.batch, copy.deepcopy(module.model.state_dict())))


@pytest.mark.parametrize("lookahead", [False, True])
def test_one_step_is_the_gradient_of_the_whole_loss(lookahead):
    torch.manual_seed(1)
    rate, beta = 0.05, 0.3
    module = ContinualClassifier(
        network().double(), beta=beta, lookahead=lookahead, optimizer="sgd", momentum=0, lr=rate
    )
    watch = Watch()
    data = sequence(steps_per_task=3)
    run = trainer(max_epochs=3, precision="64-true", callbacks=[watch], limit_val_batches=0, num_sanity_val_steps=0)
    run.fit(module, datamodule=data)
    snapshot, (before, (images, labels, task), after) = watch.steps[6][0], watch.steps[8]
    old, net = network().double(), network().double()
    old.load_state_dict(snapshot)
    net.load_state_dict(before)
    loss = F.cross_entropy(net(images.double(), task=task), labels)
    own = dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, list(net.parameters())), strict=True))
    moved = network().double()
    moved.load_state_dict(before)
    if lookahead:
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                if "generator" in name:
                    parameter.sub_(rate * own[name])
    term = 0.0
    for past in (0, 1):
        a, b = moved.hyper.generate(task=past), old.hyper.generate(task=past)
        term = term + sum((a[name] - b[name].detach()).square().sum() for name in a)
    pulls = torch.autograd.grad(beta / 2 * term, list(moved.parameters()), allow_unused=True)
    assert task == 2
    assert float(term.detach()) > 0
    for (name, parameter), pull in zip(net.named_parameters(), pulls, strict=True):
        slope = own[name] + (0 if pull is None else pull)
        torch.testing.assert_close(after[name], (parameter - rate * slope).detach(), msg=name)


def test_every_task_starts_with_a_fresh_optimizer_and_frozen_past():
    module = ContinualClassifier(network(), beta=0.01)
    seen = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            state = trainer.optimizers[0].state
            steps = {int(each["step"]) for each in state.values()}
            seen.append((batch[2], steps, module.regularizer.tasks, module.model.hyper.frozen.tolist()))

    trainer(max_epochs=3, limit_val_batches=0, num_sanity_val_steps=0, callbacks=[Note()]).fit(
        module, datamodule=sequence(steps_per_task=4)
    )
    expected = [
        (task, {step + 1}, tuple(range(task)), [t < task for t in range(5)]) for task in range(3) for step in range(4)
    ]
    assert seen == expected


class Interrupt(pl.Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.steps:
            raise InterruptedError


def part(folder, seed, store, stop=None, resume=None):
    pl.seed_everything(seed, verbose=False)
    module = ContinualClassifier(network(), beta=0.5, store=store, tasks_per_step=1)
    last = ModelCheckpoint(folder, "last", enable_version_counter=False, every_n_train_steps=3)
    run = trainer(
        max_epochs=3, enable_checkpointing=True, callbacks=[last, *([] if stop is None else [Interrupt(stop)])]
    )
    try:
        run.fit(module, datamodule=sequence(steps_per_task=5), ckpt_path=resume)
    except InterruptedError:
        return None
    return module.state_dict()


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty", "ignore:.*resuming from a checkpoint that ended"
)
@pytest.mark.parametrize("store", ["targets", "generator"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, store):
    whole = part(tmp_path / "whole", 1, store)
    part(tmp_path / "parts", 1, store, stop=13)
    resumed = part(tmp_path / "parts", 2, store, resume=tmp_path / "parts" / "last.ckpt")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_what_cannot_work_is_refused():
    with pytest.raises(OptionError, match=r"must hold one weft.HyperNetwork .* Linear holds 0"):
        ContinualClassifier(nn.Linear(3, 2))
    with pytest.raises(OptionError, match="has num_tasks=None"):
        ContinualClassifier(HyperMLP((3, 2), by_input=True))
    with pytest.raises(OptionError, match="beta must be at least 0"):
        ContinualClassifier(network(), beta=-1.0)
    with pytest.raises(OptionError, match=r"with num_tasks=5, .* ImageData has no tasks"):
        trainer().fit(ContinualClassifier(network(classes=10)), datamodule=ImageData("digits"))
    with pytest.raises(OptionError, match=r"num_tasks=5, .* has num_tasks=2"):
        trainer(max_epochs=1).fit(
            ContinualClassifier(network(classes=10)), datamodule=sequence(num_tasks=2, tasks="permuted")
        )
