"""``weft fit | validate | test | predict``: Lightning's command line over a recipe, with Weft's run folder."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from weft.cli import runs
from weft.errors import OptionError

FIT = "fit"


class Parser(LightningArgumentParser):
    """Lightning's parser, with whole names only and errors raised instead of printed under a page of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "exit_on_error": False})


class SaveConfig(SaveConfigCallback):
    """Writes the full configuration beside the results, under a name of its own for every start.

    Args:
        run_dir: folder of the run.
        **kwargs: as Lightning's.
    """

    def __init__(self, *args: Any, run_dir: Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, save_to_log_dir=False)
        self.run_dir = run_dir

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == FIT:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            path = runs.numbered(self.run_dir / "config.yaml")
            self.parser.save(self.config, path, skip_none=False, multifile=False)


class CLI(LightningCLI):
    """One subcommand over a recipe.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        argv: the arguments after it.
        model_class: base of the model's class.
        data_class: base of the data module's class.
    """

    def __init__(self, command: str, argv: list[str], model_class: type, data_class: type) -> None:
        self._command = command
        super().__init__(
            model_class,
            data_class,
            args=[command, *argv],
            parser_class=Parser,
            parser_kwargs={"prog": "weft"},
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the subcommand that was asked for: each one costs a parser.

        Returns:
            its name and the arguments that do not come from the command line.
        """
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Weft's own arguments and defaults.

        Args:
            parser: of the subcommand.
        """
        parser.add_argument("--run_dir", type=str | None, default=None, help="folder of the run; default runs/RECIPE")
        parser.add_argument(
            "--checkpoint_every_n_steps", type=int | None, default=None, help="write last.ckpt also every so many steps"
        )

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
            raise OptionError(str(error)) from None
        chosen = self.config[self._command]
        recipes = [Path(str(path)) for path in chosen.get("config") or []]
        self.run_dir = Path(chosen.run_dir or Path("runs") / (recipes[-1].stem if recipes else "unnamed"))
        self.weights = self._settle_checkpoint(chosen)
        chosen.run_dir = str(self.run_dir)
        chosen.ckpt_path = None if self.weights is None else str(self.weights)
        if chosen.weights_only is None:
            chosen.weights_only = True  # a checkpoint is data; it must not run code

    def _settle_checkpoint(self, chosen: Any) -> Path | None:
        if self._command != FIT:
            if not chosen.ckpt_path and not (self.run_dir / "checkpoints").is_dir():
                raise OptionError(f"{self.run_dir} holds no trained model: run 'weft fit' first or give --ckpt_path FILE")
            best = self.run_dir / "checkpoints" / "best.ckpt"
            return runs.checkpoint_path(self.run_dir, chosen.ckpt_path or ("best" if best.is_file() else "last"))
        every = chosen.checkpoint_every_n_steps
        if every is not None and every < 1:
            raise OptionError(f"--checkpoint_every_n_steps must be at least 1, got {every}")
        # the processes that a launcher adds find the folder as the first one has begun to fill it
        resumed = runs.checkpoint_path(self.run_dir, chosen.ckpt_path) if chosen.ckpt_path else None
        if rank_zero_only.rank == 0:
            runs.claim(self.run_dir, resumed)
        return resumed

    def _parse_ckpt_path(self) -> None:
        """Nothing: the recipe and the command line say what the model is, not the checkpoint."""

    def before_instantiate_classes(self) -> None:
        """Give the trainer the run folder: progress bar, loggers, checkpoints, resumption."""
        chosen = self.config[self._command]
        callbacks: list[Any] = []
        if chosen.trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        if self._command == FIT:
            callbacks += runs.callbacks(self.run_dir, chosen.checkpoint_every_n_steps)
        self.trainer_defaults = {"callbacks": callbacks}
        self.save_config_kwargs = {"run_dir": self.run_dir}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer of the recipe, writing into the run folder.

        Args:
            **kwargs: further arguments of the trainer.

        Returns:
            a trainer.
        """
        given = self._get(self.config_init, "trainer")
        plugins = given.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), runs.AtomicCheckpoints()]
        kwargs["default_root_dir"] = given.get("default_root_dir") or str(self.run_dir)
        if given.get("logger") is None:
            table = CSVLogger(self.run_dir, name="logs")
            tensorboard = TensorBoardLogger(self.run_dir, name="logs", version=table.version)
            kwargs["logger"] = [table, tensorboard] if self._command == FIT else False
        return super().instantiate_trainer(**kwargs)

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


def base_classes(argv: list[str]) -> tuple[type, bool, type, bool]:
    """Which classes the sections ``model`` and ``data`` of the recipe describe.

    A section with a ``class_path`` names its class; one without gives the arguments of the default.

    Args:
        argv: the arguments after the subcommand.

    Returns:
        for the model and for the data: the class, and whether any subclass of it may be named.
    """
    from weft.data import ImageData
    from weft.train import Classifier

    sections = merged(recipe_paths(argv))
    open_model = "class_path" in (sections.get("model") or {})
    open_data = "class_path" in (sections.get("data") or {})
    return (
        LightningModule if open_model else Classifier, open_model,
        LightningDataModule if open_data else ImageData, open_data,
    )  # fmt: skip


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
    for noisy in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    stopped: list[int] = []
    signal_before = signal.getsignal(signal.SIGINT)
    try:
        CLI(command, argv)
    except MisconfigurationException as error:
        raise OptionError(str(error)) from error
    except SIGTERMException:
        pass
    return 0
