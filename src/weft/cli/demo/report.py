"""The demo's HTML page: one file that refers to nothing outside itself, for light and dark screens."""

from __future__ import annotations

import base64
import datetime
import os
import platform
import sys
from collections.abc import Mapping
from html import escape
from importlib.metadata import version
from pathlib import Path

import weft
from weft.cli.demo.results import Result, cells, columns

TEST_IMAGES = 360
PACKAGES = ("torch", "lightning", "scikit-learn", "numpy")

STYLE = """
:root { color-scheme: light dark; --paper: #f5f6f9; --card: #ffffff; --ink: #1f2430; --soft: #5b6474; --line: #e3e6ed;
  --accent: #1d5fd0; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1219; --card: #171b24; --ink: #e6e9f0;
  --soft: #9aa4b5; --line: #2a3140; --accent: #7fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, "Segoe UI", Roboto, Helvetica,
  Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
header p { color: var(--soft); font-size: 1.08rem; max-width: 46rem; margin: .4rem 0 0; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -.02em; margin: 0; }
h2 { font-size: 1.15rem; margin: 0 0 .8rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.4rem 1.5rem;
  margin-top: 1.25rem; }
.cards { margin-top: 1.25rem; display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.1rem 1.4rem; }
.card b { display: block; font-size: 1.75rem; line-height: 1.25; letter-spacing: -.02em; color: var(--accent); }
.card span { color: var(--soft); font-size: .95rem; }
img { display: block; width: 100%; height: auto; border-radius: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; min-width: 44rem; font-variant-numeric: tabular-nums; }
th, td { padding: .55rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:last-child td { border-bottom: 0; }
.dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .55rem;
  box-shadow: 0 0 0 1px var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1.4rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 38rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 56rem) { th { white-space: nowrap; } }
p.note { color: var(--soft); font-size: .93rem; margin: .9rem 0 0; }
"""


def report(
    results: list[Result],
    images: Mapping[tuple[str, str], bytes],
    batch: int,
    command: str,
    epochs: int,
    seed: int,
    seconds: float,
) -> str:
    """The page.

    Args:
        results: one per variant.
        images: PNG files by name (``pareto``, ``curves``) and theme (``light``, ``dark``).
        batch: samples per forward pass of the latency.
        command: that was run.
        epochs: trained.
        seed: used.
        seconds: that the run took.

    Returns:
        HTML.
    """
    known = environment(command, epochs, seed, seconds)
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in known)
    error = 100 * max((r.accuracy * (1 - r.accuracy) / TEST_IMAGES) ** 0.5 for r in results)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Weft demo</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>The same network, described by fewer numbers</h1>
