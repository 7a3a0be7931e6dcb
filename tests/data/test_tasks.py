"""Sequences of tasks: which images, labels and pixels each task has, in which order training sees them."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from weft.data import ImageData, TaskSequence
from weft.errors import OptionError
from weft.train import Classifier


def served(loader):
    batches = list(loader)
    return [torch.cat([each[i] for each in batches]) for i in (0, 1)], [each[2] for each in batches for _ in each[1]]


def test_split_tasks_are_the_digits_two_by_two():
    data = TaskSequence("digits", num_tasks=5, eval_batch_size=37)
    data.setup("test")
    (images, labels), tasks = served(data.test_dataloader())
    plain = ImageData("digits")
    expected = list(zip(*[torch.cat(each) for each in zip(*plain.test_dataloader(), strict=True)], strict=True))
    digits = [2 * task + label for task, label in zip(tasks, labels.tolist(), strict=True)]
    ours = sorted((image.numpy().tobytes(), digit) for image, digit in zip(images, digits, strict=True))
    assert ours == sorted((image.numpy().tobytes(), int(digit)) for image, digit in expected)
    assert tasks == sorted(tasks)
    assert data.num_classes == 2
    assert len(data.test_dataloader()) == len(list(data.test_dataloader()))


def test_training_shows_one_task_per_epoch_for_so_many_steps():
    data = TaskSequence("digits", num_tasks=5, steps_per_task=25, batch_size=32)
    data.setup()
    loader = data.train_dataloader()
    assert np.bincount(load_digits().target).max() * 2 < 25 * 32, "otherwise no task is served twice"
    for task in range(5):
        batches = list(loader)
        assert len(batches) == len(loader) == 25
        assert all(each[2] == task and len(each[1]) == 32 for each in batches)
        first = [image.numpy().tobytes() for each in batches[:7] for image in each[0]]
        assert len(set(first)) == 7 * 32, "a pass shows every image once"
        assert not torch.equal(batches[0][0], batches[10][0])


def test_a_loader_goes_on_within_a_task():
    data = TaskSequence("digits", num_tasks=2, steps_per_task=12, batch_size=64)
    data.setup()
    loader = data.train_dataloader()
    list(loader)
    second = iter(loader)
    for _ in range(5):
        next(second)
    state, rest = loader.state_dict(), list(second)
    other = data.train_dataloader()
    other.load_state_dict(state)
    again = list(other)
    assert len(again) == len(rest) == 7
    for (x, y, task), (images, labels, expected) in zip(again, rest, strict=True):
        assert torch.equal(x, images)
        assert torch.equal(y, labels)
        assert task == expected == 1


def test_permuted_tasks_move_the_pixels_of_padded_images():
    data = TaskSequence("digits", tasks="permuted", num_tasks=3, padding=2, eval_batch_size=400)
    data.setup()
    assert data.image_size == (12, 12)
    assert data.num_classes == 10
    raw = list(data.test_dataloader())
    assert [task for _, _, task in raw] == [0, 1, 2]
    floats = [data.on_after_batch_transfer(batch, 0) for batch in raw]
    plain = torch.from_numpy(np.pad(raw[0][0].numpy(), ((0, 0), (0, 0), (2, 2), (2, 2))))
    expected = data.normalise(plain)
    torch.testing.assert_close(floats[0][0], expected, rtol=0, atol=0)
    columns = expected.flatten(1).T.tolist()
    orders = []
    for images, labels, _ in floats[1:]:
        assert torch.equal(labels, raw[0][1])
        moved = images.flatten(1).T.tolist()
        assert sorted(moved) == sorted(columns), "a permutation of pixels, the same for all images"
        orders.append(moved)
        assert moved != columns
    assert orders[0] != orders[1]
    again = data.on_after_batch_transfer(floats[1], 0)
    assert torch.equal(again[0], floats[1][0]), "floats are left alone"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_tasks": 3}, "must divide the 10 classes .* got 3; take one of \\[1, 2, 5, 10\\]"),
        ({"num_tasks": 0}, "num_tasks must be at least 1, got 0"),
        ({"steps_per_task": 0}, "steps_per_task must be at least 1"),
        ({"padding": -1}, "padding must be at least 0"),
        ({"tasks": "shuffled"}, "'split' or 'permuted', got 'shuffled'"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        TaskSequence("digits", **options).setup()


def test_more_epochs_than_tasks_are_refused():
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=6, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(OptionError, match=r"at most num_tasks=5, as an epoch is a task; got 6"):
        trainer.fit(Classifier(nn.Linear(3, 2)), TaskSequence("digits"))
