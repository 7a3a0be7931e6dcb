"""``weft mimo validate``: one checkpoint at every S."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from weft.cli import runs
from weft.cli.mimo.options import NETWORK, build, canonical, make_parser, recipe_of
from weft.cli.mimo.train import OPTIONS
from weft.data import ImageData
from weft.errors import OptionError
from weft.superposition import MIMO, recalibrate, regrouping_spread, seconds_per_input
from weft.torch_file import read

HEADINGS = ("S", "accuracy", "images/s", "us per image", "accuracies of regroupings", "changed", "calibrated now")


def run(command: str, argv: list[str]) -> int:
    """Evaluate and print one row per S.

    Args:
        command: ``"mimo validate"``.
        argv: the arguments after it.

    Returns:
        the exit code.
    """
    parser = make_parser(command, "Accuracy and time per image of one checkpoint at S = 1, 2, ..., N, and how much "
                                  "answers depend on the images beside them.",
                         sup_low="the only S to measure; all by default")  # fmt: skip
    add = parser.add_argument_group("checkpoint and measures").add_argument
    add("-c", "--checkpointing_path", type=Path, required=True, help="a checkpoint, or the folder of a run")
    add("--split", choices=("test", "val"), default="test", help="which images")
    add("--groupings", type=int, default=5, help="random orders, for the spread over regroupings")
    add("--calibration_batches", type=int, default=50, help="of training images, for each S not trained with")
    add("--limit", type=int, default=None, help="use only so many images")
    args = parser.parse_args(argv)
    for name, least in (("groupings", 2), ("calibration_batches", 1), ("limit", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise OptionError(f"{name} must be at least {least}, got {value}")
    path = _checkpoint(args.checkpointing_path)
    _compare(args, path)
    recipe = recipe_of(args)
    data = ImageData(**recipe["data"])
    data.setup()
    net = load(recipe["model"]["init_args"]["model"], path)
    capacities = net.capacities if args.sup_low is None else [args.sup_low]
    rows = [_row(net, data, s, args) for s in capacities]
    _show(rows, path)
    out = runs.numbered(path.parent.parent / "validate_mimo.json")
    out.write_text(json.dumps({"checkpoint": path.name, "split": args.split, "rows": rows}, indent=1))
    print(f"written: {out}")
    return 0


def load(model: dict[str, Any], path: Path) -> MIMO:
    """The network of a checkpoint, in evaluation mode.

    Args:
        model: class path and arguments.
        path: of the checkpoint.

    Returns:
        the network.

    Raises:
        OptionError: the file is no checkpoint, or that of another network; names the first difference.
    """
    net = build(model)
    content = read(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise OptionError(f"{path} is no checkpoint of a run; give a file that 'weft mimo train' wrote, or its folder")
    given = {
        name.removeprefix("model."): tensor
        for name, tensor in state.items()
        if name.startswith("model.") and isinstance(tensor, Tensor)
    }
    for name, tensor in net.state_dict().items():
        have = tuple(given[name].shape) if name in given else None
        if have != tuple(tensor.shape):
            found = "is not there" if have is None else f"has shape {have}"
            raise OptionError(
                f"{path} is of another network: its tensor {name} {found}, this one needs {tuple(tensor.shape)}; give "
                "the model, N and widths it was trained with"
            )
    if extra := sorted(given.keys() - net.state_dict().keys()):
        raise OptionError(f"{path} is of another network: it has a tensor {extra[0]}, which this one has not")
    net.load_state_dict(given)
    return net.eval()


def _checkpoint(path: Path) -> Path:
    if path.is_dir():
        return runs.checkpoint_path(path, "last")
    if not path.is_file():
        raise OptionError(f"checkpointing_path: there is no checkpoint {path}")
    return path


def _compare(args: argparse.Namespace, path: Path) -> None:
    """Refuse options that are not those the run was made with, and to take its training images for validation."""
    beside = path.parent.parent / OPTIONS
    if not beside.is_file():
        return
    try:
        trained = canonical(json.loads(beside.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"{beside} is damaged ({error}); without it, the options are not compared") from None
    asked = canonical(vars(args))
    for key in NETWORK:
        if (here := asked[key]) != (there := trained.get(key)):
            raise OptionError(f"{path} was trained with {key}={there}, validate was asked for {key}={here}")
    if args.split == "val" and trained.get("final"):
        raise OptionError(f"split: {path} was trained with --final, on all training images; use --split test")


def _row(net: MIMO, data: ImageData, s: int, args: argparse.Namespace) -> dict[str, Any]:
    calibrated = bool(net.uncalibrated(s))
    if calibrated:
        batches = (data.normalise(images) for images, _ in data.train_dataloader())
        recalibrate(net, batches, s, args.calibration_batches)
    loader = data.test_dataloader() if args.split == "test" else data.val_dataloader()
    pairs = list(loader)
    if not pairs:
        raise OptionError("split: there are no validation images; use --split test")
    inputs = torch.cat([data.normalise(images) for images, _ in pairs])[: args.limit]
    labels = torch.cat([labels for _, labels in pairs])[: args.limit]
    size = max(args.batch_size * args.num // s, 1) * s
    hits = 0
    with torch.no_grad():
        parts = list(zip(inputs.split(size), labels.split(size), strict=True))
        for x, y in track(parts, f"S = {s}", transient=True):
            hits += int((net(x, num_superposed=s).argmax(1) == y).sum())
    spread = regrouping_spread(net, inputs, labels, num_superposed=s, groupings=args.groupings, batch_size=size)
    seconds = seconds_per_input(net, inputs[:size], num_superposed=s)
    return {
        "S": s, "accuracy": hits / len(labels), "seconds_per_image": seconds, "images": len(labels),
        "regrouped_accuracies": spread.accuracies, "changed": spread.changed, "spread": spread.spread,
        "calibrated_now": calibrated,
    }  # fmt: skip


def _show(rows: list[dict[str, Any]], path: Path) -> None:
    table = Table(title=str(path), title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for row in rows:
        low, high = min(row["regrouped_accuracies"]), max(row["regrouped_accuracies"])
        table.add_row(
            str(row["S"]), f"{row['accuracy']:.4f}", f"{1 / row['seconds_per_image']:.0f}",
            f"{row['seconds_per_image'] * 1e6:.0f}", f"{low:.4f} to {high:.4f}", f"{row['changed']:.2%}",
            "yes" if row["calibrated_now"] else "no",
        )  # fmt: skip
    Console().print(table)
