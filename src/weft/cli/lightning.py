"""``weft fit | validate | test | predict``: Lightning's command line over a recipe, with Weft's run folder."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from weft.cli import runs
from weft.cli.checkpoints import AtomicCheckpoints, Interruptible, checkpoints
from weft.cli.faults import SETTINGS, check, explain
from weft.cli.quiet import quiet
from weft.cli.recipe import load_all
from weft.data import ImageData
from weft.errors import OptionError, WeftError, nearest_name
from weft.train import Classifier

FIT = "fit"


class Parser(LightningArgumentParser):
    """Lightning's parser, with whole names only and errors raised instead of printed under a page of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "exit_on_error": False})


class SaveConfig(SaveConfigCallback):
    """Writes the full configuration beside the results, under a name of its own for every start.

    Args:
        parser: that read the configuration.
        config: the configuration.
        run_dir: folder of the run.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, run_dir: Path) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.run_dir = run_dir

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == FIT:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            path = runs.numbered(self.run_dir / "config.yaml")
            self.parser.save(self.config, path, multifile=False)


class Clock(Callback):
    """Notes the time and the step at which training starts, or goes on."""

    time, step = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.time, self.step = time.monotonic(), trainer.global_step


class CLI(LightningCLI):
    """One subcommand over a recipe.

    A section ``model`` or ``data`` with a ``class_path`` names its class; one without holds the arguments of
    ``weft.train.Classifier`` or ``weft.data.ImageData``.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        argv: the arguments after it.
        recipe: what the recipes named in ``argv`` hold.
        stop: notes Ctrl-C.
    """

    def __init__(self, command: str, argv: list[str], recipe: dict[str, Any], stop: Interruptible) -> None:
        self._command = command
        self._recipe = recipe
        self._stop = stop
        open_model, open_data = ("class_path" in (recipe.get(section) or {}) for section in ("model", "data"))
        super().__init__(
            LightningModule if open_model else Classifier,
            LightningDataModule if open_data else ImageData,
            subclass_mode_model=open_model,
            subclass_mode_data=open_data,
            args=[command, *argv],
            parser_class=Parser,
            parser_kwargs={"prog": "weft"},
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # Classifier.load_from_checkpoint(path, model=...) stays possible
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the subcommand that was asked for: each one costs a parser.

        Returns:
            its name and the arguments that do not come from the command line.
        """
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Weft's own arguments.

        Args:
            parser: of the subcommand.
        """
        parser.add_argument("--run_dir", type=SETTINGS["run_dir"], default=None, help="default: runs/RECIPE")
        parser.add_argument(
            "--checkpoint_every_n_steps", type=SETTINGS["checkpoint_every_n_steps"], default=None,
            help="write last.ckpt also every so many training steps, not only after every epoch",
        )  # fmt: skip

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, settle the folder of the run and the checkpoint, and refuse what cannot work; nothing is built yet.

        Args:
            parser: the main one.
            args: the arguments.

        Raises:
            OptionError: an argument is wrong, a checkpoint is missing, or the folder holds another run.
        """
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise OptionError(self._explain(str(error))) from None
        chosen = self.config[self._command]
        recipes = [Path(str(path)) for path in chosen.get("config") or []]
        self.run_dir = Path(chosen.run_dir or Path("runs") / (recipes[-1].stem if recipes else "unnamed"))
        weights = self._settle_checkpoint(chosen)
        chosen.run_dir = str(self.run_dir)
        chosen.ckpt_path = None if weights is None else str(weights)
        if chosen.weights_only is None:
            chosen.weights_only = True  # a checkpoint is data; it must not run code

    def _explain(self, text: str) -> str:
        """jsonargparse's message about the command line in one line, with the nearest name."""
        unknown = re.search(r"[Uu]nrecognized arguments: (--[^\s=]+)", text)
        if unknown:
            actions = self._subcommand_parsers[self._command]._actions
            options = [option for action in actions for option in action.option_strings]
            return f"unknown argument {unknown[1]}{nearest_name(unknown[1], options)}"
        if "arguments are required" in text and not self._recipe:
            return f"{text}; name a recipe: weft {self._command} --config recipes/RECIPE.yaml"
        key, value = re.search(r'Parser key "([^"]+)"', text), re.search(r"Given value: (.*)|Got value: (.*)", text)
        given = (value[1] or value[2]) if value else None
        return f"{key[1]}: {explain(text, given)}" if key else text

    def _settle_checkpoint(self, chosen: Any) -> Path | None:
        folder = self.run_dir / "checkpoints"
        if self._command != FIT:
            best_or_last = "best" if (folder / "best.ckpt").is_file() else "last"
            return runs.checkpoint_path(self.run_dir, chosen.ckpt_path or best_or_last)
        every = chosen.checkpoint_every_n_steps
        if every is not None and every < 1:
            raise OptionError(f"checkpoint_every_n_steps must be at least 1, got {every}")
        resumed = runs.checkpoint_path(self.run_dir, chosen.ckpt_path) if chosen.ckpt_path else None
        # processes that a launcher adds find the folder as the first one has begun to fill it
        if _first_process() and not chosen.trainer.fast_dev_run:
            runs.claim(self.run_dir, resumed)
        return resumed

    def _parse_ckpt_path(self) -> None:
        """Nothing: the recipe and the command line say what the model is, not the checkpoint."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer of the recipe, writing into the run folder.

        Args:
            **kwargs: further arguments of the trainer.

        Returns:
            a trainer.
        """
        given = self._get(self.config_init, "trainer")
        self.save_config_kwargs = {"run_dir": self.run_dir}
        kwargs["callbacks"] = self._callbacks(_as_list(given.get("callbacks")), given)
        kwargs["plugins"] = [*_as_list(given.get("plugins")), AtomicCheckpoints()]
        kwargs["default_root_dir"] = given.get("default_root_dir") or str(self.run_dir)
        if given.get("logger") is None and self._command == FIT:
            table = CSVLogger(self.run_dir, name="logs")
            kwargs["logger"] = [table, TensorBoardLogger(self.run_dir, name="logs", version=table.version)]
        elif given.get("logger") is None:
            kwargs["logger"] = False
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, given: list[Any], trainer: Mapping[str, Any]) -> list[Any]:
        """The recipe's callbacks and ours: progress bar, checkpoints, resumption."""
        has_bar = any(isinstance(each, ProgressBar) for each in given)
        bar = [] if has_bar or trainer["enable_progress_bar"] is False else [RichProgressBar()]
        if self._command != FIT:
            return [*given, *bar]
        writers = checkpoints(self.run_dir, self.config[FIT].checkpoint_every_n_steps)
        # The first: where processes agree to stop, none may yet be on the way to another collective operation, and
        # the progress bar of the first process starts one.
        return [self._stop, *given, *bar, *([] if trainer["enable_checkpointing"] is False else writers)]

    def before_fit(self) -> None:
        """Add what notes the time and the step at which training starts."""
        self._clock = Clock()
        self.trainer.callbacks.append(self._clock)  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """Write what the training came to beside the run: metrics, steps and seconds of this start, parameters."""
        trainer = self.trainer
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        text = {
            "metrics": {name: value for name, value in values.items() if math.isfinite(value)},
            "parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "steps": trainer.global_step - self._clock.step,
            "seconds": time.monotonic() - self._clock.time,
        }
        self._write("fit.json", json.dumps(text, indent=2))

    def validate(self, **kwargs: Any) -> None:
        """Validate and write the metrics beside the run.

        Args:
            **kwargs: as the trainer's.
        """
        self._write("validate.json", json.dumps(self.trainer.validate(**kwargs), indent=2))

    def test(self, **kwargs: Any) -> None:
        """Test and write the metrics beside the run.

        Args:
            **kwargs: as the trainer's.
        """
        self._write("test.json", json.dumps(self.trainer.test(**kwargs), indent=2))

    def predict(self, **kwargs: Any) -> None:
        """Predict and write one row per sample: the class and the outputs, in the order of the data.

        Args:
            **kwargs: as the trainer's.
        """
        outputs = torch.cat([torch.as_tensor(batch).flatten(1) for batch in self.trainer.predict(**kwargs) or []]).cpu()
        heading = ["class", *(f"output_{index}" for index in range(outputs.shape[1]))]
        rows = [[str(row.argmax().item()), *(f"{value:.6g}" for value in row.tolist())] for row in outputs]
        self._write("predictions.csv", "\n".join(",".join(row) for row in [heading, *rows]) + "\n")

    def _write(self, name: str, text: str) -> None:
        if self.trainer.is_global_zero:
            path = runs.numbered(self.run_dir / name)
            path.write_text(text)
            print(f"written: {path}")


