"""Entry point of the ``weft`` command: looks up the subcommand, imports only that one, turns user errors into one line.

Exit codes: 0 done; 2 the user can fix it (one line on stderr says how); 130 and 143 stopped by Ctrl-C and by SIGTERM.
Anything else that goes wrong is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from weft.errors import WeftError, nearest_name

#: subcommand -> (module with ``run(command, argv)``, what ``weft --help`` says)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("weft.cli.demo", "train a small CNN on real digits in six families and write a report"),
    "list": ("weft.cli.list", "the families of weight matrices, with their facts"),
    "check": ("weft.cli.check", "check every key of recipes without building anything"),
    "approximate": ("weft.cli.approximate", "how near every family comes to a weight; --finetune trains the layer"),
    "mimo": ("weft.cli.mimo", "train and validate networks that compute on N images at once"),
    "rank-bias": ("weft.cli.rank_bias", "the toy experiment on depth and effective rank"),
    "study": ("weft.cli.study", "train several recipes at several seeds: one table, one plot"),
    "fit": ("weft.cli.lightning", "train a recipe; --ckpt_path last resumes"),
    "validate": ("weft.cli.lightning", "one pass over the validation set"),
    "test": ("weft.cli.lightning", "one pass over the test set"),
    "predict": ("weft.cli.lightning", "write the predictions for the prediction set"),
}

#: what ``pip install 'weft[train]'`` brings; the core needs none of it
EXTRAS = frozenset({
    "datasets", "jsonargparse", "kornia", "lightning", "matplotlib", "pyarrow", "rich", "sklearn", "tensorboard",
    "torchmetrics", "yaml",
})  # fmt: skip


def usage() -> str:
    """The text of ``weft --help``.

    Returns:
        usage, subcommands, examples.
    """
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: weft COMMAND [ARGUMENTS]",
            "",
            "Weft: layers for PyTorch whose weight is described in another way than one dense matrix.",
            "",
            "commands:",
            *lines,
            "",
            "  weft COMMAND --help explains one command; weft --version prints the version.",
            "",
            "examples:",
            "  weft demo",
            "  weft list kronecker",
            "  weft approximate weights.npy --shares 0.1,0.2",
            "  weft check recipes/*.yaml",
            "  weft fit --config recipes/digits_smallcnn_kronecker_n4.yaml",
            "  weft fit --config recipes/digits_smallcnn_kronecker_n4.yaml --ckpt_path last",
        ]
    )


def fail(message: str) -> int:
    """Report an error that the user can fix.

    Args:
        message: what was wrong, and the remedy.

    Returns:
        the exit code, 2.
    """
    print(f"weft: {message}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        the exit code.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        weft ...
        0
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"weft {version('weft')}")
        except PackageNotFoundError:
            print("weft (not installed: run from a source tree)")
        return 0
    command = args[0]
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        return fail(f"unknown command {command!r}{nearest_name(command, COMMANDS)} (commands: {known})")
    try:
        return int(importlib.import_module(COMMANDS[command][0]).run(command, args[1:]) or 0)
    except WeftError as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "torchode":
            return fail(f"'weft {command}' needs the package 'torchode' for this recipe: pip install 'weft[ode]'")
        if package not in EXTRAS:
            raise
        return fail(f"'weft {command}' needs the package {package!r}: pip install 'weft[train]'")
    except OSError as error:  # a full disk, a folder that may not be written, a file that is not there
        where = f" ({error.filename})" if error.filename else ""
        return fail(f"{error.strerror or error}{where}")
    except KeyboardInterrupt:
        print("weft: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse and jsonargparse leave this way after they have said why
        return stop.code if isinstance(stop.code, int) else fail(str(stop.code)) if stop.code else 0
