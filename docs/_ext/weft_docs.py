"""What the pages take from the code: tables of the family records, tables of the benchmarks, and the checks that every
public name is in the reference and every family has a page and a row in the README.

Directives:
    family-table          one row per family
    family-record NAME    all facts about one family
    benchmark-results     every table in benchmarks/results/, as the benchmarks wrote it
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

import weft
from weft.parametrizations import Family

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
#: Packages from which a user may import what their `__all__` lists.
PUBLIC = ["weft", *(f"weft.{m.name}" for m in pkgutil.iter_modules(weft.__path__) if m.ispkg and m.name != "cli")]


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
    header = ["family", "the weight", "choose it", "sized by", "stored numbers"]
    rows = [
        [
            f"[`{name}`](/families/{name}.md)",
            record.summary,
            record.advice,
            sized_by(record),
            f"`{record.parameters}`",
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
    adam, sgd = (
        ", ".join(f"`{name}`: `{factor}`" for name, factor in rules.items()) or "1 for every parameter"
        for rules in (record.lr_multiplier, record.sgd_multiplier)
    )
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
        ["learning-rate multiplier, Adam and its kin", adam],
        ["learning-rate multiplier, SGD", sgd],
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
        text = re.sub(r"^#+ ", "## ", text, flags=re.MULTILINE)  # sections of this page, whatever they are in the files
        missing = "No results are stored in this checkout; `make bench` measures and writes them."
        return self.parse_text_to_nodes(text or missing, allow_section_headings=True)


def check_everything_is_documented(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn (an error in a strict build) about public names and families without their place.

    Args:
        app: not used.
        env: knows every documented object.
    """
    documented = set()
    for name in env.domains.python_domain.objects:
        module, _, attribute = name.rpartition(".")
        documented.add(id(getattr(sys.modules.get(module), attribute, None)))
    for package in PUBLIC:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if id(value) not in documented and not inspect.ismodule(value):
                logger.warning("public name %s.%s is on no page; add it to docs/api.md", package, name)
    readme = README.read_text(encoding="utf-8")
    for name in weft.families():
        if f"families/{name}" not in env.found_docs:
            logger.warning("family %s has no page; write docs/families/%s.md", name, name)
        if f"docs/families/{name}.md" not in readme:
            logger.warning("family %s is not in the README's table of families", name)


def show_public_bases(app: Sphinx, name: str, cls: type, options: object, bases: list[type]) -> None:
    """Replace base classes that are not exported by the exported ones behind them.

    Args:
        app: not used.
        name: not used.
        cls: the documented class.
        options: not used.
        bases: what the page will show; changed in place.
    """
    exported = [value for package in PUBLIC for value in vars(importlib.import_module(package)).values()]
    public = [base for base in cls.__mro__[1:] if base in exported or not base.__module__.startswith("weft.")]
    nearest = [base for base in public if not any(base in other.__mro__[1:] for other in public)]
    bases[:] = [base for base in nearest if base is not object]


def write_mathml(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Formulas as MathML, which browsers draw by themselves: the pages need no script from the network.

    Args:
        self: the translator that writes the page.
        node: one formula.

    Raises:
        nodes.SkipNode: always; the formula is written.
    """
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    self.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    app.add_directive("family-table", FamilyTable)
    app.add_directive("family-record", FamilyRecord)
    app.add_directive("benchmark-results", BenchmarkResults)
    app.connect("autodoc-process-bases", show_public_bases)
    app.connect("env-check-consistency", check_everything_is_documented)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
