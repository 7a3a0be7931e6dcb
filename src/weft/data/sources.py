"""Where images come from: a name is resolved to a place, and the place is decoded once into uint8 tensors.

Nothing here runs code that came with the data: Parquet files and image bytes only.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from weft.errors import OptionError

if TYPE_CHECKING:
    from datasets import Dataset

DIGITS = "digits"
IMAGE_COLUMNS = ("image", "img", "images", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
TEST_SPLITS = ("test", "validation", "valid", "val")
_TEST_SHARE_OF_DIGITS = 0.2
_CHUNK = 1000


def resolve(source: str, data_dir: str | os.PathLike[str] | None = None) -> str | Path:
    """Finds the place that ``source`` names, without opening it.

    Looked for in this order: the bundled ``digits``; the folder ``source``; ``source`` below ``data_dir``; ``source``
    below the folder in the environment variable ``WEFT_DATA``; the Hugging Face hub, for names of the form
    ``owner/name``.

    Args:
        source: "digits", a folder, or a hub id, which may end in ":CONFIG" for a data set of several.
        data_dir: the folder that holds data folders, if any.

    Returns:
        A folder as a Path; "digits" or a hub id as text.

    Raises:
        OptionError: there is no such place; the message lists where it was looked for.

    Example:
        >>> resolve("digits")
        'digits'
    """
    if source == DIGITS:
        return DIGITS
    parents = [Path(), *(Path(p) for p in (data_dir, os.environ.get("WEFT_DATA")) if p)]
    looked = [(parent.expanduser() / Path(source).expanduser()).absolute() for parent in parents]
    for folder in looked:
        if folder.is_dir():
            return folder
    if source.count("/") == 1 and all(source.split("/")) and source[0] not in "./~":
        return source
    raise OptionError(
        f"source={source!r} was not found. Looked for the folders {', '.join(map(str, looked))}. Give 'digits' "
        "(bundled), a folder of Parquet files (its path, or its name below data_dir= or below the folder in the "
        "environment variable WEFT_DATA), or a Hugging Face hub id 'owner/name' such as 'ylecun/mnist'."
    )


def load(place: str | Path, train: bool, resize: int | None = None) -> tuple[Tensor, Tensor, list[str]]:
    """Decodes the training or the test images of a place.

    Args:
        place: what `resolve` returned.
        train: the training split, else the test split ("validation" where the data has no "test").
        resize: side of the square that every image is resized to, in pixels; None takes them as they are.

    Returns:
        Images (samples, channels, height, width) in uint8, labels (samples,) in int64, and the names of the classes.
    """
    if place == DIGITS:
        return _digits(train, resize)
    dataset = _open(place, train)
    image, label = _column(dataset, IMAGE_COLUMNS, "image"), _column(dataset, LABEL_COLUMNS, "label")
    labels, names = _labels(dataset, label)
    return _decode(dataset, image, f"{Path(place).name} {'train' if train else 'test'}", resize), labels, names


def _digits(train: bool, resize: int | None) -> tuple[Tensor, Tensor, list[str]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    # The split is part of the data set: the same for every seed, so that test accuracies can be compared.
    rows = train_test_split(
        np.arange(len(data.target)), test_size=_TEST_SHARE_OF_DIGITS, stratify=data.target, random_state=0
    )[0 if train else 1]
    pixels = np.round(data.images[rows] * (255 / 16)).astype(np.uint8)  # 17 levels of grey, stretched to 0..255
    images = [_array(Image.fromarray(image), "L", resize) for image in pixels]
    return torch.from_numpy(np.stack(images)), torch.from_numpy(data.target[rows]).long(), [str(d) for d in range(10)]


def _open(place: str | Path, train: bool) -> "Dataset":
    """One split of a folder or of a data set of the hub, downloaded where it is not in the cache yet."""
    from datasets import load_dataset

    try:
        named = [str(place)] if isinstance(place, Path) else place.split(":", 1)
        splits = load_dataset(*named)
    except Exception as error:  # anything from a missing file to no network; the cause is kept
        kind = "the folder" if isinstance(place, Path) else "the Hugging Face hub's data set"
        raise OptionError(
            f"source: {kind} {str(place)!r} could not be read ({type(error).__name__}: {error}). A folder must hold "
            "Parquet files named train-*.parquet and test-*.parquet; a hub id needs a network or a filled cache. "
            "Without a network, put the files into a folder and give its path, or its name below WEFT_DATA."
        ) from error
    wanted = ("train",) if train else TEST_SPLITS
    for name in wanted:
        if name in splits:
            return splits[name]
    raise OptionError(f"source: {str(place)!r} has the splits {sorted(splits)}; needed is one of {list(wanted)}.")


def _column(dataset: "Dataset", names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in dataset.column_names:
            return name
    raise OptionError(
        f"source: no {what} column found. The columns are {dataset.column_names}; one of them must be called "
        f"{', '.join(names)}."
    )


def _labels(dataset: "Dataset", column: str) -> tuple[Tensor, list[str]]:
    values = np.asarray(dataset[column][:])
    names = getattr(dataset.features[column], "names", None)
    if names is None:
        if values.dtype.kind not in "iu":
            raise OptionError(f"source: the label column {column!r} must hold integers, found {values.dtype}.")
        names = [str(c) for c in range(int(values.max()) + 1)]
    if values.min() < 0 or values.max() >= len(names):
        raise OptionError(
            f"source: the labels in column {column!r} run from {values.min()} to {values.max()}, expected 0 to "
            f"{len(names) - 1}. Data sets that hide their test labels (-1) cannot be tested on."
        )
    return torch.from_numpy(values.astype(np.int64)), list(names)


def _decode(dataset: "Dataset", column: str, title: str, resize: int | None) -> Tensor:
    """All images as one tensor; grey ones have one channel, every other kind is converted to RGB."""
    from datasets.features import Image as ImageFeature

    try:
        # Undecoded, because PIL on the raw bytes is twice as fast as the data set's own decoding.
        encoded = dataset.select_columns([column]).cast_column(column, ImageFeature(decode=False))
    except Exception as error:  # pyarrow's own error says neither the column nor what to do
        raise OptionError(
            f"source: the column {column!r} holds {dataset.features[column]}, not encoded images (a struct of bytes "
            "and path, as the Hugging Face hub stores them)."
        ) from error
    total = len(encoded)
    out: np.ndarray[Any, Any] | None = None
    mode = ""
    for row, image in enumerate(track(_images(encoded, column), f"decoding {title}", total, disable=total < _CHUNK)):
        if out is None:
            mode = "L" if image.mode in ("1", "L") else "RGB"
            first = _array(image, mode, resize)
            out = np.empty((total, *first.shape), np.uint8)
        pixels = _array(image, mode, resize)
        if pixels.shape != out.shape[1:]:
            raise OptionError(
                f"source: image {row} is {image.height} x {image.width} pixels, the first is {out.shape[2]} x "
                f"{out.shape[3]}. Give resize=32 (or another side, in pixels) to bring them to one size."
            )
        out[row] = pixels
    if out is None:
        raise OptionError(f"source: there are no images in {title}.")
    return torch.from_numpy(out)


def _images(encoded: "Dataset", column: str) -> Iterator[Image.Image]:
    for chunk in encoded.iter(batch_size=_CHUNK):
        for item in chunk[column]:
            yield Image.open(io.BytesIO(item["bytes"]) if item["bytes"] is not None else item["path"])


def _array(image: Image.Image, mode: str, resize: int | None) -> np.ndarray[Any, Any]:
    """(channels, height, width) in uint8."""
    if resize is not None and image.size != (resize, resize):
        image = image.convert(mode).resize((resize, resize), Image.Resampling.BILINEAR)
    pixels = np.asarray(image.convert(mode))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
