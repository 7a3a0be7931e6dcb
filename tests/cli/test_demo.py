"""``weft demo`` leaves a whole report whose numbers agree everywhere, and never an earlier one overwritten."""

import base64
import csv
import html
import itertools
import re

import pytest
from matplotlib.figure import Figure

from weft.cli import demo
from weft.cli.demo import figures, folder, training
from weft.cli.demo.results import Result, as_csv
from weft.cli.main import main
from weft.errors import OptionError
from weft.models import SmallCNN

PNG = b"\x89PNG\r\n\x1a\n"


def result(label="Plain", parameters=1000, accuracy=0.9, share=1.0):
    return Result(
        label=label, color="#1d5fd0", parameters=parameters, share=share, accuracy=accuracy, step_ms=1.25,
        latency_ms=0.5, difference=2e-6, losses=[1.0, 0.1], accuracies=[0.5, 0.9],
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of one short demo, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "TURNS", (2, 2))
        assert main(["demo", "--epochs", "1", "--variants", "plain", "phc4", "--out", str(out)]) == 0
    return out


def table_of(page):
    body = re.search(r"<tbody>(.*?)</tbody>", page, re.DOTALL)[1]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]
    return [[html.unescape(re.sub(r"<.*?>", "", cell)) for cell in row] for row in rows]


def test_report_is_whole_and_self_contained(report):
    assert sorted(path.name for path in report.iterdir()) == sorted(folder.FILES)
    assert not [path for path in report.parent.iterdir() if path != report]  # nothing half-written beside it
    assert (report / "pareto.png").read_bytes().startswith(PNG)
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "http" not in page and "url(" not in page and "<script" not in page and "<link" not in page
    embedded = re.findall(r'(?:src|srcset)="(.*?)"', page)
    assert len(embedded) == 4
    for address in embedded:
        assert address.startswith("data:image/png;base64,")
        assert base64.b64decode(address.partition(",")[2]).startswith(PNG)
    assert "weft demo --epochs 1" in page


def test_numbers_agree_in_csv_markdown_and_html(report):
    heading, *rows = csv.reader((report / "results.csv").read_text(encoding="utf-8").splitlines())
    assert [row[0] for row in rows] == ["Plain torch", "PHC n=4"]
    assert table_of((report / "report.html").read_text(encoding="utf-8")) == rows
    lines = (report / "results.md").read_text(encoding="utf-8").replace("\\|", "\0").splitlines()
    cells = [[cell.strip().replace("\0", "|") for cell in line.strip("|").split("|")] for line in lines]
    assert [cells[0], *cells[2:]] == [heading, *rows]


def test_numbers_are_those_of_the_networks(report):
    _, plain, phc = csv.reader((report / "results.csv").read_text(encoding="utf-8").splitlines())
    counts = [
        sum(p.numel() for p in SmallCNN(family_stem=False, **options).parameters())
        for options in ({}, {"parametrization": "kronecker", "options": {"n": 4}})
    ]
    assert [int(plain[1]), int(phc[1])] == counts
    assert [plain[2], phc[2]] == ["1.000", f"{counts[1] / counts[0]:.3f}"]
    assert all(0.2 < float(row[3]) <= 1 for row in (plain, phc))  # one epoch is enough to beat chance
    assert all(float(row[6]) < 1e-4 for row in (plain, phc))


def test_second_demo_is_written_beside_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "train_all", lambda *_: [result()])
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["demo", "--out", str(out)]) == 0
    assert "holds an earlier demo and was left alone" in " ".join(capsys.readouterr().out.split())
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "demo-2").iterdir()) == sorted(folder.FILES)
    monkeypatch.setattr(demo, "train_all", lambda *_: [result(label="Newer")])
    assert main(["demo", "--out", str(out), "--overwrite"]) == 0
    assert "Newer" in (out / "results.csv").read_text(encoding="utf-8")


def test_overwriting_spares_what_is_not_a_demo(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OptionError, match=r"holds 'thesis\.tex', which no demo wrote"):
        folder.claim(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(folder, "report", fail)
    with pytest.raises(ZeroDivisionError):
        folder.publish(tmp_path / "demo", [result()], "weft demo", 1, 0, 1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be in [0, 2**32), got -1"),
        (["--variants", "quatern"], "unknown 'quatern'; did you mean 'quaternion'?"),
    ],
)
def test_mistake_is_told_in_one_line(capsys, arguments, message):
    assert main(["demo", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_csv_quotes_what_needs_it():
    heading, row = csv.reader(as_csv([result(label='Low rank, "a|b"')], 64).splitlines())
    assert row[0] == 'Low rank, "a|b"' and len(row) == len(heading)


def test_labels_cover_neither_each_other_nor_a_point_even_where_points_meet():
    axes = Figure(figsize=(8, 5), layout="constrained").subplots()
    points = [(1.0, 1.0), (1.0, 1.0), (1.02, 1.0), (1.0, 1.02), (0.0, 0.0), (2.0, 2.0)]
    axes.set_xlim(-0.2, 2.2)
    axes.set_ylim(-0.2, 2.2)
    boxes = figures.place_labels(axes, points, ["a long label"] * 6, ["#000000"] * 6, "#ffffff", points[4:])
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    pixels = [axes.transData.transform(point) for point in points]
    assert not any(box.contains(*pixel) for box in boxes for pixel in pixels)
    frame = axes.get_window_extent()
    assert all(frame.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_front_keeps_what_no_smaller_one_beats():
    small, middle, large = result("s", 10, 0.8), result("m", 20, 0.7), result("l", 30, 0.9)
    assert figures._front([large, middle, small]) == [small, large]
