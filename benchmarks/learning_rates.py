"""Claim: with the families' multipliers, structured layers train best at about the learning rate of the dense ones.

An MLP of two hidden layers learns Fashion-MNIST (from the folder in WEFT_DATA; without it the bundled digits) for a few
hundred steps, its rate falling linearly to 0, once per family, rate and kind of groups: the multipliers of
``weft.parameter_groups``, or one rate for all parameters. The losses are those of the validation images.
"""

from __future__ import annotations

import functools
import itertools
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import matplotlib
import torch
from harness import RESULTS, report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import weft
from weft.data import ImageData
from weft.errors import OptionError

WIDTH, STEPS, BATCH = 512, 200, 128
FAMILIES = {
    "dense": {},
    "low_rank": {"share": 0.15},
    "kronecker": {"n": 8},
    "sss": {"share": 0.2},
    "hodlr": {"share": 0.2},
    "monarch": {"share": 0.15},
    "butterfly": {},
    "psm": {"share": 0.15},
}
RATES = {"adam": [5e-4 * 2**k for k in range(8)], "sgd": [6.25e-3 * 2**k for k in range(8)]}
GROUPS = ("plain", "multipliers")


@functools.cache
def images() -> tuple[str, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Name of the data; training and validation images as normalised vectors, with their labels."""
    try:
        name, data = "Fashion-MNIST", ImageData("fashion_mnist", batch_size=1000)
    except OptionError:
        name, data = "digits", ImageData("digits", batch_size=1000, val_share=0.2)
    data.setup("fit")
    parts = []
    for loader in (data.train_dataloader(), data.val_dataloader()):
        x, y = zip(*loader, strict=True)
        parts.append((torch.cat([data.normalise(batch).flatten(1) for batch in x]), torch.cat(y)))
    return name, parts[0], parts[1]


def train(family: str, groups: str, optimizer: str, lr: float) -> float:
    """The validation loss after training; infinite where it is not a number."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, (x, y), val = images()
    sizes = [x.shape[1], WIDTH, WIDTH]
    layers = [
        module
        for columns, rows in itertools.pairwise(sizes)
        for module in (weft.Linear(columns, rows, parametrization=family, **FAMILIES[family]), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    parameters = model.parameters() if groups == "plain" else weft.parameter_groups(model, lr, optimizer=optimizer)
    make = torch.optim.Adam if optimizer == "adam" else functools.partial(torch.optim.SGD, momentum=0.9)
    steps = make(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(steps, lambda step: 1 - step / STEPS)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = torch.randint(len(x), (BATCH,), generator=generator)
        steps.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        steps.step()
        schedule.step()
    with torch.no_grad():
        loss = float(cross_entropy(model.eval()(val[0]), val[1]))
    return loss if math.isfinite(loss) else math.inf


def draw(losses: dict[tuple[str, str, str], list[float]], name: str) -> None:
    """Loss against rate, one panel per family, as a picture beside the table."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families = [family for family in FAMILIES if family != "dense"]
    figure, axes = plt.subplots(2, len(families), figsize=(2.1 * len(families), 5), sharey="row", sharex="row")
    for row, (optimizer, rates) in zip(axes, RATES.items(), strict=True):
        dense = losses["dense", "plain", optimizer]
        for axis, family in zip(row, families, strict=True):
            axis.plot(rates, dense, color="0.6", linewidth=4, label="dense layers")
            axis.plot(rates, losses[family, "plain", optimizer], "--", color="tab:orange", label="one rate for all")
            axis.plot(rates, losses[family, "multipliers", optimizer], color="tab:blue", label="with multipliers")
            axis.set(xscale="log", ylim=(0.9 * min(dense), 2 * min(dense)), title=family)
        row[0].set_ylabel(f"{optimizer}: validation loss")
        row[len(row) // 2].set_xlabel("learning rate")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=3, frameon=False)
    figure.suptitle(f"{name}, {STEPS} steps", x=0.01, ha="left", fontsize="medium")
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(RESULTS / "learning_rates.png", dpi=90)


def main() -> None:
    torch.set_num_threads(1)
    name, _, _ = images()  # before the processes fork, so that they share the memory
    runs = [
        (family, groups, optimizer)
        for optimizer in RATES
        for family in FAMILIES
        for groups in (GROUPS if family != "dense" else ("plain",))
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        futures = {run: [pool.submit(train, *run, lr) for lr in RATES[run[2]]] for run in runs}
        losses = {run: [future.result() for future in of_run] for run, of_run in futures.items()}
    rows = []
    for optimizer, rates in RATES.items():
        dense = losses["dense", "plain", optimizer]
        at = dense.index(min(dense))
        for family, options in FAMILIES.items():
            member = weft.Linear(WIDTH, WIDTH, parametrization=family, **options).parametrization
            cells: list[object] = [optimizer, family, f"{member.share:.2f}"]
            for groups in GROUPS:
                found = losses[family, groups if family != "dense" else "plain", optimizer]
                cells += [f"{rates[found.index(min(found))]:.2g}", f"{min(found):.3f}", f"{found[at]:.3f}"]
            rows.append(cells)
    report(
        __file__,
        f"Learning rates on {name}: an MLP with two hidden layers of {WIDTH}, {STEPS} steps of {BATCH} images",
        ["optimizer", "family", "share",
         "one rate for all: best rate", "its loss", "loss at the best rate of dense",
         "with multipliers: best rate", "its loss", "loss at the best rate of dense"],
        rows,
        "Rates are tried in steps of a factor 2; inf: not finite. SGD with momentum 0.9. The shares are those of the "
        f"{WIDTH} x {WIDTH} layer. The curves: `benchmarks/results/learning_rates.png`.",
        note="Losses are cross-entropies of the validation images, one seed.",
    )  # fmt: skip
    draw(losses, name)


if __name__ == "__main__":
    main()
