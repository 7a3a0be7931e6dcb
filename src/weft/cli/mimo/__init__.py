"""``weft mimo train | validate``: networks that compute on N images in superposition.

The options are those of the method's published programs, in long and short form. Underneath is a recipe for
``weft fit``, so everything that command offers is here too: resumption, TensorBoard, one or many devices.
"""

from __future__ import annotations

import importlib

from weft.errors import UnknownNameError, nearest_name

PROGRAMS = {
    "train": "train one network; the same command again goes on where it stopped",
    "validate": "accuracy, time per image and the influence of the group, for S = 1, 2, ..., N of one checkpoint",
}


def run(command: str, argv: list[str]) -> int:
    """Run one of the programs.

    Args:
        command: ``"mimo"``.
        argv: the program's name and its arguments.

    Returns:
        the exit code.

    Raises:
        UnknownNameError: there is no such program.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<9} {text}" for name, text in PROGRAMS.items()]
        print("\n".join(["usage: weft mimo PROGRAM MODEL DATASET BINDING N [OPTIONS]", "", *lines, "",
                         "  weft mimo PROGRAM --help explains one."]))  # fmt: skip
        return 0 if argv else 2
    if argv[0] not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        raise UnknownNameError(
            f"mimo: unknown program {argv[0]!r}{nearest_name(argv[0], PROGRAMS)} (programs: {known})"
        )
    return int(importlib.import_module(f"weft.cli.mimo.{argv[0]}").run(f"{command} {argv[0]}", argv[1:]))
