"""Time series for forecasting: windows of recorded series, or oscillators with parameters of their own.

A sample is the observed part of a window and the future part that follows it, (T, D) and (H, D), in units of the
training set's standard deviation. Recorded series are cut in time: training, then validation, then test.

Letters: N = rows of a recorded series, or generated series; T = observed samples, H = future ones, D = channels.
"""

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from weft.data.batches import Batches
from weft.data.in_memory import InMemoryData
from weft.errors import OptionError, nearest_name

Source = Literal["lynx_hare", "sunspots_yearly", "sunspots_monthly", "etth1", "oscillators"]
System = Literal["damped", "van_der_pol", "lotka_volterra"]
Array = np.ndarray[Any, np.dtype[np.float64]]
Batch = tuple[Tensor, Tensor]

FOLDER = "timeseries"


class SeriesData(InMemoryData):
    """Windows of time series: an observed part and the future part that a model has to forecast.

    ``(observed (B, T, D), future (B, H, D))``, fp32, each channel minus its mean over its standard deviation, both
    measured on what is trained on. Recorded series (below ``timeseries/`` in ``data_dir`` or ``$WEFT_DATA``):

    ===================  =================  =======================================================================
    source               rows x channels    what
    ===================  =================  =======================================================================
    lynx_hare            21 x 2             thousands of pelts a year, Hudson Bay, 1900 to 1920
    sunspots_yearly      309 x 1            mean sunspot number of a year, 1700 to 2008
    sunspots_monthly     3126 x 1           mean sunspot number of a month, January 1749 to June 2009
    etth1                14400 x 7          an electricity transformer, hourly for 20 months of 30 days (of all 17420
                                            rows the standard ones; default shares give 12, 4 and 4 months)
    ===================  =================  =======================================================================

    They are cut in time: the last ``test_share`` of the rows is the test set, what lies before it ``val_share``, the
    rest the training set. The future part of a window lies in its own set; that of training also its observed part.

    ``"oscillators"`` are generated, each with parameters and a start of its own, from ``split_seed``: "damped"
    (x'' = -w^2 x - 2 d x', w from 0.5 to 2, d from 0 to 0.3), "van_der_pol" (x'' = -w^2 x + m (1 - x^2) x', m from 0.2
    to 3), both with y = x'; and "lotka_volterra" (x' = a (1 - e^y), y' = c (e^x - 1), a and c from 0.5 to 1.5:
    logarithms of prey and predators in units of their equilibrium). The sets share no series.

    Args:
        source: one of the above.
        data_dir: folder that holds ``timeseries/``; None looks in the environment variable ``WEFT_DATA``.
        observed: T, at least 1.
        horizon: H, at least 1.
        stride: rows from one training window to the next, at least 1; validation and test use every window.
        batch_size: windows per step and process in training.
        eval_batch_size: windows per step and process in validation and test; None is ``batch_size``.
        val_share: share of the rows, or of the series generated, in [0, 1).
        test_share: likewise; the two together below 1.
        columns: names of the channels to keep, in this order; None keeps all.
        systems: kinds of oscillators, in equal shares.
        num_series: how many are generated, at least 1.
        sample_step: time from one sample to the next, above 0; an oscillator needs 3 to 15 for a turn.
        noise: standard deviation of normal noise on the observed parts of oscillators, in units of their channels'
            own, at least 0.
        split_seed: of what is generated.

    Raises:
        OptionError: an argument out of range; data that are not there or not as expected; a set too short for a window.

    Source:
        lynx and hare: Howard 2009, Modeling basics, https://www.math.tamu.edu/~phoward/m442/modbasics.pdf; ETTh1: Zhou
        et al. 2021, Informer, https://arxiv.org/abs/2012.07436; sunspots: SIDC, Royal Observatory of Belgium.

    Example:
        >>> data = SeriesData("oscillators", observed=20, horizon=10, num_series=30, batch_size=8)
        >>> observed, future = next(iter(data.train_dataloader()))
        >>> tuple(observed.shape), tuple(future.shape), data.channel_names
        ((8, 20, 2), (8, 10, 2), ['x', 'y'])
    """

    def __init__(
        self,
        source: Source = "oscillators",
        data_dir: str | None = None,
        *,
        observed: int = 32,
        horizon: int = 32,
        stride: int = 1,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_share: float = 0.2,
        test_share: float = 0.2,
        columns: Sequence[str] | None = None,
        systems: Sequence[System] = ("damped", "van_der_pol"),
        num_series: int = 1000,
        sample_step: float = 0.2,
        noise: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size)
        _check_names("source", [source], get_args(Source))
        _check_names("systems", systems, tuple(_SYSTEMS))
        for name, value, fits, rule in (
            ("observed", observed, observed >= 1, "at least 1"),
            ("horizon", horizon, horizon >= 1, "at least 1"),
            ("stride", stride, stride >= 1, "at least 1"),
            ("val_share", val_share, 0 <= val_share < 1, "in [0, 1)"),
            ("test_share", test_share, 0 <= test_share < 1, "in [0, 1)"),
            ("val_share + test_share", val_share + test_share, val_share + test_share < 1, "below 1"),
            ("num_series", num_series, num_series >= 1, "at least 1"),
            ("sample_step", sample_step, 0 < sample_step < np.inf, "finite and above 0"),
            ("noise", noise, 0 <= noise < np.inf, "finite and at least 0"),
        ):
            if not fits:
                raise OptionError(f"{name} must be {rule}, got {value}")
        self.source = source
        self.observed, self.horizon, self.stride = observed, horizon, stride
        self.val_share, self.test_share = val_share, test_share
        self.columns = columns
        self.systems, self.num_series = tuple(systems), num_series
        self.sample_step, self.noise, self.split_seed = sample_step, noise, split_seed
        self._path = None if source == "oscillators" else _find(source, data_dir)
        self._sets: dict[str, Batch] | None = None

    # ------------------------------------------------------------------ what the data are

    @property
    def channel_names(self) -> list[str]:
        """Names of the channels. Reads the data at the first call."""
        self._windows()
        return self._names

    @property
    def channels(self) -> int:
        """D, number of channels."""
        return len(self.channel_names)

    @property
    def mean(self) -> Tensor:
        """(D,), what is subtracted."""
        self._windows()
        return self._mean

    @property
    def std(self) -> Tensor:
        """(D,), what is divided by then."""
        self._windows()
        return self._std

    # ------------------------------------------------------------------ what Lightning calls

    def setup(self, stage: str | None = None) -> None:
        """Reads or generates the series, unless an earlier stage already has.

        Args:
            stage: not used.
        """
        self._windows()

    def train_dataloader(self) -> Batches:
        """Shuffled batches of training windows, in another order every epoch.

        Returns:
            a loader of (observed, future).
        """
        return self._training(*self._windows()["train"])

    def val_dataloader(self) -> Batches | list[Any]:
        """Batches of validation windows, in the order of time.

        Returns:
            a loader of (observed, future); an empty list if ``val_share`` is 0.
        """
        return self._evaluation(*self._windows()["val"]) if self.val_share else []

    def test_dataloader(self) -> Batches | list[Any]:
        """Batches of test windows, in the order of time.

        Returns:
            a loader of (observed, future); an empty list if ``test_share`` is 0.
        """
        return self._evaluation(*self._windows()["test"]) if self.test_share else []

    def predict_dataloader(self) -> Batches | list[Any]:
        """Batches of test windows, in the order of time.

        Returns:
            a loader of (observed, future).
        """
        return self.test_dataloader()

    # ------------------------------------------------------------------ inner workings

    def _windows(self) -> dict[str, Batch]:
        """The sets, normalised."""
        if self._sets is None:
            names, parts = self._generated() if self._path is None else self._recorded(self._path)
            if self.columns is not None:
                _check_names("columns", self.columns, names)
            self._names = list(names if self.columns is None else self.columns)
            kept = [names.index(name) for name in self._names]
            parts = {name: part[..., kept] for name, part in parts.items()}
            train = parts["train"].reshape(-1, len(kept))
            mean, std = train.mean(0), train.std(0)
            if not (std > 0).all():
                constant = self._names[int((std > 0).argmin())]
                raise OptionError(f"the channel {constant!r} is constant in training; leave it out with columns=")
            self._mean, self._std = torch.from_numpy(mean).float(), torch.from_numpy(std).float()
            self._sets = {name: self._pairs(name, (part - mean) / std) for name, part in parts.items()}
        return self._sets

    def _recorded(self, path: Path) -> tuple[list[str], dict[str, Array]]:
        """Names of the channels, and the rows (N, D) of each set, after the T that are observed before its first."""
        names, values = _READERS[self.source](path)
        val, test = (round(share * len(values)) for share in (self.val_share, self.test_share))
        ends = {"train": len(values) - val - test, "val": len(values) - test, "test": len(values)}
        starts = {"train": 0, "val": max(0, ends["train"] - self.observed), "test": max(0, ends["val"] - self.observed)}
        return names, {name: values[starts[name] : end] for name, end in ends.items()}

    def _generated(self) -> tuple[list[str], dict[str, Array]]:
        """Names of the channels, and the series (N, T + H, D) of each set."""
        random = np.random.default_rng(self.split_seed)
        number = -(-self.num_series // len(self.systems))
        times = self.sample_step * np.arange(self.observed + self.horizon, dtype=np.float64)
        series = [oscillators(system, number, times, random) for system in self.systems]
        values = np.stack(series, 1).reshape(-1, *series[0].shape[1:])[: self.num_series]  # the kinds in turn
        val, test = (round(share * len(values)) for share in (self.val_share, self.test_share))
        train = len(values) - val - test
        cuts = dict(zip(("train", "val", "test"), np.split(values, [train, train + val]), strict=True))
        return ["x", "y"], cuts

    def _pairs(self, name: str, values: Array) -> Batch:
        """Observed and future parts: views of the rows, not copies."""
        share = {"val": self.val_share, "test": self.test_share}.get(name, 1)
        length = self.observed + self.horizon
        tensor = torch.from_numpy(values).float()
        if share and (tensor.shape[-2] < length or not len(tensor)):
            generated = self._path is None
            raise OptionError(
                f"the {name} set of {self.source} has {len(tensor)} {'series' if generated else 'rows'}, observed + "
                f"horizon = {self.observed} + {self.horizon} do not fit; take fewer, or another "
                f"{'num_series, ' if generated else ''}val_share and test_share"
            )
        if not share:
            tensor = tensor.new_empty(0, length, tensor.shape[-1])
        elif self._path is not None:
            tensor = tensor.unfold(0, length, self.stride if name == "train" else 1).transpose(1, 2)
        past, future = tensor.split([self.observed, self.horizon], 1)
        if self.noise and self._path is None:
            seed = self.split_seed + ("train", "val", "test").index(name)  # no two sets share their noise
            generator = torch.Generator().manual_seed(seed)
            past = past + self.noise * torch.randn(past.shape, generator=generator)
        return past, future


# ---------------------------------------------------------------------- oscillators


def _damped(x: Array, y: Array, p: Array) -> tuple[Array, Array]:
    return y, -(p[0] ** 2) * x - 2 * p[1] * y


def _van_der_pol(x: Array, y: Array, p: Array) -> tuple[Array, Array]:
    return y, -(p[0] ** 2) * x + p[1] * (1 - x**2) * y


def _lotka_volterra(x: Array, y: Array, p: Array) -> tuple[Array, Array]:
    return p[0] * (1 - np.exp(y)), p[1] * (np.exp(x) - 1)


#: derivatives of both channels, lowest and highest value of each parameter, deviation of the starts
_SYSTEMS: dict[str, tuple[Callable[..., tuple[Array, Array]], list[float], list[float], float]] = {
    "damped": (_damped, [0.5, 0.0], [2.0, 0.3], 1.0),
    "van_der_pol": (_van_der_pol, [0.5, 0.2], [2.0, 3.0], 1.0),
    "lotka_volterra": (_lotka_volterra, [0.5, 0.5], [1.5, 1.5], 0.5),
}


def oscillators(system: System, number: int, times: Array, random: np.random.Generator) -> Array:
    """Oscillators with random parameters and starts, to a relative error of about 1e-8.

    Args:
        system: kind, as in `SeriesData`.
        number: N.
        times: growing, the first one that of the start.
        random: draws the parameters evenly from their ranges, and the starts from a normal law.

    Returns:
        (N, times, 2).
    """
    from scipy.integrate import solve_ivp

    derivative, low, high, deviation = _SYSTEMS[system]
    parameters = random.uniform(low, high, (number, 2)).T
    start = deviation * random.standard_normal((2, number))

    def all_at_once(_: float, state: Array) -> Array:
        return np.concatenate(derivative(*state.reshape(2, number), parameters))

    # The solver's error is a mean over all series; the tolerance leaves room for one that is worse than the others.
    options: dict[str, Any] = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-10}
    solution = solve_ivp(all_at_once, (times[0], times[-1]), start.ravel(), t_eval=times, **options)
    result: Array = solution.y.reshape(2, number, len(times)).transpose(1, 2, 0)
    return result


