"""The toy experiment on depth and rank: against a loop over its members, and its claim."""

import math

import pytest
import torch

import weft
from weft.cli.main import main
from weft.errors import OptionError
from weft.train import rank_experiment
from weft.train.rank_experiment import _chain, _problems, rank_bias

F64 = torch.float64


def test_a_batch_of_members_trains_as_each_of_them_alone():
    options = {"dim": 5, "samples": 4, "steps": 8, "momentum": 0.8, "clip": 0.7, "seeds": 2, "dtype": F64}
    (found,) = rank_bias((3,), (2,), (0.05, 0.4), **options)
    errors = {}
    for lr in (0.05, 0.4):
        for seed in range(2):
            inputs, targets = _problems((2,), 2, 5, 4, F64)
            x, target = inputs[seed], targets[seed][0]
            weights = [w.clone().requires_grad_() for w in _chain(3, 2, 5, F64)[seed]]
            speeds = [torch.zeros(5, 5, dtype=F64) for _ in weights]
            for step in range(8):
                loss = (x @ weights[0] @ weights[1] @ weights[2] - x @ target).square().mean()
                gradients = torch.autograd.grad(loss, weights)
                norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
                rate = lr / 10 if step >= 6 else lr
                for i, gradient in enumerate(gradients):
                    speeds[i] = 0.8 * speeds[i] + min(1, 0.7 / norm) * gradient
                    weights[i] = (weights[i] - rate * speeds[i]).detach().requires_grad_()
            product = (weights[0] @ weights[1] @ weights[2]).detach()
            train = (x @ (product - target)).square().mean().item()
            test = (product - target).square().sum().item() / 5
            errors.setdefault(lr, []).append((train, test, weft.effective_rank(product).item()))
    means = {lr: [sum(column) / 2 for column in zip(*rows, strict=True)] for lr, rows in errors.items()}
    best = min(means, key=lambda lr: means[lr][0])
    assert found.lr == best
    assert [found.train_error, found.test_error, found.at_end] == pytest.approx(means[best], rel=1e-9)


def test_effective_rank_falls_with_depth_at_the_start():
    means = []
    for depth in (1, 2, 4, 8, 16):
        products = [torch.linalg.multi_dot([*c, torch.eye(64, dtype=F64)]) for c in _chain(depth, 20, 64, F64)]
        means.append(weft.effective_rank(torch.stack(products)).mean().item())
    assert means == pytest.approx([3.94, 3.75, 3.45, 3.02, 2.48], abs=0.06), "means of 20, as published code gives"


def test_deeper_chains_find_maps_of_lower_rank():
    shallow, deep = rank_bias((1, 4), (1,), (0.3,), dim=16, samples=8, steps=400, seeds=2)
    assert deep.at_end < shallow.at_end - 0.3
    assert deep.train_error < 0.05


def test_command_writes_table_plot_and_numbers_and_refuses_another_experiment(tmp_path, capsys):
    given = ["rank-bias", "--dim", "8", "--samples", "4", "--seeds", "1", "--depths", "[1,2]", "--ranks", "[1,2]"]
    given += ["--run_dir", str(tmp_path)]
    assert main([*given, "--steps", "100"]) == 0
    assert {"results.json", "table.md", "plot.png"} == {each.name for each in tmp_path.iterdir()}
    assert main([*given, "--steps", "50"]) == 2
    assert "other arguments" in capsys.readouterr().err
    assert main(["rank-bias", "--step", "5"]) == 2
    for content in ("{}", "[1]", "not JSON"):
        (tmp_path / "results.json").write_text(content)
        assert main([*given, "--steps", "50"]) == 2
        assert (tmp_path / "results.json").read_text() == content


def test_what_cannot_work_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rank_experiment, "_train", None)  # not callable: not reached
    (tmp_path / "file").touch()
    assert main(["rank-bias", "--run_dir", "file/below"]) == 2
    assert "Not a directory" in capsys.readouterr().err
    for arguments, words in (
        (["--depths", "[]"], "depths must be one or several numbers at least 1, got []"),
        (["--ranks", "[65]"], "ranks must be one or several numbers from 1 to 64, got [65]"),
        (["--steps", "0"], "steps must be at least 1, got 0\n"),
    ):
        assert main(["rank-bias", "--run_dir", "new", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": (0,)}, "depths must be one or several numbers at least 1"),
        ({"ranks": (9,)}, "ranks must be one or several numbers from 1 to 8"),
        ({"steps": 0}, "steps must be"),
        ({"rates": (0.0,)}, "rates and clip must be above 0"),
        ({"clip": 0.0}, "rates and clip must be above 0"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\)"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(OptionError, match=words):
        rank_bias(**{"depths": (1,), "ranks": (1,), "dim": 8, "steps": 1, "seeds": 1, **options})
