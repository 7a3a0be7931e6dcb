"""``weft fit | validate | test | predict``: Lightning's command line over a recipe, with Weft's run folder."""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import re
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

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
from weft.cli.faults import SETTINGS, check, check_families, explain, is_seed
from weft.cli.quiet import quiet
from weft.cli.recipe import load_all
from weft.data import ImageData
from weft.errors import OptionError, WeftError, nearest_name
from weft.torch_file import read
from weft.train import Classifier

FIT = "fit"
#: How torch begins what it says about a state that is another module's, or another optimizer's.
_STRANGE_MODEL, _STRANGE_OPTIMIZER = "Error(s) in loading state_dict for ", "loaded state dict"


class Parser(LightningArgumentParser):
    """Lightning's parser, with whole names only and errors raised instead of printed under a page of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "exit_on_error": False})

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """As jsonargparse's, but where an argument may be an int or a float, an int stays one.

        The members of a union are tried in their order, and typing takes ``Optional[Union[int, float]]`` for the same
        as ``Optional[Union[float, int]]``: it answers with whichever was written first in this process. Lightning's
        ``limit_val_batches: 1``, one batch, would become 1.0, all of them, wherever rich was imported before.

        Args:
            *args: as jsonargparse's.
            **kwargs: as jsonargparse's.

        Returns:
            the names of the arguments.
        """
        added: list[str] = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            members = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else []
            if {int, float} <= {*members} and members.index(float) < members.index(int):
                members.remove(int)
                members.insert(members.index(float), int)
                # `|` has no memory, unlike Union
                action._typehint = functools.reduce(operator.or_, members)  # type: ignore[attr-defined]
        return added


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
    """What this start of a run came to: metrics, steps, seconds.

    Every checkpoint has it too: a run that was stopped after its last step has nothing left to train when it goes on,
    and what it came to is what the start before it did.
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._begun: tuple[int, float] | None = None
        self._before: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = trainer.global_step, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What the run came to so far.

        Returns:
            the metrics that are finite, and the steps and seconds of this start; those of the start before where this
            one trains nothing.
        """
        assert self._trainer is not None
        if self._begun is None and self._before is not None:
            return self._before
        values = {name: float(value) for name, value in self._trainer.callback_metrics.items()}
        step, begun = self._begun or (self._trainer.global_step, time.monotonic())
        return {
            "metrics": {name: value for name, value in values.items() if math.isfinite(value)},
            "steps": self._trainer.global_step - step,
            "seconds": time.monotonic() - begun,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what the start before came to.

        Args:
            state_dict: of its checkpoint.
        """
        self._before = state_dict


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
        seed = chosen.seed_everything
        if not isinstance(seed, bool) and not is_seed(seed):
            raise OptionError(f"seed_everything must be in [0, 2**32), got {seed}")
        # types are parsed; what a family makes of its options, the command line may have changed since the recipe
        if faults := check_families(chosen.model.as_dict(), "model"):
            raise OptionError("; ".join(faults))
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
            path = runs.checkpoint_path(self.run_dir, chosen.ckpt_path or best_or_last)
            _check_checkpoint(path, ("state_dict",), chosen.weights_only)
            return path
        every = chosen.checkpoint_every_n_steps
        if every is not None and every < 1:
            raise OptionError(f"checkpoint_every_n_steps must be at least 1, got {every}")
        resumed = runs.checkpoint_path(self.run_dir, chosen.ckpt_path) if chosen.ckpt_path else None
        if resumed is not None:
            _check_checkpoint(resumed, ("state_dict", "optimizer_states", "lr_schedulers"), chosen.weights_only)
        # processes that a launcher adds find the folder as the first one has begun to fill it
        if first_process() and not chosen.trainer.fast_dev_run:
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
        """Add what notes what the training comes to."""
        self._clock = Clock()
        self.trainer.callbacks.append(self._clock)  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """Write what the training came to beside the run: metrics, steps and seconds of this start, parameters."""
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self._write("fit.json", json.dumps({"parameters": parameters, **self._clock.state_dict()}, indent=2))

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

        Raises:
            OptionError: there is nothing to predict.
        """
        batches = [torch.as_tensor(batch).flatten(1) for batch in self.trainer.predict(**kwargs) or []]
        if not batches:
            raise OptionError("there was nothing to predict: no data, or trainer.limit_predict_batches leaves none")
        outputs = torch.cat(batches).cpu()
        heading = ["class", *(f"output_{index}" for index in range(outputs.shape[1]))]
        rows = [[str(row.argmax().item()), *(f"{value:.6g}" for value in row.tolist())] for row in outputs]
        self._write("predictions.csv", "\n".join(",".join(row) for row in [heading, *rows]) + "\n")

    def _write(self, name: str, text: str) -> None:
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.run_dir.mkdir(parents=True, exist_ok=True)  # a checkpoint may come from elsewhere
            path = runs.numbered(self.run_dir / name)
            path.write_text(text)
            print(f"written: {path}")


def _check_checkpoint(path: Path, parts: tuple[str, ...], weights_only: bool | None) -> None:
    """Refuse a file that Lightning cannot go on from, before anything is built."""
    trust = "; if you trust it, allow that with --weights_only=false"
    content = read(path, trusted=weights_only is False, remedy=trust)
    remedy = "give last, best or a file that 'weft fit' wrote into the folder checkpoints of a run"
    if not isinstance(content, dict):
        raise OptionError(f"ckpt_path {path} holds a {type(content).__name__}, not a checkpoint; {remedy}")
    if missing := [name for name in ("pytorch-lightning_version", *parts) if name not in content]:
        raise OptionError(f"ckpt_path {path} is no checkpoint of a run, it lacks {', '.join(missing)}; {remedy}")


def first_process() -> bool:
    """Whether this process is not one that a launcher added to a run.

    Returns:
        True in the first process, and where there is one only.
    """
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
        if str(error).startswith(_STRANGE_OPTIMIZER):
            raise OptionError(_strange(str(error))) from error
        raise
    except RuntimeError as error:
        if _STRANGE_MODEL not in str(error):
            raise
        raise OptionError(_strange(str(error).partition(_STRANGE_MODEL)[2])) from error
    except SIGTERMException:
        resume = " ".join(["weft", command, *argv, *([] if "--ckpt_path" in argv else ["--ckpt_path", "last"])])
        if first_process():
            print(f"weft: stopped after the step it was in; go on with: {resume}", file=sys.stderr)
        return 130 if stop.by_hand else 143
    except SystemExit:  # Lightning's answer to the second Ctrl-C
        print("weft: stopped at once; --ckpt_path last goes on from the last checkpoint written", file=sys.stderr)
        return 130
    return 0


def _strange(text: str) -> str:
    """That a checkpoint is of another model, with the beginning of torch's list of differences."""
    shown = " ".join(text.split())
    shown = shown if len(shown) <= 400 else f"{shown[:400]} ..."
    remedy = "give the recipe and the arguments it was trained with"
    return f"the checkpoint does not fit the model or its optimizer; {remedy} ({shown})"


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
