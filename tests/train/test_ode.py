"""Forecasting by differential equations: the forecast, the metrics, the plot, and training."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from weft.data import SeriesData
from weft.errors import OptionError, SizeError
from weft.hypernet import solve_ode
from weft.train import ODEForecaster


def fit(module, data, tmp_path, **options):
    pl.seed_everything(0, verbose=False)
    given = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = pl.Trainer(**given, enable_checkpointing=False, default_root_dir=tmp_path, **options)
    run.fit(module, datamodule=data)
    return run


def oscillators(**options):
    return SeriesData(observed=8, horizon=6, batch_size=16, eval_batch_size=7, **{"num_series": 60, **options})


@pytest.mark.parametrize("encoder", ["mlp", "gru"])
def test_forecast_is_the_solution_from_the_last_value(encoder):
    torch.manual_seed(0)
    module = ODEForecaster(2, 8, latent=3, encoder=encoder, time_input=True, sample_step=0.4, kind="low_rank").double()
    observed = torch.randn(5, 8, 2, dtype=torch.float64)
    forecast = module(observed, 6)
    code = module.encoder(observed)
    state = torch.cat([observed[:, 7], module.start(code)], 1)
    times = torch.tensor([0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4], dtype=torch.float64)
    path = solve_ode(module.hyper, state, times, condition=code, time_input=True)
    torch.testing.assert_close(forecast, path[:, 1:, :2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(module(observed[3:4], 6), forecast[3:4], rtol=1e-10, atol=1e-10)
    assert (forecast[0] - forecast[1]).abs().max() > 0.01


def test_windows_of_another_level_and_size_are_forecast_alike():
    """Scaled and shifted by a and b per channel, a series is forecast as before, scaled and shifted."""
    torch.manual_seed(0)
    module = ODEForecaster(2, 8, latent=1, normalize_window=True).double()
    x = torch.randn(3, 8, 2, dtype=torch.float64)
    a, b = torch.tensor([3.0, 0.5], dtype=torch.float64), torch.tensor([-7.0, 2.0], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(a * x + b, 4), a * module(x, 4) + b, rtol=1e-3, atol=1e-3)
        assert module(torch.full((1, 8, 2), 5.0, dtype=torch.float64), 4).isfinite().all()  # a series that rests
        plain = ODEForecaster(2, 8, latent=1).double()
        assert (plain(a * x + b, 4) - a * plain(x, 4) - b).abs().max() > 0.1


@pytest.mark.parametrize("options", [{"kind": "chunked", "num_chunks": 4}, {"kind": "low_rank", "rank": 1}])
def test_options_of_the_hypernetwork_are_passed_on(options):
    module = ODEForecaster(1, 8, **options)
    assert module.hyper.kind == options["kind"] and module.hparams["kind"] == options["kind"]
    assert module(torch.randn(5, 8, 1), 3).shape == (5, 3, 1)


def test_metrics_are_means_over_all_series_beside_persistence_and_the_plot_is_drawn(tmp_path):
    data = oscillators()
    module = ODEForecaster(2, 8, plots=3)
    run = fit(module, data, tmp_path, max_epochs=1)
    assert {"loss", "train/loss", "val/loss", "val/mae", "val/persistence_mse"} <= set(run.callback_metrics)
    metrics = run.test(module, datamodule=data, verbose=False)[0]
    observed, future = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        forecast = module(observed, 6)
    persistence = observed[:, 7:].repeat(1, 6, 1)
    for name, guess in (("", forecast), ("persistence_", persistence)):
        error = (guess - future).double()
        assert metrics[f"test/{name}mse"] == pytest.approx(error.square().mean().item(), rel=1e-5)
        assert metrics[f"test/{name}mae"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert metrics["test/loss"] == metrics["test/mse"]
    with Image.open(tmp_path / "forecast.png") as picture:
        assert min(picture.size) > 300
        assert len({pixel for _, pixel in picture.convert("RGB").getcolors(10**6)}) > 20
    predicted = torch.cat(run.predict(module, datamodule=data))
    torch.testing.assert_close(predicted, forecast)


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_training_learns_and_reaches_every_parameter(gradient, tmp_path):
    data = oscillators(systems=["damped"], sample_step=0.3, val_share=0)
    steps = 40 if gradient == "direct" else 2
    module = ODEForecaster(2, 8, latent=1, gradient=gradient, lr=1e-2, sample_step=0.3, schedule="constant")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    observed, future = data._windows()["train"]
    error = (module(observed, 6) - future).square().mean()
    run = fit(module, data, tmp_path, max_steps=steps, limit_val_batches=0)
    assert all((p != before[name]).any() for name, p in module.named_parameters())
    after = (module(observed, 6) - future).square().mean()
    assert after < (0.6 * error if gradient == "direct" else error)
    assert 0 < run.callback_metrics["loss"] < 10


def test_one_training_step_has_the_same_gradients_either_way():
    found = []
    for gradient in ("direct", "adjoint"):
        torch.manual_seed(0)
        module = ODEForecaster(2, 4, latent=1, gradient=gradient, rtol=1e-7, atol=1e-7).double()
        module.log = lambda *_, **__: None
        random = torch.Generator().manual_seed(1)
        batch = [torch.randn(3, n, 2, dtype=torch.float64, generator=random) for n in (4, 2)]
        module.training_step(tuple(batch), 0).backward()
        found.append([p.grad for p in module.parameters()])
    for direct, adjoint in zip(*found, strict=True):
        torch.testing.assert_close(adjoint, direct, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder": "lstm"}, "encoder must be 'mlp' or 'gru', got 'lstm'"),
        ({"latent": -1}, "latent must be at least 0"),
        ({"sample_step": 0.0}, "sample_step must be finite and above 0"),
        ({"gradient": "both"}, "gradient must be one of direct, adjoint"),
        ({"schedule": "multistep"}, "schedule must be onecycle, cosine or constant"),
        ({"plots": -2}, "plots must be at least 0"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(OptionError, match=message):
        ODEForecaster(2, 8, **given)


def test_data_that_do_not_fit_are_refused(tmp_path):
    for module, message in (
        (ODEForecaster(3, 8), "model has channels=3, the data have 2"),
        (ODEForecaster(2, 9), "model has observed=9, the data have 8"),
    ):
        with pytest.raises(OptionError, match=message):
            fit(module, oscillators(), tmp_path, max_epochs=1)
    with pytest.raises(OptionError, match="horizon must be at least 1 sample, got 0"):
        ODEForecaster(2, 8)(torch.ones(3, 8, 2), 0)
    with pytest.raises(SizeError, match=r"observed must be \(series, 8, 2\)"):
        ODEForecaster(2, 8)(torch.ones(3, 7, 2), 2)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path):
    """Weights, optimizer, schedule and the order of the series come from the checkpoint, not from the seed."""

    def run(seed, **options):
        pl.seed_everything(seed, verbose=False)
        module, keep = ODEForecaster(2, 8), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        resume = options.pop("resume", None)
        trainer = pl.Trainer(**quiet, callbacks=[keep], **options)
        trainer.fit(module, datamodule=oscillators(), ckpt_path=resume)
        return module.state_dict()

    whole, other = run(1, max_epochs=2), run(2, max_epochs=2)
    run(1, max_epochs=2)  # the checkpoints of seed 1 again
    resumed = run(2, max_epochs=2, resume=tmp_path / "epoch=0.ckpt")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not all(torch.equal(value, other[name]) for name, value in whole.items())
    with pytest.raises(OptionError, match="was to take 4 steps, this one takes 6"):
        run(1, max_epochs=3, resume=tmp_path / "epoch=0.ckpt")