<p>One small convolutional network learned to read handwritten digits {len(results)} times: with the same data, the same
{epochs} epoch{"s" * (epochs > 1)} and the same seed. Only the way in which the weights of its convolutions are
described differs.</p>
</header>
<div class="cards">{"".join(_card(*card) for card in highlights(results))}</div>
<section>
{_picture("pareto", "Test accuracy against parameters, one labelled point per variant", images)}
<p class="note">Further left is smaller, further up is better. The dashed line joins the variants that no smaller one
beats. The {TEST_IMAGES} test images fix an accuracy to about {error:.1f} points (one standard error), one image is
{100 / TEST_IMAGES:.2f} points: read small differences as equal.</p>
</section>
<section>
<h2>Results</h2>
<div class="scroll">{_table(results, batch)}</div>
</section>
<section>
<h2>How they learned</h2>
{_picture("curves", "Training loss and validation accuracy over the epochs, one line per variant", images)}
</section>
<section>
<h2>What the columns mean</h2>
<dl>
<dt>parameters</dt><dd>numbers that the trained model stores.</dd>
<dt>share</dt><dd>parameters over those of the plain network. The first convolution, the norms and the last layer are
plain in every variant.</dd>
<dt>test accuracy</dt><dd>of the folded model on {TEST_IMAGES} images that were used for nothing else.</dd>
<dt>ms/step</dt><dd>median time of a training step, forward, backward and update of a batch of 64, all variants taken
in turns.</dd>
<dt>folded latency</dt><dd>median time of a forward pass of {batch} images after folding, all models taken in turns.
Folding turns every variant into the same plain torch layers, so these are equal but for noise.</dd>
<dt>max |folded - unfolded|</dt><dd>largest difference between any score of the folded model and of the trained one,
which computes from its own parameters; 0 where it does so by building the very matrix that folding stores. Scores
are of the order of 10; single precision resolves about 1e-6 of that.</dd>
</dl>
</section>
<section>
<h2>The families</h2>
<dl>
<dt>Plain torch</dt><dd>torch.nn.Conv2d: every entry of the weight is a number of its own.</dd>
<dt>PHC</dt><dd>the weight is a sum of n Kronecker products of a small mixing matrix and a block; both are learned.
1/n of the numbers.</dd>
<dt>Quaternion</dt><dd>the same with n = 4 and the mixing matrices fixed to the quaternions' multiplication table.</dd>
<dt>Low rank</dt><dd>the weight is a product of two thin matrices, as wide as the share allows.</dd>
</dl>
</section>
<section>
<h2>Where this comes from</h2>
<dl>{facts}</dl>
</section>
</main>
</body>
</html>
"""


def highlights(results: list[Result]) -> list[tuple[str, str]]:
    """What to see at first glance.

    Args:
        results: one per variant.

    Returns:
        a number and a sentence for each card.
    """
    reference = next((r for r in results if r.share == 1), max(results, key=lambda r: r.accuracy))
    near = min((r for r in results if r.accuracy >= reference.accuracy - 0.01), key=lambda r: r.parameters)
    if near.parameters < reference.parameters:
        times = f"{reference.parameters / near.parameters:.1f} x smaller"
        who = f"and no more than one point worse: {near.label}, at {100 * near.accuracy:.1f} %"
    else:
        times, who = "1.0 x smaller", "every smaller variant is more than one point below that"
    with_size = f"test accuracy of {reference.label}, with {reference.parameters:,} parameters"
    return [
        (f"{100 * reference.accuracy:.1f} %", with_size),
        (times, who),
        (
            f"{max(r.difference for r in results):.0e}",
            "largest change of any output when folding into plain torch layers",
        ),
    ]


def environment(command: str, epochs: int, seed: int, seconds: float) -> list[tuple[str, str]]:
    """What was run, on what.

    Args:
        command: that was run.
        epochs: trained.
        seed: used.
        seconds: that the run took.

    Returns:
        name and HTML value of each fact.
    """
    return [
        ("command", f"<code>{escape(command)}</code>"),
        ("settings", f"{epochs} epochs, seed {seed}, SGD with momentum and a one-cycle schedule, batches of 64"),
        ("data", "1,797 handwritten digits of 8 x 8 pixels, bundled with scikit-learn (UCI, Alpaydin and Kaynak 1998)"),
        ("time", f"{seconds:.0f} s, finished {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"),
        ("machine", escape(f"{_processor()}, {os.cpu_count()} cores, of which torch used one")),
        ("system", escape(f"{platform.system()} {platform.release()}, Python {sys.version.split()[0]}")),
        ("versions", ", ".join([f"weft {weft.__version__}", *(f"{name} {version(name)}" for name in PACKAGES)])),
    ]  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor without a name
        return platform.processor() or platform.machine()


def _card(number: str, sentence: str) -> str:
    return f'<div class="card"><b>{escape(number)}</b><span>{escape(sentence)}</span></div>'


def _picture(name: str, text: str, images: Mapping[tuple[str, str], bytes]) -> str:
    light, dark = (base64.b64encode(images[name, theme]).decode() for theme in ("light", "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
        f'<img alt="{escape(text)}" src="data:image/png;base64,{light}"></picture>'
    )


def _table(results: list[Result], batch: int) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in columns(batch))
    rows = []
    for result in results:
        first, *rest = cells(result)
        dot = f'<span class="dot" style="background:{result.color}"></span>'
        rows.append(f"<tr><td>{dot}{escape(first)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
