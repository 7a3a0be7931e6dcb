import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from weft.data import ImageData
from weft.errors import OptionError


def whole(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def fingerprints(images):
    return [image.numpy().tobytes() for image in images]


@pytest.fixture(scope="module")
def digits():
    data = ImageData("digits", batch_size=50, eval_batch_size=37)
    data.setup()
    return data


def test_digits_are_those_of_scikit_learn_split_in_three(digits):
    train = digits.train_dataloader()
    parts = [(train.images, train.labels), whole(digits.val_dataloader()), whole(digits.test_dataloader())]
    assert [len(labels) for _, labels in parts] == [1293, 144, 360]
    pixels = torch.cat([images for images, _ in parts]).squeeze(1)
    labels = torch.cat([labels for _, labels in parts]).tolist()
    bundled = load_digits()
    # 16 levels of grey are stretched to 255: bring them back, and compare as sets of (picture, label)
    ours = sorted(
        (np.round(p.numpy() / 255 * 16).astype(np.uint8).tobytes(), d) for p, d in zip(pixels, labels, strict=True)
    )
    theirs = sorted((p.astype(np.uint8).tobytes(), d) for p, d in zip(bundled.images, bundled.target, strict=True))
    assert ours == theirs


def test_every_part_has_every_class_in_proportion(digits):
    share = np.bincount(load_digits().target) / 1797
    for labels in (digits.train_dataloader().labels, digits.val_dataloader().labels, digits.test_dataloader().labels):
        assert np.abs(np.bincount(labels) - share * len(labels)).max() < 1


def test_validation_images_depend_on_split_seed_only(digits):
    reference = fingerprints(digits.val_dataloader().images)
    pl.seed_everything(99, verbose=False)
    same, other = ImageData("digits"), ImageData("digits", split_seed=1)
    assert fingerprints(same.val_dataloader().images) == reference
    assert fingerprints(other.val_dataloader().images) != reference
    assert fingerprints(other.test_dataloader().images) == fingerprints(digits.test_dataloader().images)


def test_validation_is_cut_from_the_training_images():
    all_train = ImageData("digits", val_share=0)
    assert all_train.val_dataloader() == []
    some = ImageData("digits", val_share=0.25)
    assert len(some.val_dataloader().labels) == 360  # a quarter of 1437, rounded up
    pool = set(fingerprints(all_train.train_dataloader().images))
    assert set(fingerprints(some.val_dataloader().images)) <= pool


def test_facts_are_those_of_the_data(digits):
    assert (digits.num_classes, digits.in_channels, digits.image_size) == (10, 1, (8, 8))
    assert digits.class_names == list("0123456789")


def test_training_images_are_normalised_to_mean_0_and_deviation_1(digits):
    images = digits.train_dataloader().images
    floats = images.numpy().astype(np.float64) / 255
    assert digits.mean.item() == pytest.approx(floats.mean(), rel=1e-6)
    assert digits.std.item() == pytest.approx(floats.std(), rel=1e-6)
    out = digits.normalise(images)
    assert out.dtype == torch.float32
    assert out.mean().abs() < 1e-5
    assert out.std() == pytest.approx(1, abs=1e-3)


def test_given_mean_and_std_are_used():
    data = ImageData("digits", mean=[0.5], std=[0.25])
    pixel = torch.tensor([[[[51]]]], dtype=torch.uint8)
    assert data.normalise(pixel).item() == pytest.approx((0.2 - 0.5) / 0.25)


def test_augmented_images_are_crops_and_mirror_images_and_nothing_else():
    data = ImageData("digits", crop_padding=1, flip=True, mean=[0.0], std=[1.0])
    data.setup()
    images = data.train_dataloader().images[:300]
    out = data.normalise(images, augment=True)
    seen = set()
    for before, after in zip(images[:, 0].float() / 255, out[:, 0], strict=True):
        padded = nn.functional.pad(before, (1, 1, 1, 1))
        options = [
            (dy, dx, mirrored)
            for dy in range(3) for dx in range(3) for mirrored in (False, True)
            if torch.allclose(padded[dy:dy + 8, dx:dx + 8].flip(1) if mirrored else padded[dy:dy + 8, dx:dx + 8], after)
        ]  # fmt: skip
        assert options, "an augmented image is none of the crops of the padded image"
        seen.add(options[0])
    assert len(seen) == 18, "every crop, plain and mirrored, should occur"


def test_further_augmentations_run_after_crop_and_flip():
    class Blacken(nn.Module):
        def forward(self, x):
            assert 0 <= x.min() <= x.max() <= 1
            return torch.zeros_like(x)

    data = ImageData("digits", augmentations=[Blacken()])
    data.setup()
    images = data.train_dataloader().images[:5]
    assert torch.allclose(data.normalise(images, augment=True), -data.mean / data.std)
    assert torch.equal(data.normalise(images), data.normalise(images.clone()))


class Recorder(pl.LightningModule):
    """Keeps what arrives in each kind of step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0])
        return self.layer(batch[0].flatten(1)).sum()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch[0])

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", **quiet, **options)


def test_trainer_augments_training_batches_only():
    data = ImageData("digits", batch_size=431, crop_padding=2)
    module = Recorder()
    run = trainer(max_epochs=2)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    val, test = (torch.cat(module.seen[part]) for part in ("val", "test"))
    plain_val, plain_test = (
        data.normalise(whole(loader)[0]) for loader in (data.val_dataloader(), data.test_dataloader())
    )
    # three passes: the sanity check (one process, all batches of a set this small), then one per epoch
    assert torch.equal(val, torch.cat([plain_val] * 3))
    assert torch.equal(test, plain_test)
    first, second = (torch.cat(module.seen["train"][i : i + 3]) for i in (0, 3))
    plain = {row.numpy().tobytes() for row in data.normalise(data.train_dataloader().images)}
    changed = sum(row.numpy().tobytes() not in plain for row in first)
    assert changed > 0.8 * len(first), "of 25 crops one is the image itself, and digits have empty borders"
    assert not torch.equal(first, second)


def test_order_of_training_follows_seed_everything():
    def first_batch(seed):
        pl.seed_everything(seed, verbose=False)
        return next(iter(ImageData("digits", batch_size=16).train_dataloader()))[1].tolist()

    assert first_batch(1) == first_batch(1) != first_batch(2)


def test_resumed_run_keeps_the_order_of_the_first():
    pl.seed_everything(7, verbose=False)
    data = ImageData("digits", batch_size=16)
    state, order = data.state_dict(), next(iter(data.train_dataloader()))[1].tolist()
    pl.seed_everything(8, verbose=False)
    resumed = ImageData("digits", batch_size=16)
    resumed.load_state_dict(state)
    assert next(iter(resumed.train_dataloader()))[1].tolist() == order
    resumed.teardown("fit")
    assert next(iter(resumed.train_dataloader()))[1].tolist() != order


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"val_share": 1.0}, "val_share must be in"),
        ({"crop_padding": -1}, "crop_padding must be at least 0"),
        ({"mean": [0.5]}, "mean and std go together"),
        ({"source": "no_such_set"}, "no_such_set"),
        ({"split_seed": -1}, r"split_seed must be in \[0, 2\*\*32\), got -1"),
        ({"split_seed": 2**32}, "split_seed must be in"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, message):
    with pytest.raises(OptionError, match=message):
        ImageData(**options)


def test_wrong_number_of_channels_in_mean_is_refused():
    with pytest.raises(OptionError, match="mean and std need 1 numbers each"):
        ImageData("digits", mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2]).setup()


def test_fashion_mnist_is_read_whole(weft_data):
    data = ImageData("fashion_mnist", data_dir=str(weft_data), val_share=0)
    data.setup()
    train, test = data.train_dataloader(), data.test_dataloader()
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(train.labels).tolist() == [6000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    # the data set's published mean and standard deviation
    assert data.mean.item() == pytest.approx(0.2860, abs=1e-4)
    assert data.std.item() == pytest.approx(0.3530, abs=1e-4)


def test_center_crop_cuts_the_middle_of_training_and_test_images():
    whole, cut = ImageData("digits", val_share=0.0), ImageData("digits", val_share=0.0, center_crop=4)
    assert cut.image_size == (4, 4)
    assert torch.equal(cut._split()[0][0], whole._split()[0][0][:, :, 2:6, 2:6])
    assert torch.equal(cut._test_set()[0], whole._test_set()[0][:, :, 2:6, 2:6])
    with pytest.raises(OptionError, match="center_crop must be at most the side of the images, 8, got 9"):
        ImageData("digits", center_crop=9).setup("fit")


def test_crops_may_mirror_the_border():
    data = ImageData("digits", crop_padding=2, crop_mode="reflect", mean=[0.0], std=[1.0])
    data.setup("fit")
    torch.manual_seed(0)
    white = torch.full((20, 1, 8, 8), 255, dtype=torch.uint8)
    assert (data.normalise(white, augment=True) == 1).all()
    black = ImageData("digits", crop_padding=2, mean=[0.0], std=[1.0])
    black.setup("fit")
    assert (black.normalise(white, augment=True) == 0).any()


def test_train_size_keeps_a_stratified_part_and_the_validation_set():
    whole, part = ImageData("digits"), ImageData("digits", train_size=200)
    assert len(part._split()[0][1]) == 200
    assert torch.equal(part._split()[1][0], whole._split()[1][0])
    counts = torch.bincount(part._split()[0][1])
    assert counts.min() >= 19
    assert counts.max() <= 21
    with pytest.raises(OptionError, match="train_size must be at most 1293"):
        ImageData("digits", train_size=1294).setup("fit")


@pytest.mark.parametrize(
    ("options", "train", "val"),
    [
        ({"train_size": 1290}, 1290, 144), ({"train_size": 5}, 5, 144), ({"val_share": 1e-4}, 1436, 1),
        ({"val_share": 0.999}, 1, 1436),
    ],
)  # fmt: skip
def test_parts_with_fewer_images_than_classes_are_as_near_to_the_shares_as_can_be(options, train, val):
    data, other = ImageData("digits", **options), ImageData("digits", **options, split_seed=1)
    first, second = data._split()[:2]
    assert (len(first[1]), len(second[1])) == (train, val)
    share = torch.bincount(ImageData("digits", val_share=0)._split()[0][1]) / 1437
    for labels in (first[1], second[1]):
        assert (torch.bincount(labels, minlength=10) - share * len(labels)).abs().max() < 2, "rounded twice at most"
    assert len(set(fingerprints(first[0])) & set(fingerprints(second[0]))) <= 1, (
        "two digits are the same, pixel by pixel"
    )
    assert fingerprints(ImageData("digits", **options)._split()[0][0]) == fingerprints(first[0])
    assert fingerprints(other._split()[0][0]) != fingerprints(first[0])


def test_classes_with_a_single_image_are_split_too():
    labels = torch.tensor([0] * 8 + [1] * 3 + [4])
    data = ImageData("digits")
    chosen, others = data._drawn(np.arange(12), labels, 9)
    assert sorted([*chosen, *others]) == list(range(12))
    # of 12, 9: 6 of the first eight, 2 and a quarter of three, three quarters of one
    assert torch.bincount(labels[chosen]).tolist() == [6, 2, 0, 0, 1]
    with pytest.raises(OptionError, match=r"val_share=0\.9999 of 1437 training images leaves none to train on"):
        ImageData("digits", val_share=0.9999).setup()


def test_borders_wider_than_the_image_cannot_be_mirrored():
    with pytest.raises(OptionError, match=r"crop_padding must be below the side of the images, 8, .*got 8"):
        ImageData("digits", crop_padding=8, crop_mode="reflect").setup("fit")
    ImageData("digits", crop_padding=8).setup("fit")
    ImageData("digits", crop_padding=7, crop_mode="reflect").setup("fit")
