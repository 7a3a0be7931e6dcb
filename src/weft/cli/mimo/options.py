"""The arguments of both programs, and the recipe they stand for."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from typing import Any

import weft.models
from weft.data.sources import resolve
from weft.errors import OptionError, UnknownNameError, nearest_name
from weft.superposition import MIMO
from weft.superposition.binding import BINDINGS, check_num_superposed

#: name: what makes it, how it is written, whether its activation has a parameter, whether the isometry penalty is used
MODELS = {
    "wideresnet": ("weft.models.wide_resnet", "WideResNet", False, False),
    "wideisorelunet": ("weft.models.wide_isorelunet", "WideISOReLUNet", False, True),
    "wideisonet": ("weft.models.wide_isonet", "WideISONet", True, True),
    "mimonet": ("weft.models.mimonet", "MIMONet", True, True),
}
_CIFAR = {"flip": True, "crop_padding": 4, "crop_mode": "reflect"}
#: name: folder below WEFT_DATA, id on the hub, classes, channels, share for validation, further arguments of ImageData
DATASETS: dict[str, tuple[str, str, int, int, float, dict[str, Any]]] = {
    "cifar10": ("cifar10", "uoft-cs/cifar10", 10, 3, 0.1,
                {**_CIFAR, "mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}),
    "cifar100": ("cifar100", "uoft-cs/cifar100", 100, 3, 0.1,
                 {**_CIFAR, "mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]}),
    "fashionmnist": ("fashion_mnist", "zalando-datasets/fashion_mnist", 10, 1, 0.1, {"flip": True}),
    # not mirrored, as published programs do: a mirrored 2 is no digit
    "mnist": ("mnist", "ylecun/mnist", 10, 1, 5000 / 60000, {"center_crop": 20, "mean": [0.1307], "std": [0.3081]}),
    "svhn": ("svhn", "ufldl-stanford/svhn:cropped_digits", 10, 3, 8257 / 73257,
             {"crop_padding": 2, "mean": [0.4310, 0.4302, 0.4463], "std": [0.1965, 0.1984, 0.1992]}),
}  # fmt: skip

#: what describes the network; the rest of the options say how it is trained
NETWORK = (
    "model", "dataset", "binding", "num", "width", "initial_width", "relu_parameter_init", "skip_init", "dirac_init",
    "batch_norm_disabled", "trainable_keys_disabled",
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest name."""

    def error(self, message: str) -> Any:
        raise OptionError(f"{self.prog.removeprefix('weft ')}: {message}")


