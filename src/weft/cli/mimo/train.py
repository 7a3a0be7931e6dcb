"""``weft mimo train``: the options become a recipe, and ``weft fit`` runs it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml

from weft.cli import lightning
from weft.cli.faults import is_seed
from weft.cli.files import write
from weft.cli.mimo.options import build, canonical, make_parser, recipe_of, short_hash
from weft.errors import OptionError
from weft.train import SuperposedClassifier

OPTIONS, RECIPE = "options.json", "recipe.yaml"


def run(command: str, argv: list[str]) -> int:
    """Train one network, or go on with it.

    Args:
        command: ``"mimo train"``.
        argv: the arguments after it.

    Returns:
        the exit code.
    """
    args, passed = _arguments(command, argv)
    for name, value in canonical(vars(args)).items():  # another spelling is the same run
        setattr(args, name, value)
    options = {key: value for key, value in vars(args).items()
               if key not in ("checkpointing_path", "number_of_cpus", "data_dir")}  # fmt: skip
    folder = _folder(args, {**options, "passed": passed})
    recipe = {
        "seed_everything": args.random_seed,
        "trainer": {"max_epochs": args.epochs, **({"limit_val_batches": 0} if args.final else {})},
        **recipe_of(args),
    }
    with torch.device("meta"):  # an argument that the network or its training refuses leaves no folder behind
        training = dict(recipe["model"]["init_args"])
        SuperposedClassifier(build(training.pop("model")), **training)
    write_into(folder, OPTIONS, json.dumps(options, indent=1, sort_keys=True))
    write_into(folder, RECIPE, yaml.safe_dump(recipe, sort_keys=False))
    common = ["--config", str(folder / RECIPE), "--run_dir", str(folder), *passed]
    resumed = ["--ckpt_path", "last"] if (folder / "checkpoints" / "last.ckpt").is_file() else []
    print(f"weft: {'going on in' if resumed else 'writing to'} {folder}")
    code = lightning.run("fit", [*common, *resumed])
    return lightning.run("test", [*common, "--ckpt_path", "last"]) if args.final and code == 0 else code


def _arguments(command: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = make_parser(command, "Train a network that computes on N images in superposition. Arguments of 'weft fit' "
                                  "such as --trainer.max_steps=1000 may follow.",
                         sup_low="the other S of dynamic mode; N is none")  # fmt: skip
    add = parser.add_argument_group("training").add_argument
    add("-x", "--experiment_nr", required=True, help="names the folder of the run")
    add("-f", "--final", action="store_true", help="train on all training images, then test; else hold some out")
    add("-j", "--binding_regularization", type=float, default=0.1, help="weight of the penalty on the keys")
    add("-o", "--orthogonal_regularization", type=float, default=1e-4,
        help="weight of the isometry penalty; WideResNet has none")  # fmt: skip
    add("-u", "--sup_frequency", type=float, default=1.0, help="probability that a batch uses S = N, else sup_low")
    add("-e", "--epochs", type=int, default=200, help="of N passes over the training images each")
    add("-l", "--lr", type=float, default=0.2, help="highest learning rate of the one cycle")
    add(
        "-d", "--weight_decay", type=float, default=1e-5, help="of the weights; biases, norms, SReLUs, PReLUs have none"
    )
    add("-a", "--mixup_alpha", type=float, default=1.0, help="of Beta(a, a); 0 is off")
    add("-g", "--gradient_clipping", type=float, default=10.0,
        help="skip steps whose gradient norm is so many times the mean of the epoch before; 0 is off")  # fmt: skip
    add("-c", "--checkpointing_path", type=Path, default=Path("runs"), help="folder for all runs")
    add(
        "-t", "--transfer_learning_path", default=None, help="checkpoint: tensors of the same name and shape are copied"
    )
    add("-r", "--random_seed", type=int, default=42, help="of everything that is drawn")
    args, rest = parser.parse_known_args(argv)
    if wrong := [
        each for each in rest if each.startswith("-") and not each.startswith(("--trainer.", "--model.", "--data."))
    ]:
        parser.error(f"unknown argument {wrong[0]}; --help lists those there are")
    if args.epochs < 1:
        raise OptionError(f"epochs must be at least 1, got {args.epochs}")
    if not is_seed(args.random_seed):
        raise OptionError(f"random_seed must be in [0, 2**32), got {args.random_seed}")
    if args.transfer_learning_path is not None and not Path(args.transfer_learning_path).is_file():
        raise OptionError(f"transfer_learning_path: there is no checkpoint {args.transfer_learning_path}")
    return args, rest


def _folder(args: argparse.Namespace, options: dict[str, Any]) -> Path:
    parts = [f"Experiment{args.experiment_nr}", args.model, Path(args.dataset).name, args.binding, str(args.num),
             short_hash(options)]  # fmt: skip
    return Path(args.checkpointing_path).joinpath(*parts)


def write_into(folder: Path, name: str, text: str) -> None:
    """Write a file of a run in one step, and leave one with the same content alone.

    Args:
        folder: of the run; is made.
        name: of the file.
        text: its content.

    Raises:
        OptionError: the folder's name is that of a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"checkpointing_path: {folder} is a file; give a folder for the runs")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text:
        write(folder / name, text.encode())
