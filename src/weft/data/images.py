"""Image classification data for Lightning: decoded once, kept as uint8 in memory, made into floats on the device."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weft.data.in_memory import InMemoryData
from weft.data.normalising import CropMode, Normaliser, given_statistics, make_augmentation, pixel_statistics
from weft.data.sources import load, resolve
from weft.errors import OptionError

Batch = tuple[Tensor, Tensor]


class ImageData(InMemoryData):
    """Images with one label each: the digits bundled with scikit-learn, a folder of Parquet files, or a hub data set.

    Images are decoded once into one uint8 tensor and served in batches cut from it. A batch becomes floats only after
    it has reached the device: there it is augmented (training only, with kornia) and normalised. The validation set is
    cut from the training images, never from the test images: stratified by label, and by ``split_seed`` alone, so that
    runs with different seeds are validated on the same images.

    Looked for in this order: ``"digits"``; the folder ``source``; ``data_dir/source``; ``$WEFT_DATA/source``; the
    Hugging Face hub. A folder holds ``train-*.parquet`` and ``test-*.parquet`` in the hub's layout. Image columns may
    be called image or img, label columns label, fine_label or class. Where there is no "test" split, "validation" is
    used as the test set. Code that comes with a data set is never run.

    Args:
        source: "digits" (1,797 grey images of 8 x 8 pixels; 1,437 train, 360 test, always the same), a folder of
            Parquet files, or a hub id such as "ylecun/mnist"; "owner/name:config" where a data set has several.
        data_dir: folder in which the folder ``source`` is looked for; None looks in the environment variable
            ``WEFT_DATA`` only.
        batch_size: images per step and process in training.
        eval_batch_size: images per step and process in validation, test and prediction; None is ``batch_size``.
        val_share: share of the training images kept for validation, rounded up to whole images, in [0, 1); 0 means no
            validation (give the trainer ``limit_val_batches=0`` too, or it remarks on the empty loader).
        train_size: number of training images to keep, of those that validation leaves; stratified by label, as far as
            so few can be, and drawn by ``split_seed``. None keeps all.
        split_seed: seed of the validation split and of the choice of ``train_size`` images, in [0, 2**32).
        resize: side of the square to which all images are resized when decoded, in pixels; None keeps their size.
        center_crop: side of the square that is cut from the middle of every image, in pixels; None keeps all.
        crop_padding: pixels added on every side before a random crop back to size, in training; 0 is off.
        crop_mode: what is added: "constant" is black, "reflect" mirrors the image at its border.
        flip: mirror every training image left to right with probability 1/2.
        augmentations: further modules run on a training batch of floats in [0, 1], such as kornia's, in this order.
        mean: per channel, of pixels in [0, 1]; None measures it on the training images (validation excluded).
        std: as ``mean``.
        passes: how often an epoch serves the training images, each time in another order; with N inputs per
            superposition and batches N times as large, N passes keep the number of updates.

    Raises:
        OptionError: the source is not there, or an argument is out of range; before anything is read.

    Example:
        >>> data = ImageData("digits", batch_size=32)
        >>> data.num_classes, data.in_channels, data.image_size
        (10, 1, (8, 8))
        >>> data.setup()
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> tuple(images.shape), images.dtype
        ((32, 1, 8, 8), torch.uint8)
    """

    def __init__(
        self,
        source: str = "digits",
        data_dir: str | None = None,
        *,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        val_share: float = 0.1,
        train_size: int | None = None,
        split_seed: int = 0,
        resize: int | None = None,
        center_crop: int | None = None,
        crop_padding: int = 0,
        crop_mode: CropMode = "constant",
        flip: bool = False,
        augmentations: Sequence[nn.Module] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        passes: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size)
        for name, value, least in (("resize", resize, 1), ("center_crop", center_crop, 1),
                                   ("crop_padding", crop_padding, 0), ("passes", passes, 1),
                                   ("train_size", train_size, 1)):  # fmt: skip
            if value is not None and value < least:
                raise OptionError(f"{name} must be at least {least}, got {value}")
        if not 0 <= val_share < 1:
            raise OptionError(f"val_share must be in [0, 1) (share of the training images), got {val_share}")
        if not 0 <= split_seed < 2**32:
            raise OptionError(f"split_seed must be in [0, 2**32), got {split_seed}")
        if (mean is None) != (std is None):
            raise OptionError("mean and std go together: give both, or neither to measure them")
        self.source = source
        self.place = resolve(source, data_dir)
        self.val_share = val_share
        self.train_size = train_size
        self.split_seed = split_seed
        self.resize = resize
        self.center_crop = center_crop
        self.crop_padding = crop_padding
        self.crop_mode: CropMode = crop_mode
        self.passes = passes
        self.flip = flip
        self.augmentations = list(augmentations)
        self._given = None if mean is None or std is None else (list(mean), list(std))
        self._train_val: tuple[Batch, Batch, list[str]] | None = None
        self._test: Batch | None = None
        self._normaliser: Normaliser | None = None
        self._augment: nn.Module | None = None

    # ------------------------------------------------------------------ what the data are

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels. Decodes the training images at the first call."""
        return self._split()[2]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """Number of channels of an image, 1 for grey and 3 for colour."""
        return self._split()[0][0].shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of an image, in pixels."""
        height, width = self._split()[0][0].shape[2:]
        return height, width

    @property
    def mean(self) -> Tensor:
        """Mean per channel of pixels in [0, 1] that is subtracted."""
        return self._get_normaliser().mean

    @property
    def std(self) -> Tensor:
        """Standard deviation per channel of pixels in [0, 1] that is divided by."""
        return self._get_normaliser().std

    # ------------------------------------------------------------------ what Lightning calls

    def prepare_data(self) -> None:
        """Reads the training images in one process, so that a download or a conversion happens once."""
        self._split()

    def setup(self, stage: str | None = None) -> None:
        """Decodes what a stage needs, unless an earlier stage already has.

        Args:
            stage: "fit", "validate", "test", "predict", or None for all.
        """
        self._get_normaliser()  # also for testing: images are normalised as in training
        if stage in ("test", "predict", None):
            self._test_set()
        if stage in ("fit", None):
            self._augment = make_augmentation(
                self.image_size, self.crop_padding, self.flip, self.augmentations, self.crop_mode
            )

    def train_dataloader(self) -> Any:
        """Shuffled batches of the training images, in another order every epoch.

        Returns:
            a loader of (uint8 images, labels).
        """
        return self._training(*self._split()[0], self.passes)

    def val_dataloader(self) -> Any:
        """Batches of the validation images.

        Returns:
            a loader of (uint8 images, labels); an empty list if ``val_share`` is 0.
        """
        images, labels = self._split()[1]
        return self._evaluation(images, labels) if len(labels) else []

    def test_dataloader(self) -> Any:
        """Batches of the whole test set.

        Returns:
            a loader of (uint8 images, labels).
        """
        return self._evaluation(*self._test_set())

    def predict_dataloader(self) -> Any:
        """Batches of the whole test set, in the order of the data.

        Returns:
            a loader of (uint8 images, labels).
        """
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes a batch of floats on the device: augmented while training, then normalised.

        Args:
            batch: uint8 images and labels.
            dataloader_idx: not used.

        Returns:
            fp32 images and labels.
        """
        images, labels = batch
        training = self.trainer is not None and self.trainer.training
        if images.dtype == torch.uint8:
            images = self.normalise(images, augment=training)
        return images, labels

    def normalise(self, images: Tensor, augment: bool = False) -> Tensor:
        """Floats of uint8 images, with the mean and standard deviation of the training images taken out.

        Args:
            images: (batch, channels, height, width) in uint8, on any device.
            augment: run the augmentations first.

        Returns:
            fp32, same shape.
        """
        floats = images.float() / 255
        if augment and self._augment is not None:
            floats = self._augment(floats)
        return self._get_normaliser()(floats)

    # ------------------------------------------------------------------ inner workings

    def _test_set(self) -> Batch:
        if self._test is None:
            images, labels, _ = load(self.place, False, self.resize)
            self._test = self._cropped(images), labels
        return self._test

    def _cropped(self, images: Tensor) -> Tensor:
        side = self.center_crop
        if side is None:
            return images
        height, width = images.shape[2:]
        if side > min(height, width):
            raise OptionError(f"center_crop must be at most the side of the images, {min(height, width)}, got {side}")
        top, left = (height - side) // 2, (width - side) // 2
        return images[:, :, top : top + side, left : left + side].contiguous()

    def _split(self) -> tuple[Batch, Batch, list[str]]:
        """Training set, validation set, names of the classes."""
        if self._train_val is None:
            images, labels, names = load(self.place, True, self.resize)
            images = self._cropped(images)
            train, val = np.arange(len(labels)), np.arange(0)
            if self.val_share > 0:
                left = len(train) - math.ceil(self.val_share * len(train))
                if left < 1:
                    raise OptionError(
                        f"val_share={self.val_share} of {len(train)} training images leaves none to train on; give a "
                        "smaller share, or 0 for no validation"
                    )
                train, val = self._drawn(train, labels, left)
            if self.train_size is not None and self.train_size != len(train):
                if self.train_size > len(train):
                    raise OptionError(
                        f"train_size must be at most {len(train)}, what validation leaves; got {self.train_size}"
                    )
                train, _ = self._drawn(train, labels, self.train_size)
            self._train_val = (images[train], labels[train]), (images[val], labels[val]), names
        return self._train_val

    def _drawn(self, rows: Any, labels: Tensor, size: int) -> tuple[Any, Any]:
        """So many of some rows, in (0, all), and the others, stratified by label."""
        from sklearn.model_selection import train_test_split

        own = labels[rows].numpy()
        counts = np.bincount(own)
        if counts[counts > 0].min() > 1 and np.count_nonzero(counts) <= min(size, len(rows) - size):
            chosen, others = train_test_split(rows, stratify=own, random_state=self.split_seed, train_size=size)
            return chosen, others
        # What scikit-learn refuses: a part too small for every class to be in it, or a class with a single image.
        # The exact share of every class is rounded down, and those that lose most get one more; ties by chance.
        random = np.random.default_rng(self.split_seed)
        taken, lost = np.divmod(counts * size, len(rows))
        order = np.lexsort((random.random(len(counts)), -lost))
        taken[order[: size - taken.sum()]] += 1
        mixed = random.permutation(len(rows))
        by_class = [mixed[own[mixed] == label] for label in range(len(counts))]
        parts = [[each[:n] for each, n in zip(by_class, taken, strict=True)],
                 [each[n:] for each, n in zip(by_class, taken, strict=True)]]  # fmt: skip
        first, second = (rows[random.permutation(np.concatenate(part))] for part in parts)
        return first, second

    def _get_normaliser(self) -> Normaliser:
        if self._normaliser is None:
            images = self._split()[0][0]
            given = self._given
            statistics = given_statistics(*given, images.shape[1]) if given is not None else pixel_statistics(images)
            self._normaliser = Normaliser(statistics)
        return self._normaliser