def make_parser(command: str, description: str, sup_low: str) -> Parser:
    """A parser with what both programs take.

    Args:
        command: that was asked for.
        description: of the program.
        sup_low: what the program does with it.

    Returns:
        the parser.
    """
    parser = Parser(
        prog=f"weft {command}", description=description, allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    names = ", ".join(title for _, title, _, _ in MODELS.values())
    parser.add_argument("model", help=f"{names}, each with a depth: MIMONet-28, -16, -10, any 6k + 4")
    parser.add_argument("dataset", help=f"{', '.join(DATASETS)}, or the folder of a data set in the same layout")
    parser.add_argument("binding", help=", ".join(BINDINGS))
    parser.add_argument("num", type=int, help="N, the most images in superposition")
    add = parser.add_argument_group("network").add_argument
    add("-w", "--width", type=float, default=1.0, help="multiplies the channels of the trunk")
    add("-i", "--initial_width", type=float, default=1.0, help="multiplies the 16 channels of the stem")
    add("-p", "--relu_parameter_init", type=float, default=None, help="b of SReLU (-1) or slope of PReLU (0.5)")
    add("-k", "--skip_init", action="store_true", help="learned multipliers of the residual branches, 0 at the start")
    add("-q", "--dirac_init", action="store_true", help="the trunk's convolutions start as identities")
    add("-z", "--batch_norm_disabled", action="store_true", help="no batch norm")
    add("-v", "--trainable_keys_disabled", action="store_true", help="keys are not learned")
    add = parser.add_argument_group("running").add_argument
    add("-s", "--sup_low", type=int, default=None, help=f"{sup_low}, a divisor of N")
    add("-b", "--batch_size", type=int, default=128, help="superpositions per batch: b * N images")
    add("-n", "--number_of_cpus", type=int, default=0, help="accepted and not used: images are cut from memory")
    add("--data_dir", default=None, help="folder that holds the data set's folder; default: that in WEFT_DATA")
    return parser


def model_of(text: str) -> tuple[str, int]:
    """The model that a name such as ``MIMONet-28`` means.

    Args:
        text: name and depth; 28 where it names none.

    Returns:
        a key of ``MODELS`` and the depth.

    Raises:
        UnknownNameError: there is no such model.
    """
    match = re.fullmatch(r"([A-Za-z]+?)-?(\d*)", text)
    name = (match[1] if match else text).lower()
    if match is None or name not in MODELS:
        titles = [title for _, title, _, _ in MODELS.values()]
        raise UnknownNameError(
            f"model must be one of {', '.join(titles)} with a depth, such as MIMONet-28; got {text!r}"
            f"{nearest_name(text.partition('-')[0], titles)}"
        )
    return name, int(match[2] or 28)


def canonical(options: dict[str, Any]) -> dict[str, Any]:
    """Options in the one spelling of what they mean.

    Args:
        options: names, as of the parser, to values.

    Returns:
        the same names, with the model and its depth, the data set, the binding and the widths as the programs write
        them.

    Example:
        >>> canonical({"model": "mimonet", "dataset": "MNI_ST", "binding": "HRR", "width": 1, "num": 2})
        {'model': 'MIMONet-28', 'dataset': 'mnist', 'binding': 'hrr', 'width': 1.0, 'num': 2}
    """
    name, depth = model_of(options["model"])
    known = _squeezed(options["dataset"])
    return {
        **options, "model": f"{MODELS[name][1]}-{depth}", "binding": options["binding"].lower(),
        "dataset": known if known in DATASETS else options["dataset"],
        **{each: float(options[each]) for each in ("width", "initial_width") if each in options},
    }  # fmt: skip


def _squeezed(dataset: str) -> str:
    return dataset.lower().replace("_", "").replace("-", "")


def recipe_of(args: argparse.Namespace) -> dict[str, Any]:
    """The sections ``model`` and ``data`` of the recipe.

    Args:
        args: of one of the programs; training options where there are none have their defaults.

    Returns:
        a recipe without a trainer.

    Raises:
        OptionError: an argument is out of range.
    """
    name, depth = model_of(args.model)
    path, _, parametric, isometric = MODELS[name]
    binding = args.binding.lower()
    if binding not in BINDINGS:
        raise UnknownNameError(
            f"binding must be one of {', '.join(BINDINGS)}; got {args.binding!r}{nearest_name(binding, BINDINGS)}"
        )
    for option in ("num", "batch_size"):
        if getattr(args, option) < 1:
            raise OptionError(f"{option} must be at least 1, got {getattr(args, option)}")
    for option in ("width", "initial_width"):
        if not 0 < getattr(args, option) < math.inf:
            raise OptionError(f"{option} must be above 0 and finite, got {getattr(args, option)}")
    if args.sup_low is not None:
        try:
            check_num_superposed(args.sup_low, args.num)
        except ValueError as error:
            raise OptionError(f"sup_low: {error}") from None
    if args.relu_parameter_init is not None and not parametric:
        raise OptionError(f"relu_parameter_init is for WideISONet and MIMONet; {args.model} has plain ReLUs")
    network = {
        "depth": depth, "width": args.width, "initial_width": args.initial_width, "num_inputs": args.num,
        "binding": binding, "trainable_keys": not args.trainable_keys_disabled, "skip_init": args.skip_init,
        "dirac_init": args.dirac_init, "batch_norm": not args.batch_norm_disabled,
    }  # fmt: skip
    if args.relu_parameter_init is not None:
        network["relu_parameter"] = args.relu_parameter_init
    data, classes, channels, share = _data_of(args)
    if getattr(args, "final", False):
        share = 0.0
    training = {} if not hasattr(args, "lr") else {
        "sup_low": args.sup_low, "sup_frequency": args.sup_frequency,
        "binding_regularization": args.binding_regularization,
        "orthogonal_regularization": args.orthogonal_regularization if isometric else 0.0,
        "gradient_filter": args.gradient_clipping or None, "mixup_alpha": args.mixup_alpha, "lr": args.lr,
        "weight_decay": args.weight_decay, "transfer_from": args.transfer_learning_path,
    }  # fmt: skip
    model = {"class_path": path, "init_args": {**network, "num_classes": classes, "in_channels": channels}}
    return {
        "model": {"class_path": "weft.train.SuperposedClassifier", "init_args": {"model": model, **training}},
        "data": {**data, "batch_size": args.batch_size * args.num, "eval_batch_size": args.batch_size * args.num,
                 "passes": args.num, "val_share": share},
    }  # fmt: skip


def build(model: dict[str, Any]) -> MIMO:
    """The network of a recipe.

    Args:
        model: class path and arguments.

    Returns:
        the network.
    """
    net: MIMO = getattr(weft.models, model["class_path"].rpartition(".")[2])(**model["init_args"])
    return net


def _data_of(args: argparse.Namespace) -> tuple[dict[str, Any], int, int, float]:
    """Arguments of ImageData, number of classes, channels, share for validation."""
    known = _squeezed(args.dataset)
    place = {} if args.data_dir is None else {"data_dir": args.data_dir}
    if known in DATASETS:
        folder, hub, classes, channels, share, more = DATASETS[known]
        try:
            resolve(folder, args.data_dir)
        except OptionError:
            folder = hub
        return {"source": folder, **place, **more}, classes, channels, share
    from weft.data import ImageData

    try:
        data = ImageData(args.dataset, args.data_dir)
    except OptionError as error:
        raise OptionError(
            f"dataset must be one of {', '.join(DATASETS)}, or the folder of a data set; got {args.dataset!r}"
            f"{nearest_name(known, DATASETS)} ({str(error).rstrip('.')})"
        ) from None
    return {"source": args.dataset, **place}, data.num_classes, data.in_channels, 0.1


def short_hash(options: dict[str, Any]) -> str:
    """Eight hexadecimal digits that name a configuration.

    Args:
        options: of JSON types.

    Returns:
        the beginning of its SHA-256.
    """
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
