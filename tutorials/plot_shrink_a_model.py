"""
Shrink a trained model
======================

Train a dense network, convert it to low rank at several shares, fine-tune each for a few epochs and fold it
back to plain ``torch.nn``.
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


def fit(model: nn.Module, epochs: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(weft.parameter_groups(model.train(), lr=lr, weight_decay=0.01))
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return (model.eval()(x[test]).argmax(1) == y[test]).float().mean().item()


# %%
# A trained model
# ---------------
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
fit(model, epochs=15, lr=3e-3)
print(f"dense: {accuracy(model):.1%} of the test images")

# %%
# What can go
# -----------
# The singular values of its middle layer say how much of it a low rank can keep.
values = torch.linalg.svdvals(model[2].weight.detach()).numpy()
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.semilogy(range(1, len(values) + 1), values)
axis.set(xlabel="index", ylabel="singular value", title="the middle layer")
axis.spines[["top", "right"]].set_visible(False)
figure.show()

# %%
# Convert
# -------
# The nearest member of the family takes the place of every layer but the last. The column *relative error* is
# the part of each weight that is lost.
small = weft.convert(model, "low_rank", share=0.2, where=lambda name, layer: name != "4")
print(weft.summary(small))
print(f"\nconverted, not yet fine-tuned: {accuracy(small):.1%}")

# %%
# Fine-tune
# ---------
# A few epochs at a small learning rate, for several shares.
shares = [0.05, 0.1, 0.2, 0.4]
before, after = [], []
for share in shares:
    small = weft.convert(model, "low_rank", share=share, where=lambda name, layer: name != "4")
    before.append(100 * accuracy(small))
    fit(small, epochs=3, lr=1e-3)
    after.append(100 * accuracy(small))

figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
axis.axhline(100 * accuracy(model), color="gray", linestyle="--", label="dense")
axis.plot(shares, before, "o-", label="converted")
axis.plot(shares, after, "o-", label="converted and fine-tuned")
axis.set(xlabel="share of the numbers in the converted layers", ylabel="test accuracy in %")
axis.spines[["top", "right"]].set_visible(False)
axis.legend()
figure.show()

# %%
# Fold
# ----
# Back to plain torch, checked on the test images: ``fold`` raises if the output moves.
plain = weft.fold(small, check=x[test])
print(plain)
print(weft.verify(small, plain, x[test]))
