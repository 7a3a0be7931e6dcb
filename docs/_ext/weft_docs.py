"""What the pages take from the code: tables of the family records, tables of the benchmarks, and the check that every
public name is on a page.

Directives:
    family-table          one row per family
    family-record NAME    all facts about one family
    benchmark-results     every table in benchmarks/results/, as the benchmarks wrote it
"""

from __future__ import annotations

import importlib
from pathlib import Path

import weft
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from weft.parametrizations import Family

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
#: Modules whose `__all__` a user may import from; each name must be documented somewhere.
PUBLIC_MODULES = ("weft", "weft.parametrizations", "weft.layers", "weft.surgery", "weft.models", "weft.train", "weft.data", "weft.testing")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table.

    Args:
        header: one cell per column.
        rows: likewise.

    Returns:
        the text.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in lines)


def sized_by(record: Family) -> str:
    """What sizes a member, in words.

    Args:
        record: of the family.

    Returns:
        Markdown.
    """
    if record.sized_by != "share":
        return f"`{record.sized_by}`"
    return "`share`" + "".join(f" or `{option}`" for option in record.options) if record.options else "nothing"


def overview() -> str:
    """The table of all families.

    Returns:
        Markdown.
    """
    header = ["family", "the weight", "sized by", "stored numbers", "multiply-adds", "choose it"]
    rows = [
        [
            f"[`{name}`](/families/{name}.md)",
            record.summary,
            sized_by(record),
            f"`{record.parameters}`",
            f"`{record.cost}`",
            record.advice,
        ]
        for name, record in weft.families().items()
    ]
    return table(header, rows)


def facts(record: Family) -> str:
    """The table of one family.

    Args:
        record: of the family.

    Returns:
        Markdown.
    """
    decay = [f"`{name}`: {'yes' if takes else 'no'}" for name, takes in record.weight_decay.items()]
    faster = [f"`{name}`: {factor:g}" for name, factor in record.lr_multiplier.items()]
    rows = [
        ["the weight", record.summary],
        ["choose it", record.advice],
        ["class", f"{{py:class}}`weft.parametrizations.{record.cls.__name__}`"],
        ["sized by", sized_by(record)],
        *([f"option `{name}`", meaning] for name, meaning in record.options.items()),
        ["stored numbers", f"`{record.parameters}`"],
        ["multiply-adds of the factored product", f"`{record.cost}`"],
        ["can be fitted to a given matrix", "yes" if record.has_fit else "no"],
        ["weight decay", ", ".join(decay)],
        ["learning-rate multiplier", ", ".join(faster) or "1 for every parameter"],
        ["runs under export and tracing", f"the {record.export_path} product"],
        ["source", record.source],
        *([f"fails the contract check `{name}`", why] for name, why in record.expected_failures.items()),
    ]
    return table(["fact", "value"], rows)


class FamilyTable(SphinxDirective):
    """One row per family, linked to its page."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(overview())


class FamilyRecord(SphinxDirective):
    """All facts about the family named in the argument."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(facts(weft.families()[self.arguments[0]]))


class BenchmarkResults(SphinxDirective):
    """The Markdown tables that the benchmarks wrote, in the order of their names."""

    def run(self) -> list[nodes.Node]:
        files = sorted(RESULTS.glob("*.md"))
        for file in files:
            self.env.note_dependency(str(file))
        text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
        missing = "No results are stored in this checkout; `make bench` measures and writes them."
        return self.parse_text_to_nodes(text or missing, allow_section_headings=True)


def check_every_name_is_documented(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn (an error in a strict build) about public names and families without a page.

    Args:
        app: not used.
        env: knows every documented object.
    """
    documented = {}
    for name in env.domains.python_domain.objects:
        module, _, attribute = name.rpartition(".")
        if module in PUBLIC_MODULES:
            documented[name] = getattr(importlib.import_module(module), attribute, None)
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for attribute in module.__all__:
            value = getattr(module, attribute)
            known = f"{module_name}.{attribute}" in documented or any(value is other for other in documented.values())
            if not known and type(value) is not type(weft):
                logger.warning("public name %s.%s is on no page; add it to docs/api.md", module_name, attribute)
    for name in weft.families():
        if f"families/{name}" not in env.found_docs:
            logger.warning("family %s has no page; write docs/families/%s.md", name, name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("family-table", FamilyTable)
    app.add_directive("family-record", FamilyRecord)
    app.add_directive("benchmark-results", BenchmarkResults)
    app.connect("env-check-consistency", check_every_name_is_documented)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
