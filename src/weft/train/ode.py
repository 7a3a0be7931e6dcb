"""Forecasting by differential equations: the observed part of a series makes the weights of its dynamics.

    e_b = encoder(observed_b),    theta_b = H(e_b),    dz_b/dt = f(z_b, t; theta_b),    z_b(0) = [y_b, start(e_b)]

y_b: the last value observed. Letters: B = series, T = observed samples, H = future ones, D = channels, Z = latent
numbers beside them.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

import weft
from weft.errors import OptionError, SizeError
from weft.hypernet.hypernetwork import Kind
from weft.hypernet.ode import Gradient, Method, check_solver, solve_ode
from weft.train.base import TrainingModule
from weft.train.schedules import OptimizerName, ScheduleName

Batch = tuple[Tensor, Tensor]
PLOT = "forecast.png"
_METRICS = ("mse", "mae", "persistence_mse", "persistence_mae")


class ODEForecaster(TrainingModule):
    """Forecasts each series by a differential equation of its own, whose weights come from what was observed of it.

        e_b = encoder(observed_b),    theta_b = H(e_b),    dz_b/dt = f(z_b, t; theta_b)

    z_b has the D channels, which start at the last value observed, and Z latent numbers, which start where the code
    tells: with one channel and no latent numbers nothing could oscillate. f is an MLP with tanh, so its speed is
    bounded and no state runs away in finite time. H is a ``weft.HyperNetwork``; all series of a batch are solved in
    one call, each with steps of its own size.

    Minimises the mean squared error of the H future samples, in the units of the data. Logs ``train/loss``, and for
    "val" and "test" ``loss``, ``mse`` (the same) and ``mae``, beside ``persistence_mse`` and ``persistence_mae`` of the
    naive forecast that nothing changes. After a test it draws ``plots`` series into ``forecast.png`` in the trainer's
    ``default_root_dir``, the folder of the run.

    Args:
        channels: D, at least 1.
        observed: T, at least 1.
        latent: Z, at least 0.
        encoder: "mlp" sees the whole observed part at once, "gru" sample by sample.
        encoder_width: of its hidden layer or state, at least 1.
        code: size of e, at least 1.
        dynamics: widths of the hidden layers of f.
        kind: of the hypernetwork.
        generator: widths of its hidden layers.
        time_input: whether f sees the time since the last observation.
        normalize_window: whether each channel of each series is standardised by the mean and deviation of its own
            observed part, and its forecast scaled back: for series whose level or size moves away from that of the
            training set.
        sample_step: time from one sample to the next in the time of the equation, above 0. f starts with values of
            about 1 or less, so a rise from 0 to 1 should last about one unit.
        gradient: "direct" or "adjoint", as in ``weft.hypernet.solve_ode``; so are the next five.
        method: of the solver.
        rtol: relative tolerance.
        atol: absolute tolerance, in units of the data.
        solver_step: fixed size of a step, in the time of the equation; None adapts it.
        max_steps: of the solver, per series.
        optimizer: "sgd", "adam" or "adamw".
        lr: learning rate, the highest of the schedule.
        weight_decay: at least 0.
        schedule: "onecycle", "cosine" or "constant"; stepped with every optimizer step over the whole run.
        plots: series to draw after a test, evenly spread over the first batch; 0 is off.
        **options: further ones of the hypernetwork, such as ``num_chunks``, ``rank`` and ``init``.

    Raises:
        OptionError: an argument out of range; a data module with other channels or another observed part.

    Source:
        Chen et al. 2018, Neural ordinary differential equations, https://arxiv.org/abs/1806.07366; Dupont, Doucet and
        Teh 2019, Augmented neural ODEs, https://arxiv.org/abs/1904.01681 (the latent numbers); Kim et al. 2022,
        Reversible instance normalization, https://openreview.net/forum?id=cGDAkQo1C0p (``normalize_window``).

    Example:
        >>> import torch
        >>> model = ODEForecaster(channels=2, observed=10)
        >>> tuple(model(torch.randn(3, 10, 2), horizon=5).shape)
        (3, 5, 2)
    """

    def __init__(
        self,
        channels: int,
        observed: int,
        *,
        latent: int = 0,
        encoder: Literal["mlp", "gru"] = "mlp",
        encoder_width: int = 64,
        code: int = 16,
        dynamics: Sequence[int] = (32,),
        kind: Kind = "full",
        generator: Sequence[int] = (16,),
        time_input: bool = False,
        normalize_window: bool = False,
        sample_step: float = 0.1,
        gradient: Gradient = "direct",
        method: Method = "dopri5",
        rtol: float = 1e-3,
        atol: float = 1e-3,
        solver_step: float | None = None,
        max_steps: int = 1000,
        optimizer: OptimizerName = "adam",
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        schedule: ScheduleName = "cosine",
        plots: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value, fits, rule in (
            ("channels", channels, channels >= 1, "at least 1"),
            ("observed", observed, observed >= 1, "at least 1"),
            ("latent", latent, latent >= 0, "at least 0"),
            ("encoder", encoder, encoder in ("mlp", "gru"), "'mlp' or 'gru'"),
            ("encoder_width", encoder_width, encoder_width >= 1, "at least 1"),
            ("code", code, code >= 1, "at least 1"),
            ("sample_step", sample_step, 0 < sample_step < float("inf"), "finite and above 0"),
            ("lr", lr, lr > 0, "above 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("schedule", schedule, schedule in ("onecycle", "cosine", "constant"), "onecycle, cosine or constant"),
            ("plots", plots, plots >= 0, "at least 0"),
        ):
            if not fits:
                raise OptionError(f"{name} must be {rule}, got {value!r}")
        self.solver: dict[str, Any] = {
            "gradient": gradient, "method": method, "rtol": rtol, "atol": atol, "step": solver_step,
            "max_steps": max_steps,
        }  # fmt: skip
        check_solver(**self.solver)
        self.save_hyperparameters()
        self.channels, self.observed = channels, observed
        self.encoder = _MLPEncoder(observed * channels, encoder_width, code) if encoder == "mlp" else _GRUEncoder(
            channels, encoder_width, code
        )  # fmt: skip
        size = channels + latent
        self.start = nn.Linear(code, latent) if latent else None
        widths = [size + time_input, *dynamics]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
        self.hyper = weft.HyperNetwork(
            nn.Sequential(*layers, nn.Linear(widths[-1], size)),
            condition=code, kind=kind, hidden=tuple(generator), **{"activation": "tanh", **options},
        )  # fmt: skip
        self.means = nn.ModuleDict(
            {f"{stage}_{what}": MeanMetric(nan_strategy="disable") for stage in ("val", "test") for what in _METRICS}
        )
        self._drawn: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, observed: Tensor, horizon: int) -> Tensor:
        """The forecast.

        Args:
            observed: (B, T, D).
            horizon: H, at least 1; any, not only that of training.

        Returns:
            (B, H, D).
        """
        if horizon < 1:
            raise OptionError(f"horizon must be at least 1 sample, got {horizon}")
        if observed.dim() != 3 or observed.shape[1:] != (self.observed, self.channels):
            raise SizeError(
                f"observed must be (series, {self.observed}, {self.channels}), as observed= and channels= say; got "
                f"{tuple(observed.shape)}"
            )
        observed, options = observed.to(self.dtype), cast(Any, self.hparams)
        mean, std = observed.new_zeros(()), observed.new_ones(())
        if options.normalize_window:
            variance, mean = torch.var_mean(observed, 1, correction=0, keepdim=True)
            std = (variance + 1e-5).sqrt()  # of a series that rests, too
            observed = (observed - mean) / std
        code = self.encoder(observed)
        z = observed[:, -1] if self.start is None else torch.cat([observed[:, -1], self.start(code)], 1)
        times = options.sample_step * torch.arange(horizon + 1, device=z.device, dtype=z.dtype)
        path = solve_ode(self.hyper, z, times, condition=code, time_input=options.time_input, **self.solver)
        return path[:, 1:, : self.channels] * std + mean

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean squared error of the forecasts of one batch.

        Args:
            batch: observed and future parts.
            batch_idx: not used.

        Returns:
            the loss.
        """
        observed, future = batch
        loss = (self(observed, future.shape[1]) - future).square().mean()
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(future))
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds one batch to the test metrics; keeps the first one's series that are to be drawn.

        Args:
            batch: observed and future parts.
            batch_idx: number of the batch.
        """
        forecast = self._evaluate("test", batch)
        plots = min(int(cast(Any, self.hparams).plots), len(forecast))
        if batch_idx == 0 and plots:
            rows = torch.linspace(0, len(forecast) - 1, plots).round().long()
            observed, future, forecast = (x.float().cpu()[rows] for x in (*batch, forecast))
            self._drawn = observed, future, forecast

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Forecasts.

        Args:
            batch: observed and future parts.
            batch_idx: not used.

        Returns:
            (B, H, D), in the units of the data module.
        """
        return self(batch[0], batch[1].shape[1]).float()

    def _evaluate(self, stage: str, batch: Batch) -> Tensor:
        observed, future = batch
        with torch.no_grad():
            forecast: Tensor = self(observed, future.shape[1])
        for name, guess in (("", forecast), ("persistence_", observed[:, -1:].expand_as(future))):
            error = (guess - future).float()
            for what, value in (("mse", error.square()), ("mae", error.abs())):
                mean = cast(MeanMetric, self.means[f"{stage}_{name}{what}"])
                mean.update(value.mean((1, 2)))  # once per series, so that a small last batch counts for less
                self.log(f"{stage}/{name}{what}", mean, on_step=False, on_epoch=True, prog_bar=not name)
                if not name and what == "mse":
                    self.log(f"{stage}/loss", mean, on_step=False, on_epoch=True)
        return forecast

    def on_test_epoch_end(self) -> None:
        """Draws the forecasts into the folder of the run."""
        if self._drawn is None or not self.trainer.is_global_zero:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        mean, std = (getattr(data, name, default) for name, default in (("mean", 0.0), ("std", 1.0)))
        names = getattr(data, "channel_names", [f"channel {index}" for index in range(self.channels)])
        series = [part * std + mean for part in self._drawn]
        plot_forecasts(Path(self.trainer.default_root_dir) / PLOT, names, *series)
        self._drawn = None

    def _sizes(self) -> dict[str, Any]:
        return {"channels": self.channels, "observed": self.observed}


