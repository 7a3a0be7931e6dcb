"""Windows of series, against slow loops over the files' own text, and oscillators against scipy one by one."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from weft.data import SeriesData
from weft.data.timeseries import oscillators
from weft.errors import OptionError


@pytest.fixture
def folder(tmp_path):
    """``timeseries/`` as it is laid out, with short files of random numbers."""
    random = np.random.default_rng(0)
    place = tmp_path / "timeseries"
    (place / "ETT-small").mkdir(parents=True)
    yearly = "".join(f"{1700 + i},{x:.1f}\n" for i, x in enumerate(random.uniform(0, 150, 50)))
    (place / "sunspots_yearly.csv").write_text('"YEAR","SUNACTIVITY"\n' + yearly)
    pelts = "\n".join(f"{1900 + i}, {x:.1f}, {y:.1f}" for i, (x, y) in enumerate(random.uniform(5, 80, (21, 2))))
    (place / "hudson-bay-lynx-hare.csv").write_text(f"# from a book\n# again\nYear, Lynx, Hare\n{pelts}")
    years = [f"{1749 + i} " + "".join(f"{x:6.1f}" for x in random.uniform(0, 250, 12)) for i in range(6)]
    text = "\n".join(
        ["Monthly numbers", "Year  Jan", "----", *years[:5], "", years[5], "1755   1.5  2.5", "---", "Note."]
    )
    (place / "sunspots_monthly.dat").write_text(text)
    names = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"
    rows = [",".join(["2016-07-01 00:00:00", *(f"{x:.4f}" for x in row)]) for row in random.normal(5, 2, (60, 7))]
    (place / "ETT-small" / "ETTh1.csv").write_text("\n".join([names, *rows]))
    return tmp_path


def whole(loader):
    batches = list(loader)
    return tuple(torch.cat([batch[i] for batch in batches]) for i in range(2))


def test_windows_are_those_of_a_slow_loop(folder):
    given = {"observed": 5, "horizon": 3, "eval_batch_size": 4, "val_share": 0.2, "test_share": 0.26}
    data = SeriesData("sunspots_yearly", str(folder), stride=2, batch_size=10, **given)
    lines = (folder / "timeseries" / "sunspots_yearly.csv").read_text().split()[1:]
    values = [float(line.split(",")[1]) for line in lines]
    ends = (27, 37, 50)  # 10 of 50 rows are for validation, 13 for the test
    mean = sum(values[:27]) / 27
    std = (sum((x - mean) ** 2 for x in values[:27]) / 27) ** 0.5
    assert data.mean.item() == pytest.approx(mean, rel=1e-6) and data.std.item() == pytest.approx(std, rel=1e-6)
    normal = [(x - mean) / std for x in values]
    for loader, starts in (
        (data.val_dataloader(), range(ends[0] - 5, ends[1] - 7)),  # futures begin at row 27 and end with row 36
        (data.test_dataloader(), range(ends[1] - 5, ends[2] - 7)),
    ):
        observed, future = whole(loader)
        assert observed.shape == (len(starts), 5, 1) and observed.dtype == torch.float32
        for window, start in enumerate(starts):
            np.testing.assert_allclose(observed[window, :, 0], normal[start : start + 5], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(future[window, :, 0], normal[start + 5 : start + 8], rtol=1e-5, atol=1e-6)
    observed, future = whole(data.train_dataloader())
    expected = [normal[start : start + 8] for start in range(0, 27 - 7, 2)]
    found = torch.cat([observed, future], 1)[:, :, 0].tolist()
    np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "names", "file", "rows", "position"),
    [
        ("lynx_hare", ["lynx", "hare"], "hudson-bay-lynx-hare.csv", 21, lambda lines: lines[3 + 4].split(",")[1:]),
        ("sunspots_monthly", ["sunspots"], "sunspots_monthly.dat", 74, lambda lines: lines[3].split()[5:6]),
        ("etth1", [*["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]], "ETT-small/ETTh1.csv", 60,
         lambda lines: lines[1 + 4].split(",")[1:]),
    ],
)  # fmt: skip
def test_files_are_read_as_they_are(folder, source, names, file, rows, position):
    data = SeriesData(source, str(folder), observed=3, horizon=2, val_share=0, test_share=0, batch_size=1)
    assert data.channel_names == names
    assert len(data.train_dataloader()) == rows - 4
    assert data.val_dataloader() == [] and data.test_dataloader() == []
    fifth = torch.tensor([float(x) for x in position((folder / "timeseries" / file).read_text().splitlines())])
    _, future = whole(data.train_dataloader())
    in_units = future * data.std + data.mean
    assert (in_units[:, 1] - fifth).abs().amax(1).min() < 1e-4  # the last row of the first window
    if source == "etth1":
        some = SeriesData(source, str(folder), observed=3, horizon=2, columns=["OT", "HUFL"])
        mean = SeriesData(source, str(folder), observed=3, horizon=2).mean
        torch.testing.assert_close(some.mean, mean[[6, 0]])
        assert some.channels == 2 and some.channel_names == ["OT", "HUFL"]


@pytest.mark.parametrize("system", ["damped", "van_der_pol", "lotka_volterra"])
def test_oscillators_solve_their_equations(system):
    times = np.linspace(0, 8, 30)
    found = oscillators(system, 3, times, np.random.default_rng(5))
    random = np.random.default_rng(5)
    low, high = {"damped": ([0.5, 0], [2, 0.3]), "van_der_pol": ([0.5, 0.2], [2, 3])}.get(
        system, ([0.5, 0.5], [1.5, 1.5])
    )
    parameters = random.uniform(low, high, (3, 2))
    for row, (a, b) in enumerate(parameters):
        equation = {
            "damped": lambda _, s: [s[1], -a * a * s[0] - 2 * b * s[1]],  # noqa: B023
            "van_der_pol": lambda _, s: [s[1], -a * a * s[0] + b * (1 - s[0] ** 2) * s[1]],  # noqa: B023
            "lotka_volterra": lambda _, s: [a * (1 - np.exp(s[1])), b * (np.exp(s[0]) - 1)],  # noqa: B023
        }[system]
        exact = solve_ivp(equation, (0, 8), found[row, 0], t_eval=times, rtol=1e-10, atol=1e-12).y.T
        np.testing.assert_allclose(found[row], exact, atol=1e-6)
        if system == "damped":
            (x, y), w = found[row, 0], np.sqrt(a * a - b * b)
            closed = np.exp(-b * times) * (x * np.cos(w * times) + (y + b * x) / w * np.sin(w * times))
            np.testing.assert_allclose(found[row, :, 0], closed, atol=1e-7)


def test_generated_sets_are_apart_and_repeatable():
    given = {"observed": 6, "horizon": 4, "num_series": 50, "batch_size": 30}
    data, again = SeriesData(**given), SeriesData(**given)
    sets = {name: torch.cat(pair, 1) for name, pair in data._windows().items()}
    assert [len(part) for part in sets.values()] == [30, 10, 10]
    together = torch.cat(list(sets.values())).flatten(1)
    assert torch.cdist(together, together).fill_diagonal_(9).min() > 1e-3
    torch.testing.assert_close(whole(data.test_dataloader()), whole(again.test_dataloader()))
    torch.testing.assert_close(sets["train"].mean((0, 1)), torch.zeros(2), atol=1e-5, rtol=0)
    noisy = SeriesData(**given, noise=0.5)
    (clean, same), (past, future) = data._windows()["train"], noisy._windows()["train"]
    torch.testing.assert_close(same, future)
    assert (past - clean).std().item() == pytest.approx(0.5, rel=0.15)
    val, test = ((noisy._windows()[name][0] - data._windows()[name][0]) for name in ("val", "test"))
    assert (val - test).abs().max() > 0.5  # each set has noise of its own
    other = SeriesData(**given, split_seed=1)
    assert (whole(other.test_dataloader())[0] - whole(data.test_dataloader())[0]).abs().min() > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "sunspots"}, "source: 'sunspots' is none of lynx_hare"),
        ({"observed": 0}, "observed must be at least 1, got 0"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"val_share": 0.6, "test_share": 0.4}, "val_share . test_share must be below 1"),
        ({"systems": ()}, "systems must name at least one of damped"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"sample_step": 0.0}, "sample_step must be finite and above 0"),
        ({"noise": -1.0}, "noise must be finite and at least 0"),
        ({"columns": ["z"]}, "columns: 'z' is none of x, y"),
        ({"num_series": 2}, r"the val set of oscillators has 0 series"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    with pytest.raises(OptionError, match=message):
        SeriesData(**{"source": "oscillators", **given}).setup()


def test_missing_and_broken_files_are_named(folder, monkeypatch):
    monkeypatch.delenv("WEFT_DATA", raising=False)
    with pytest.raises(OptionError, match=r"'lynx_hare' was not found. Looked for the file: nowhere. Give data_dir="):
        SeriesData("lynx_hare")
    monkeypatch.setenv("WEFT_DATA", str(folder))
    with pytest.raises(
        OptionError, match=r"train set of lynx_hare has 13 rows, observed \+ horizon = 6 \+ 8 do not fit"
    ):
        SeriesData("lynx_hare", observed=6, horizon=8).setup()
    path = folder / "timeseries" / "sunspots_yearly.csv"
    for text, message in (
        ("A,B\n1,2\n", "must have the columns YEAR, SUNACTIVITY; got A, B"),
        ("YEAR,SUNACTIVITY\n1700,5\n1701,nan\n", "row 2 of the data must be 1 finite numbers, got .'nan'."),
        ("YEAR,SUNACTIVITY\n" + "1700,5\n" * 90, "'sunspots' is constant in training"),
    ):
        path.write_text(text)
        with pytest.raises(OptionError, match=message):
            SeriesData("sunspots_yearly", observed=3, horizon=3).setup()
