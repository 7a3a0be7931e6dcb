"""
Swap a layer
============

The same small network on real handwritten digits, with the layers in the middle described in four ways. Everything else
stays the same: data, epochs, optimizer.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import weft

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]

# %%
# The network
# -----------
# A model takes the family as an argument and hands it to its layers. That is all it has to know: what a family needs is
# passed through.


def network(**family) -> nn.Module:
    return nn.Sequential(
        weft.Linear(64, 128, **family), nn.ReLU(),
        weft.Linear(128, 128, **family), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


# %%
# The training
# ------------
# ``weft.parameter_groups`` leaves weight decay to those parameters that want it.


def accuracy_after_training(model: nn.Module, epochs: int = 15) -> float:
    optimizer = torch.optim.AdamW(weft.parameter_groups(model, lr=3e-3, weight_decay=0.01))
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return (model(x[test]).argmax(1) == y[test]).float().mean().item()


# %%
# Four descriptions
# -----------------
variants = {
    "dense": {},
    "low rank, share 0.25": {"parametrization": "low_rank", "share": 0.25},
    "PHM, n = 4": {"parametrization": "kronecker", "n": 4},
    "quaternion": {"parametrization": "kronecker", "algebra": "quaternion"},
}
results = {}
for name, family in variants.items():
    torch.manual_seed(0)
    model = network(**family)
    parameters = sum(p.numel() for p in model.parameters())
    results[name] = parameters, accuracy_after_training(model)
    print(f"{name:<21} {parameters:>6,} parameters   test accuracy {results[name][1]:.1%}")

# %%
# One seed and 397 test images tell no winner: half a percent is two images. What is plain is the size.
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, (parameters, accuracy) in results.items():
    axis.scatter(parameters, 100 * accuracy, s=60)
    axis.annotate(name, (parameters, 100 * accuracy), (6, 6), textcoords="offset points")
axis.set(xlabel="parameters", ylabel="test accuracy in %", xlim=(0, None), ylim=(90, 100))
axis.margins(x=0.25)
axis.spines[["top", "right"]].set_visible(False)
figure.show()

# %%
# What a layer does
# -----------------
# The last model is in evaluation mode: its weight is built once and kept.
with torch.no_grad():
    print(model[2].explain(x[test]))

# %%
# And this is the weight: a quarter of the numbers, arranged by Hamilton's product. Each of the four blocks of a row
# returns in every other row, some of them negated.
weight = model[2].weight.detach().numpy()
figure, axis = plt.subplots(figsize=(4.5, 4), layout="constrained")
limit = abs(weight).max()
picture = axis.imshow(weight, cmap="RdBu", vmin=-limit, vmax=limit)
axis.set(xticks=range(0, 129, 32), yticks=range(0, 129, 32), xlabel="input feature", ylabel="output feature")
figure.colorbar(picture, shrink=0.8)
figure.show()
