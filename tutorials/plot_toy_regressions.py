"""
Real, quaternion and PHM networks on toy regressions
====================================================

Three networks of the same widths fit a line, a parabola and a sine. The hypercomplex ones have a quarter of the
numbers.
"""

import itertools
import math

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation
from torch import nn

import weft

FAMILIES = {"real": weft.Linear, "quaternion": weft.QuaternionLinear, "PHM, n = 4": weft.PHMLinear}
COLOURS = {"real": "tab:gray", "quaternion": "tab:orange", "PHM, n = 4": "tab:blue"}


def network(linear: type[nn.Module], widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [linear(i, o), activation()]
    return nn.Sequential(*layers[:-1])


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# %%
# A line and a parabola
# ---------------------
# 10,000 points; each value is repeated four times, so that it fills the components of one quaternion. SGD, 200 steps.

generator = torch.Generator().manual_seed(1)
x = torch.rand(10_000, 1, generator=generator) * 2 - 1
noise = 0.2 * torch.rand(10_000, 1, generator=generator)
for name, y in {"y = 2x + 2": 2 * x + 2, "y = x^2 + noise": x**2 + noise}.items():
    for family, linear in FAMILIES.items():
        model = network(linear, (4, 200, 4), nn.ReLU)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        first = last = math.nan
        for step in range(200):
            batch = torch.randint(len(x), (100,), generator=generator)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x[batch].expand(-1, 4)), y[batch].expand(-1, 4))
            loss.backward()
            optimizer.step()
            first = loss.item() if step == 0 else first
            last = loss.item()
        print(f"{name:16s} {family:11s} {parameters(model):6,} parameters: loss {first:.3f} to {last:.4f}")

# %%
# A noisy sine
# ------------
# 1,000 points in [-10, 10], two hidden layers, Adam, 200 epochs. Every twentieth epoch is kept for the animation.

x = torch.rand(1000, 1, generator=generator) * 20 - 10
y = torch.sin(x) + 0.2 * torch.rand(1000, 1, generator=generator)
grid = torch.linspace(-10, 10, 400)[:, None]
fits: dict[str, list[torch.Tensor]] = {}
curves: dict[str, list[float]] = {}
counts: dict[str, int] = {}
for family, linear in FAMILIES.items():
    model = network(linear, (4, 200, 100, 4), nn.LeakyReLU)
    counts[family] = parameters(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    fits[family], curves[family] = [], []
    for epoch in range(200):
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x[batch].expand(-1, 4)), y[batch].expand(-1, 4))
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        curves[family].append(total / len(x))
        if epoch % 10 == 9:
            with torch.no_grad():
                fits[family].append(model(grid.expand(-1, 4)).mean(1))
    print(f"{family:11s} {counts[family]:6,} parameters, final loss {curves[family][-1]:.4f}")

# %%
# Losses
# ------

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for family, losses in curves.items():
    axis.semilogy(losses, color=COLOURS[family], label=f"{family}: {counts[family]:,} parameters")
axis.set(xlabel="epoch", ylabel="mean squared error")
axis.legend(frameon=False)
plt.show()

# %%
# The fit while it is learned
# ---------------------------

figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True, layout="constrained")
lines = []
for axis, family in zip(axes, FAMILIES, strict=True):
    axis.plot(x.numpy(), y.numpy(), ".", color="0.8", markersize=2)
    lines += axis.plot(grid.numpy(), fits[family][0].numpy(), color=COLOURS[family], linewidth=2)
    axis.set(title=f"{family}: {counts[family]:,}", xlabel="x", ylim=(-1.6, 1.8))


def draw(frame: int) -> list[plt.Line2D]:
    for line, family in zip(lines, FAMILIES, strict=True):
        line.set_ydata(fits[family][frame].numpy())
    figure.suptitle(f"epoch {(frame + 1) * 10}")
    return lines


animation = FuncAnimation(figure, draw, frames=len(fits["real"]), interval=200)
plt.show()