class _MLPEncoder(nn.Sequential):
    """Code of the whole observed part."""

    def __init__(self, inputs: int, width: int, code: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, code))


class _GRUEncoder(nn.Module):
    """Code of the state after the last sample."""

    def __init__(self, channels: int, width: int, code: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, width, batch_first=True)
        self.head = nn.Linear(width, code)

    def forward(self, observed: Tensor) -> Tensor:
        return self.head(self.gru(observed)[0][:, -1])


def plot_forecasts(path: Path, names: Sequence[str], observed: Tensor, future: Tensor, forecast: Tensor) -> None:
    """Draw a row of axes per series and a column per channel: observed, what followed, the forecast.

    Args:
        path: of the PNG file; its folder is made.
        names: of the channels.
        observed: (series, T, D).
        future: (series, H, D).
        forecast: (series, H, D).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number, past, channels = observed.shape
    figure = Figure(figsize=(max(6, 3.2 * channels), 1.7 * number + 0.6), layout="constrained")
    axes = figure.subplots(number, channels, squeeze=False, sharex=True)
    before, after = torch.arange(1 - past, 1), torch.arange(0, future.shape[1] + 1)
    for row in range(number):
        for column in range(channels):
            ax, last = axes[row, column], observed[row, -1:, column]
            ax.plot(before, observed[row, :, column], color="0.55", label="observed")
            ax.plot(after, torch.cat([last, future[row, :, column]]), color="black", label="truth")
            ax.plot(after, torch.cat([last, forecast[row, :, column]]), color="#d62728", label="forecast", ls="--")
            ax.axvline(0, color="0.8", lw=0.8, zorder=0)
            if row == 0:
                ax.set_title(names[column], fontsize=9)
            if row == number - 1:
                ax.set_xlabel("samples after the last observed", fontsize=8)
            ax.tick_params(labelsize=7)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
