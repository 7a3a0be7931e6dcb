"""``weft approximate``: every family at several shares on one matrix or layer, with a table, a plot, fine-tuning."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from weft.cli.approximate import figure, results
from weft.cli.approximate.results import Record, Results
from weft.cli.approximate.sources import Source, from_file, from_model
from weft.cli.files import write
from weft.errors import BudgetError, OptionError
from weft.parametrizations import families, family
from weft.surgery import Trial, compare

if TYPE_CHECKING:  # fine-tuning alone needs Lightning
    from weft.cli.approximate.finetune import Bench

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def run(command: str, argv: list[str]) -> int:
    """Approximate, print the tables, write the results.

    Args:
        command: ``"approximate"``.
        argv: the arguments after it.

    Returns:
        the exit code.

    Raises:
        BudgetError: no family fits any of the shares; names the smallest that works.
    """
    args = _arguments(command, argv)
    source = _source(args)
    folder = args.out or Path("runs") / f"approximate-{source.name.replace('/', '-').replace(':', '-')}"
    found = Results.claim(folder, _what_counts(args, source))
    console, names = Console(), list(families()) if args.families == ["all"] else args.families
    pairs = [(name, share) for share in args.shares for name in names if (name, share) not in found.records]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    smallest: list[float] = []
    with Progress(*columns, console=console, transient=True) as progress:
        bench = _bench(args, source, found, progress) if args.finetune and pairs else None
        gram = bench.gram() if bench is not None and args.weighted else None
        bar = progress.add_task("", total=len(pairs))
        for name, share in pairs:
            progress.update(bar, description=f"{name} at share {share:g}")
            torch.manual_seed(args.seed)  # for every pair, so that a run that goes on finds what an unbroken one would
            (trial,) = compare(source.matrix, share, [name], gram=gram, positions=source.positions)
            smallest += [] if trial.smallest_share is None else [trial.smallest_share]
            found.keep(_record(trial, bench, args))
            progress.advance(bar)
    if not found.done:
        reasons = "; ".join(f"{record.family}: {record.reason}" for record in found.skipped)
        least = f"the smallest share that works is {min(smallest):.6f}; " if smallest else ""
        raise BudgetError(f"no family fits any of the shares: {least}{reasons}", min(smallest, default=None))
    _publish(found, source, console)
    return 0


def _source(args: argparse.Namespace) -> Source:
    path = Path(args.source)
    if path.is_file():
        if strangers := [
            f"--{name}" for name in ("checkpoint", "layer", "model_options", "finetune") if getattr(args, name)
        ]:
            raise OptionError(f"{', '.join(strangers)}: only for a model, given as module:callable; {path} is a file")
        source = from_file(path, args.tensor)
    elif ":" in args.source:
        if args.tensor:
            raise OptionError("--tensor chooses from a file; of a model choose the layer, with --layer NAME")
        source = from_model(args.source, args.model_options or {}, args.checkpoint, args.layer, _device(args.device))
    else:
        raise OptionError(
            f"there is no file {path}; give a .npy, .safetensors or torch file, or a model as module:callable"
        )
    if source.matrix.numel() == 0 or not torch.isfinite(source.matrix).all():
        raise OptionError(f"{source.words} is empty, or not finite (NaN or infinity); clean the weights first")
    return source


def _device(text: str) -> torch.device:
    """The device of that name, if numbers can be put there."""
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no such name, not built in, not there, meta
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise OptionError(f"--device {text} cannot be used here ({reason}); cpu always can") from None
    return device


def _what_counts(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """The arguments that the numbers depend on."""
    names = ["source", "tensor", "checkpoint", "layer", "families", "shares", "seed", "finetune"]
    if args.finetune:
        names += ["model_options", "data", "data_dir", "resize", "optimizer", "lr", "rounds", "patience", "max_epochs"]
        names += ["batch_size", "improvement", "weighted"]
    values = {name: getattr(args, name) for name in names}
    checkpoint = None if args.checkpoint is None else str(args.checkpoint)
    return {**values, "checkpoint": checkpoint, "matrix": source.fingerprint}


def _bench(args: argparse.Namespace, source: Source, found: Results, progress: Progress) -> Bench:
    """What fine-tuning needs; the accuracy of the dense layer becomes a fact of the run."""
    from weft.cli.approximate.finetune import bench
    from weft.cli.quiet import quiet
    from weft.data import ImageData

    quiet()
    assert source.model is not None
    data = ImageData(args.data, args.data_dir, resize=args.resize)
    found.save()  # before anything else comes into the folder
    made = bench(source.model, source.layer, data, found.folder, progress)
    if "dense_accuracy" not in found.facts:
        found.facts["dense_accuracy"] = made.accuracy(made.wrap(made.plain))
        found.facts["fine_tuning"] = made.how
    return made


def _record(trial: Trial, bench: Bench | None, args: argparse.Namespace) -> Record:
    """What is kept of a trial, after fine-tuning where there is a bench."""
    if trial.member is None:
        return Record(family=trial.family, share=trial.share, seconds=trial.seconds, reason=trial.reason)
    tuned: dict[str, Any] = {}
    parameters, true_share = trial.member.num_parameters, trial.member.share
    if bench is not None:
        module = bench.wrap(bench.replacement(trial.member))
        tuned["approximated"] = bench.accuracy(module)
        begun = time.perf_counter()
        bench.train(
            module, lr=args.lr, rounds=args.rounds, patience=args.patience, max_epochs=args.max_epochs, seed=args.seed,
            batch_size=args.batch_size, min_patience_improvement=args.improvement,
            optimizer_class=OPTIMIZERS[args.optimizer],
        )  # fmt: skip
        tuned |= {"fine_tuned": bench.accuracy(module), "train_seconds": time.perf_counter() - begun}
    return Record(
        family=trial.family, share=trial.share, parameters=parameters, true_share=true_share, error=trial.error,
        seconds=trial.seconds, **tuned,
    )  # fmt: skip


def _publish(found: Results, source: Source, console: Console) -> None:
    """Print the tables, write them and the plot."""
    rows, columns = source.matrix.shape
    title = f"{source.words} ({rows} x {columns})"
    error = (
        "Relative error of the layer's outputs" if found.arguments.get("weighted") else "Relative error of the weight"
    )
    tables = [(error, *results.error_table(found))]
    if "dense_accuracy" in found.facts:
        what = f"Accuracy on the test images; the layer was {found.facts['fine_tuning']}"
        tables.append((what, *results.accuracy_table(found)))
    text = f"# {title}\n"
    for caption, headings, cells in tables:
        console.print(Text(caption, style="bold"))  # a table's own title is no wider than the table
        shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index, heading in enumerate(headings):
            shown.add_column(heading, justify="right" if index else "left", no_wrap=not index)
        for row in cells:
            shown.add_row(*row)
        console.print(shown)
        text += f"\n{caption}\n\n{results.as_markdown(headings, cells)}"
    skipped = results.skipped_lines(found)
    for line in skipped:
        console.print(Text(line, style="dim"))
    text += "".join(f"\n{line}\n" for line in skipped)
    write(found.folder / "results.csv", results.as_csv(found).encode())
    write(found.folder / "results.md", text.encode())
    write(found.folder / "errors.png", figure.errors(found, title))
    console.print(Text(f"written: {found.folder}/results.csv, results.md, errors.png"))


def _arguments(command: str, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"weft {command}",
        description="How near every family of weights comes to a given matrix, at several shares of its numbers; with "
        "--finetune also what that costs in accuracy. A second run with the same arguments goes on where the first was "
        "stopped.",
    )
    add = parser.add_argument
    add("source", metavar="MODEL_OR_FILE", help="a .npy, .safetensors or torch file, or a model as module:callable")
    add("--families", type=_names, default=["all"], help="names, with commas between them; default all")
    add("--shares", type=_numbers, default=[0.05, 0.1, 0.2, 0.5], help="stored over dense numbers, in (0, 1]; default "
        "0.05,0.1,0.2,0.5")  # fmt: skip
    add("--tensor", metavar="NAME", help="which one, of a file that holds several matrices")
    add("--out", type=Path, metavar="FOLDER", help="default runs/approximate-NAME")
    add("--seed", type=int, default=0, help="of random starts and of the order of samples")
    model = parser.add_argument_group("a model").add_argument
    model("--checkpoint", type=Path, metavar="FILE", help="state dict or Lightning checkpoint to load")
    model("--layer", metavar="NAME", help="default: the last linear or convolutional layer")
    model("--model_options", type=_mapping, metavar="YAML", help="arguments of the callable: '{hidden: 512}'")
    model("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the model and the fits")
    tune = parser.add_argument_group("fine-tuning of the replaced layer").add_argument
    tune("--finetune", action="store_true", help="train the replaced layer, everything else frozen")
    tune("--weighted", action="store_true", help="weigh the error by the layer's inputs on the training images")
    tune("--data", default="digits", metavar="SOURCE", help="digits, a folder of Parquet files (its path, or its name "
         "below --data_dir or $WEFT_DATA) or a hub id; default digits")  # fmt: skip
    tune("--data_dir", metavar="FOLDER", help="where the folder of --data is")
    tune("--resize", type=int, metavar="PIXELS", help="side of the square that images are resized to")
    tune("--optimizer", choices=OPTIMIZERS, default="sgd")
    tune("--lr", type=float, default=1.0, help="of the first round; every further round halves it; default 1")
    tune("--rounds", type=int, default=10, help="default 10")
    tune("--patience", type=int, default=2, help="epochs without improvement that end a round; default 2")
    tune("--improvement", type=float, default=1e-3, help="of the validation loss that counts; default 0.001")
    tune("--max_epochs", type=int, help="of a round; default no limit")
    tune("--batch_size", type=int, default=1000, help="default 1000")
    args = parser.parse_args(argv)
    for name in args.families if args.families != ["all"] else []:
        family(name)
    for name in ("rounds", "patience", "max_epochs", "batch_size", "resize", "lr"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise OptionError(f"--{name} must be greater than 0, got {value}")
    if args.weighted and not args.finetune:
        raise OptionError("--weighted needs the layer's inputs: give --finetune and --data too")
    for share in args.shares:
        if not 0 < share <= 1:
            raise OptionError(f"--shares must be in (0, 1] (stored numbers / dense numbers), got {share:g}")
    return args


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip())) or ["all"]


def _numbers(text: str) -> list[float]:
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, got {text!r}") from None


def _mapping(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"must be a YAML or JSON mapping, got {text!r}")
    return content