def _first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def run(command: str, argv: list[str]) -> int:
    """Run one of Lightning's subcommands.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        argv: the arguments after it.

    Returns:
        the exit code.

    Raises:
        OptionError: a recipe, an argument or a folder is not usable.
    """
    # the writers of checkpoints have no place where nothing is trained
    quiet(*([] if command == FIT else ["Be aware that when using `ckpt_path`"]))
    recipe = load_all(recipe_paths(argv))
    if faults := check(recipe) if recipe else []:
        raise OptionError("\n  ".join(["the recipe has faults, nothing was run:", *faults]))
    stop = Interruptible()
    if {"-h", "--help"} & set(argv):
        CLI(command, argv, recipe, stop)
    try:
        CLI(command, argv, recipe, stop)
    except MisconfigurationException as error:
        raise OptionError(str(error)) from error
    except ValueError as error:
        if isinstance(error.__cause__, WeftError):  # jsonargparse wraps what the classes of a recipe say
            raise error.__cause__ from None
        raise
    except pickle.UnpicklingError as error:
        raise OptionError(
            "the checkpoint is damaged, or holds more than tensors and numbers, which could run code when it is "
            "loaded; if you trust it, allow it with --weights_only=false"
        ) from error
    except SIGTERMException:
        resume = " ".join(["weft", command, *argv, *([] if "--ckpt_path" in argv else ["--ckpt_path", "last"])])
        if _first_process():
            print(f"weft: stopped after the step it was in; go on with: {resume}", file=sys.stderr)
        return 130 if stop.by_hand else 143
    except SystemExit:  # Lightning's answer to the second Ctrl-C
        print("weft: stopped at once; --ckpt_path last goes on from the last checkpoint written", file=sys.stderr)
        return 130
    return 0


def recipe_paths(argv: list[str]) -> list[str]:
    """The recipes that a command line names.

    Args:
        argv: the arguments after the subcommand.

    Returns:
        the values of ``--config`` and ``-c``, in their order.

    Example:
        >>> recipe_paths(["--config", "a.yaml", "--trainer.devices", "2", "--config=b.yaml"])
        ['a.yaml', 'b.yaml']
    """
    after = [value for flag, value in itertools.pairwise(argv) if flag in ("-c", "--config")]
    return after + [flag.partition("=")[2] for flag in argv if flag.startswith("--config=")]
