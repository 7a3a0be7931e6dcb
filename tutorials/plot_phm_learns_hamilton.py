"""
PHM learns the Hamilton product
===============================

A sum of Kronecker products can be any algebra, because its mixing matrices are learned. Here a PHM layer sees only
examples of the product of two pure quaternions (no real part), and finds the rule of that product by itself.

The recipe is that of Grassucci, Zhang and Comminiello, `PHNNs <https://arxiv.org/abs/2110.04176>`_.
"""

import matplotlib.pyplot as plt
import torch

import weft

torch.manual_seed(0)
table = weft.parametrizations.multiplication_table("quaternion")

# %%
# Examples
# --------
# The left factors are given: three 2 x 2 blocks, for the units i, j and k. The right factors are random whole numbers,
# and the answers come from the Hamilton product, written as one 8 x 8 matrix.

blocks = torch.randn(3, 2, 2)
hamilton = sum(torch.kron(table[i + 1], blocks[i]) for i in range(3))
inputs = torch.randint(-10, 10, (1000, 2, 8)).float()
targets = inputs @ hamilton.T

# %%
# A layer that knows the blocks, but not the rule
# -----------------------------------------------
# ``blocks`` are set and frozen, the real one to zero; ``mixing``, the four matrices A that say how components mix, is
# what is learned.

layer = weft.PHMLinear(8, 8, n=4, bias=False)
weight = layer.parametrization
with torch.no_grad():
    weight.blocks.copy_(torch.cat([torch.zeros(1, 2, 2), blocks]))
    weight.mixing.uniform_(-0.07, 0.07)
weight.blocks.requires_grad_(False)

optimizer = torch.optim.Adam([weight.mixing], lr=5e-3)
losses = []
for epoch in range(5):
    total = 0.0
    for x, y in zip(inputs, targets, strict=True):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item()
    losses.append(total / len(inputs))
    print(f"epoch {epoch + 1}: mean squared error {losses[-1]:.2e}")

# %%
# What it found
# -------------
# The matrices of i, j and k, entry by entry.

learned = weight.mixing.detach()[1:]
error = (learned - table[1:]).abs().max().item()
print(f"largest error of an entry: {error:.1e}")

figure, axes = plt.subplots(2, 3, figsize=(7, 4.6), layout="constrained")
for column, unit in enumerate("ijk"):
    for row, (what, matrices) in enumerate((("learned", learned), ("Hamilton", table[1:]))):
        axis = axes[row, column]
        image = axis.imshow(matrices[column].numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set(title=f"{unit}, {what}", xticks=[], yticks=[])
figure.colorbar(image, ax=axes, shrink=0.7)
plt.show()