# ---------------------------------------------------------------------- files


def _find(source: str, data_dir: str | None) -> Path:
    parents = [Path(parent).expanduser() for parent in (data_dir, os.environ.get("WEFT_DATA")) if parent]
    for parent in parents:
        if (path := parent / FOLDER / _FILES[source]).is_file():
            return path
    looked = ", ".join(str((parent / FOLDER / _FILES[source]).absolute()) for parent in parents) or "nowhere"
    raise OptionError(
        f"source={source!r} was not found. Looked for the file: {looked}. Give data_dir=, or set the environment "
        f"variable WEFT_DATA to it: the folder that holds {FOLDER}/{_FILES[source]}"
        "; or take 'oscillators', which are generated"
    )


def _table(path: Path, header: Sequence[str]) -> Array:
    """The numbers of a file of comma-separated values below a header that is known."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line and not line[0].startswith("#")]
    if not lines or lines[0] != list(header):
        raise OptionError(
            f"{path} must have the columns {', '.join(header)}; got {', '.join(lines[0] if lines else [])}"
        )
    return _numbers(path, [line[1:] for line in lines[1:]], len(header) - 1)


def _numbers(path: Path, rows: list[list[str]], width: int) -> Array:
    """All finite, as many in every row."""
    for number, row in enumerate(rows, 1):
        try:
            fits = len(row) == width and bool(np.isfinite([float(cell) for cell in row]).all())
        except ValueError:
            fits = False
        if not fits:
            raise OptionError(f"{path}: row {number} of the data must be {width} finite numbers, got {row}")
    return np.array(rows, dtype=np.float64).reshape(-1, width)


def _lynx_hare(path: Path) -> tuple[list[str], Array]:
    return ["lynx", "hare"], _table(path, ["Year", "Lynx", "Hare"])


def _sunspots_yearly(path: Path) -> tuple[list[str], Array]:
    return ["sunspots"], _table(path, ["YEAR", "SUNACTIVITY"])


def _sunspots_monthly(path: Path) -> tuple[list[str], Array]:
    """Rows of a year and up to twelve numbers, between headings and remarks."""
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line[:4].isdigit()]
    months = [[cell] for row in rows for cell in row[1:]]
    if any(len(row) != 13 for row in rows[:-1]) or not months:
        raise OptionError(f"{path} must have rows of a year and its twelve months; only the last year may have fewer")
    return ["sunspots"], _numbers(path, months, 1)


def _etth1(path: Path) -> tuple[list[str], Array]:
    names = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    return names, _table(path, ["date", *names])[: 20 * 30 * 24]


_FILES = {
    "lynx_hare": "hudson-bay-lynx-hare.csv",
    "sunspots_yearly": "sunspots_yearly.csv",
    "sunspots_monthly": "sunspots_monthly.dat",
    "etth1": "ETT-small/ETTh1.csv",
}
_READERS: dict[str, Callable[[Path], tuple[list[str], Array]]] = {
    "lynx_hare": _lynx_hare,
    "sunspots_yearly": _sunspots_yearly,
    "sunspots_monthly": _sunspots_monthly,
    "etth1": _etth1,
}


def _check_names(argument: str, names: Sequence[str], known: Sequence[str]) -> None:
    if not names:
        raise OptionError(f"{argument} must name at least one of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise OptionError(f"{argument}: {name!r} is none of {', '.join(known)}{nearest_name(str(name), known)}")
