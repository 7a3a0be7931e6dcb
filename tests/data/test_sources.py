"""Folders of Parquet files are generated here, in the hub's layout, with known pixels."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture

from weft.data.sources import load, resolve
from weft.errors import OptionError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(folder, split, pixels, labels, image="image", label="label", label_type=None):
    folder.mkdir(exist_ok=True)
    features = Features({image: Image(), label: label_type or ClassLabel(names=["cat", "dog", "emu"])})
    pictures = [Picture.fromarray(p) for p in pixels]
    Dataset.from_dict({image: pictures, label: labels}, features=features).to_parquet(folder / f"{split}-0.parquet")


def grey(count, side=6):
    return np.random.default_rng(count).integers(0, 256, (count, side, side), dtype=np.uint8)


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_colour_pixels_and_labels_come_back_exactly(tmp_path, image, label):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    write(tmp_path / "set", "train", pixels, [0, 2, 1, 2, 0], image, label)
    write(tmp_path / "set", "test", pixels[:2], [1, 0], image, label)
    images, labels, names = load(tmp_path / "set", train=True)
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert labels.tolist() == [0, 2, 1, 2, 0]
    assert names == ["cat", "dog", "emu"]
    images, labels, _ = load(tmp_path / "set", train=False)
    assert np.array_equal(images.numpy(), pixels[:2].transpose(0, 3, 1, 2))
    assert labels.tolist() == [1, 0]


def test_grey_pictures_have_one_channel(tmp_path):
    pixels = grey(4)
    write(tmp_path / "set", "train", pixels, [0, 1, 2, 0])
    assert np.array_equal(load(tmp_path / "set", train=True)[0].numpy(), pixels[:, None])


def test_pictures_with_transparency_become_rgb(tmp_path):
    pixels = np.zeros((2, 4, 4, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 255
    write(tmp_path / "set", "train", pixels, [0, 1])
    images = load(tmp_path / "set", train=True)[0]
    assert images.shape == (2, 3, 4, 4)
    assert images[:, 0].eq(200).all()
    assert images[:, 1:].eq(0).all()


def test_validation_split_stands_in_for_a_missing_test_split(tmp_path):
    write(tmp_path / "set", "train", grey(3), [0, 1, 2])
    write(tmp_path / "set", "validation", grey(2), [1, 1])
    assert load(tmp_path / "set", train=False)[1].tolist() == [1, 1]


def test_integer_labels_without_names_are_counted(tmp_path):
    write(tmp_path / "set", "train", grey(3), [0, 4, 2], label_type=Value("int64"))
    assert load(tmp_path / "set", train=True)[2] == ["0", "1", "2", "3", "4"]


def test_resize_brings_pictures_to_one_size(tmp_path):
    pixels = [np.full((5, 9), 80, np.uint8), np.full((12, 3), 90, np.uint8)]
    write(tmp_path / "set", "train", pixels, [0, 1])
    with pytest.raises(OptionError, match=r"image 1 is 12 x 3 pixels, the first is 5 x 9.*resize=32"):
        load(tmp_path / "set", train=True)
    images = load(tmp_path / "set", train=True, resize=7)[0]
    assert images.shape == (2, 1, 7, 7)
    assert images[0].eq(80).all()
    assert images[1].eq(90).all()


def test_missing_columns_are_named_beside_those_there(tmp_path):
    write(tmp_path / "set", "train", grey(3), [0, 1, 2], image="scan")
    with pytest.raises(OptionError, match=r"no image column.*\['scan', 'label'\].*image, img"):
        load(tmp_path / "set", train=True)
    write(tmp_path / "other", "train", grey(3), [0, 1, 2], label="species")
    with pytest.raises(OptionError, match=r"no label column.*\['image', 'species'\]"):
        load(tmp_path / "other", train=True)


def test_missing_split_is_named_beside_those_there(tmp_path):
    write(tmp_path / "set", "train", grey(3), [0, 1, 2])
    with pytest.raises(OptionError, match=r"has the splits \['train'\]; needed is one of \['test', 'validation'"):
        load(tmp_path / "set", train=False)


def test_column_that_holds_no_pictures_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    Dataset.from_dict({"image": [1.5, 2.5], "label": [0, 1]}).to_parquet(tmp_path / "set" / "train-0.parquet")
    with pytest.raises(OptionError, match="column 'image' holds"):
        load(tmp_path / "set", train=True)


@pytest.mark.parametrize(
    ("labels", "message"), [([0, -1, 2], "from -1 to 2, expected 0 to"), (["a", "b", "a"], "must hold integers")]
)
def test_unusable_labels_are_refused(tmp_path, labels, message):
    kind = Value("string") if isinstance(labels[0], str) else Value("int64")
    write(tmp_path / "set", "train", grey(3), labels, label_type=kind)
    with pytest.raises(OptionError, match=message):
        load(tmp_path / "set", train=True)


def test_empty_folder_says_what_it_must_hold(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match=r"empty' could not be read.*train-\*\.parquet"):
        load(tmp_path / "empty", train=True)


def test_unreachable_hub_says_how_to_do_without(monkeypatch):
    def unreachable(place):
        raise ConnectionError(f"no route to {place}")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(OptionError, match=r"hub's data set 'ylecun/mnist'.*no route to ylecun/mnist.*below WEFT_DATA"):
        load("ylecun/mnist", train=True)


def test_places_are_looked_for_in_order(tmp_path, monkeypatch):
    for parent in ("here", "data", "env"):
        (tmp_path / parent / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("WEFT_DATA", str(tmp_path / "env"))
    for parent in ("here", "data", "env"):
        assert resolve("set", tmp_path / "data") == tmp_path / parent / "set"
        (tmp_path / parent / "set").rmdir()
    assert resolve("owner/set", tmp_path / "data") == "owner/set"
    assert resolve("digits") == "digits"


def test_source_that_is_not_there_lists_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEFT_DATA", str(tmp_path / "env"))
    with pytest.raises(OptionError) as caught:
        resolve("nowhere", tmp_path / "data")
    for text in (
        "'nowhere'",
        f"{tmp_path}/nowhere",
        f"{tmp_path}/data/nowhere",
        f"{tmp_path}/env/nowhere",
        "WEFT_DATA",
        "hub",
    ):
        assert text in str(caught.value)
    with pytest.raises(OptionError, match="not found"):
        resolve("/nowhere/at all")


def test_a_data_set_of_several_configurations_is_named_with_a_colon(monkeypatch):
    asked = []

    def unreachable(*names):
        asked.append(names)
        raise ConnectionError

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(OptionError, match="svhn:cropped_digits"):
        load(resolve("ufldl-stanford/svhn:cropped_digits"), True)
    assert asked == [("ufldl-stanford/svhn", "cropped_digits")]
