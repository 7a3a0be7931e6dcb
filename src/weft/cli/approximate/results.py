"""What was found, one record per family and share, kept in a folder that a second run goes on with.

runs/approximate-NAME/results.json     everything, written after every record; a stopped run goes on from it
runs/approximate-NAME/results.csv      one row per family and share
runs/approximate-NAME/results.md       the tables that are printed
runs/approximate-NAME/errors.png       error against share
runs/approximate-NAME/features.safetensors    with --finetune: inputs of the layer, where they are large
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weft.cli.files import write
from weft.errors import OptionError

FILE = "results.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One family at one share.

    Args:
        family: its name.
        share: asked for.
        parameters: stored numbers of the weight; None if the family was skipped.
        true_share: parameters over those of the dense matrix.
        error: relative error of the fit.
        seconds: that the fit took.
        approximated: accuracy on the test set with the fitted layer, 0 to 1; None without ``--finetune``.
        fine_tuned: the same after training the layer.
        train_seconds: that the training took.
        reason: why the family was skipped, or "".
    """

    family: str
    share: float
    parameters: int | None = None
    true_share: float | None = None
    error: float | None = None
    seconds: float = 0.0
    approximated: float | None = None
    fine_tuned: float | None = None
    train_seconds: float | None = None
    reason: str = ""


@dataclass
class Results:
    """The records of one run, and what they are results of.

    Args:
        folder: of the run.
        arguments: that the numbers depend on; a run with others may not go on in this folder.
        facts: what was found beside the records, such as the accuracy of the dense layer.
        records: by family and share; skipped ones are tried again by the next run.
    """

    folder: Path
    arguments: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    records: dict[tuple[str, float], Record] = field(default_factory=dict)

    @classmethod
    def claim(cls, folder: Path, arguments: Mapping[str, Any]) -> Results:
        """Those of the folder if a run with the same arguments has begun there, else empty ones.

        Args:
            folder: may be there or not.
            arguments: JSON types only.

        Returns:
            the results; nothing is written yet.

        Raises:
            OptionError: the folder holds something else, results of other arguments, or a damaged file.
        """
        path = folder / FILE
        if not path.exists():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise OptionError(f"{folder} holds something else than results; write elsewhere with --out FOLDER")
            return cls(folder, dict(arguments))
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            before, records = content["arguments"], [Record(**entry) for entry in content["records"]]
            facts = dict(content["facts"])
        except (ValueError, TypeError, KeyError) as error:
            raise OptionError(
                f"{path} is damaged ({error}); delete the folder, or write elsewhere with --out"
            ) from None
        if differing := [key for key in {**before, **arguments} if before.get(key) != arguments.get(key)]:
            changes = "; ".join(f"{key} was {before.get(key)}, now {arguments.get(key)}" for key in differing)
            raise OptionError(
                f"{folder} holds results of other arguments ({changes}): go on with those, or write elsewhere with "
                "--out FOLDER"
            )
        return cls(folder, dict(arguments), facts, {(r.family, r.share): r for r in records if not r.reason})

    def keep(self, record: Record) -> None:
        """Add a record, and write all.

        Args:
            record: of one family and share.
        """
        self.records[record.family, record.share] = record
        self.save()

    def save(self) -> None:
        """Write all in one step."""
        entries = [asdict(each) for each in self.records.values()]
        content = {"arguments": self.arguments, "facts": self.facts, "records": entries}
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / FILE, json.dumps(content, indent=1).encode())

    @property
    def done(self) -> list[Record]:
        """Records with a result, by share and then by family."""
        return sorted((r for r in self.records.values() if not r.reason), key=lambda r: (r.share, r.family))

    @property
    def skipped(self) -> list[Record]:
        """Records of families that could not, by family and then by share."""
        return sorted((r for r in self.records.values() if r.reason), key=lambda r: (r.family, r.share))


def error_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Errors by family and share, the best family of the largest share first.

    Args:
        results: of the run.

    Returns:
        headings and rows; a dash where a family was skipped.
    """
    shares = sorted({record.share for record in results.done})
    errors = {(record.family, record.share): record.error for record in results.done}
    names = sorted(
        {record.family for record in results.done},
        key=lambda name: [errors.get((name, share), float("inf")) for share in reversed(shares)],
    )
    rows = [[name, *(_text(errors.get((name, share)), ".4f") for share in shares)] for name in names]
    return ["family", *(f"share {share:g}" for share in shares)], rows


def accuracy_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Accuracies on the test set by family and share, in the order of the share and then of the best.

    Args:
        results: of a run with ``--finetune``.

    Returns:
        headings and rows; percentages.
    """
    dense = results.facts["dense_accuracy"]
    records = sorted(results.done, key=lambda r: (r.share, -(r.fine_tuned or 0)))
    rows = [
        [
            r.family, f"{r.share:g}", f"{r.parameters:,}", _text(r.error, ".4f"), _text(dense, ".2%"),
            _text(r.approximated, ".2%"), _text(r.fine_tuned, ".2%"),
        ]
        for r in records
    ]  # fmt: skip
    return ["family", "share", "numbers", "error", "dense", "approximated", "fine-tuned"], rows


def skipped_lines(results: Results) -> list[str]:
    """Why families were skipped, in one sentence per family and reason.

    Args:
        results: of the run.

    Returns:
        the sentences.
    """
    shares: dict[tuple[str, str], list[float]] = {}
    for record in results.skipped:
        shares.setdefault((record.family, record.reason), []).append(record.share)
    return [
        f"{name} was skipped at share {', '.join(format(share, 'g') for share in at)}: {reason}"
        for (name, reason), at in shares.items()
    ]


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def as_csv(results: Results) -> str:
    """Everything, one row per family and share.

    Args:
        results: of the run.

    Returns:
        text with a heading row.
    """
    rows = [asdict(record) for record in (*results.done, *results.skipped)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*Record.__dataclass_fields__, "dense"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "dense": results.facts.get("dense_accuracy")} for row in rows)
    return text.getvalue()


def as_markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; numbers are set to the right.

    Args:
        headings: one per column.
        rows: cells.

    Returns:
        text.

    Example:
        >>> print(as_markdown(["family", "share 0.1"], [["low_rank", "0.25"]]), end="")
        | family | share 0.1 |
        | --- | ---: |
        | low_rank | 0.25 |
    """
    lines = [list(headings), ["---"] + ["---:"] * (len(headings) - 1), *map(list, rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
