"""Claim: what accuracy the images per second of a superposed network cost.

Reads the runs of ``weft study recipes/studies/mimo_fashion_mnist.yaml``, from the folder given as an argument or from
``runs/mimo_fashion_mnist``, and times the networks on one batch of images: accuracy against images per second, and how
many answers change when the images are grouped anew.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch
from harness import RESULTS, report
from matplotlib.figure import Figure

from weft.cli.mimo.options import build
from weft.cli.mimo.validate import load
from weft.cli.recipe import load as load_recipe
from weft.data import ImageData
from weft.superposition import MIMO, recalibrate, regrouping_spread, seconds_per_input

IMAGES = 512


def measured(run: Path, together: int) -> tuple[float, float]:
    """Images per second, and the share of test images whose answer depends on the grouping."""
    config = load_recipe(run / "config.yaml")
    net = load(config["model"]["init_args"]["model"], run / "checkpoints" / "last.ckpt")
    data = ImageData(**config["data"])
    data.setup("test")
    images, _ = data._test_set()
    if net.uncalibrated(together):
        recalibrate(net, (data.normalise(x) for x, _ in data.train_dataloader()), together, 50)
    changed = regrouping_spread(net, data.normalise(images[:2000]), num_superposed=together).changed
    x = data.normalise(images[:IMAGES])
    return 1 / seconds_per_input(fresh(config, net), x, num_superposed=together, repeats=7), changed


def fresh(config: dict, net: MIMO) -> MIMO:
    """The same network with random weights: denormal numbers of trained ones would slow some processors."""
    other = build(config["model"]["init_args"]["model"]).eval()
    other.num_superposed = net.num_superposed
    return other


def main() -> None:
    torch.manual_seed(0)
    study = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mimo_fashion_mnist")
    if not (study / "results.json").is_file():
        print(
            f"skipped: {study} holds no runs; weft study recipes/studies/mimo_fashion_mnist.yaml makes them in an hour"
        )
        return
    results = json.loads((study / "results.json").read_text())["results"]
    points = []
    for arm in dict.fromkeys(each["arm"] for each in results):
        own = [each for each in results if each["arm"] == arm]
        run = next(path.parent for path in sorted(study.glob("**/result.json"))
                   if json.loads(path.read_text())["arm"] == arm)  # fmt: skip
        at = sorted(int(name.rpartition("_S")[2]) for name in own[0]["metrics"] if name.startswith("test/acc_S"))
        for together in at or [1]:
            name = f"test/acc_S{together}" if at else "test/acc"
            values = [each["metrics"][name] for each in own]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            speed, changed = measured(run, together)
            points.append((arm, f"{arm}, S={together}", together, statistics.mean(values), spread, speed, changed))
    base = next(point[5] for point in points if "ResNet" in point[0])
    rows = [[label, f"{mean:.4f} ± {spread:.4f}", f"{speed:.0f}", f"{speed / base:.2f}", f"{changed:.1%}"]
            for _, label, _, mean, spread, speed, changed in points]  # fmt: skip
    report(
        __file__,
        "Superposed networks on Fashion-MNIST: accuracy against images per second",
        ["network", "test accuracy", "images/s", "times the plain network", "answers that depend on the grouping"],
        rows,
        "Of `weft study recipes/studies/mimo_fashion_mnist.yaml`; mean and standard deviation over its seeds. For an "
        "S that a network was not trained with, the batch norms were calibrated on training images.",
        note=f"Images per second: median of 7 calls on {IMAGES} images.",
    )
    draw(points, RESULTS / "mimo_tradeoff.png")


def draw(points: list, path: Path) -> None:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for number, arm in enumerate(dict.fromkeys(point[0] for point in points)):
        own = sorted((point for point in points if point[0] == arm), key=lambda point: point[5])
        axes.errorbar([point[5] for point in own], [point[3] for point in own], [point[4] for point in own],
                      fmt="o-" if len(own) > 1 else "s", color=f"C{number}", label=arm, capsize=3)  # fmt: skip
        for point in own:
            if len(own) > 1:
                axes.annotate(f"S={point[2]}", point[5:2:-2], textcoords="offset points", xytext=(6, 6), fontsize=8)
    axes.set(xlabel="images per second (evaluation, this machine)", ylabel="test accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
