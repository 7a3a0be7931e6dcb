"""
PHC learns the quaternion convolution
=====================================

The same experiment with a convolution: the four filters are given, and the layer finds the signs and places in which
the Hamilton product puts them.
"""

import matplotlib.pyplot as plt
import torch

import weft

torch.manual_seed(0)
table = weft.parametrizations.multiplication_table("quaternion")

# %%
# Examples
# --------
# A quaternion convolution with one quaternion in and one out has four filters of 2 x 2 pixels. As a weight of torch it
# is (4, 4, 2, 2): filter number p, q is the one that the Hamilton product puts there, with its sign.

filters = torch.randn(4, 2, 2)
kernel = torch.einsum("ipq,ihw->pqhw", table, filters)
inputs = torch.randint(-10, 10, (1000, 1, 4, 4, 4)).float()
targets = torch.stack([torch.nn.functional.conv2d(x, kernel, stride=2, padding=2) for x in inputs])

# %%
# Training
# --------

layer = weft.PHConv2d(4, 4, 2, stride=2, padding=2, n=4, bias=False)
weight = layer.parametrization
with torch.no_grad():
    weight.blocks.copy_(filters.reshape(4, 1, 4))
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
# The sign table
# --------------
# Each entry of the 4 x 4 table belongs to exactly one filter, so the sum over the four matrices shows all signs.

error = (weight.mixing.detach() - table).abs().max().item()
signs = weight.mixing.detach().sum(0)
print(f"largest error of an entry: {error:.1e}")
print(signs.round().int())

which = weight.mixing.detach().abs().argmax(0)
figure, axis = plt.subplots(figsize=(4, 3.6), layout="constrained")
axis.imshow(signs.numpy(), cmap="RdBu_r", vmin=-2, vmax=2)
for p in range(4):
    for q in range(4):
        name = "rijk"[which[p, q]]
        sign = "+" if signs[p, q] > 0 else "\N{MINUS SIGN}"
        axis.text(q, p, sign + name, ha="center", va="center", fontsize=14)
axis.set(xlabel="input component", ylabel="output component", xticks=range(4), yticks=range(4))
axis.set_xticklabels("rijk")
axis.set_yticklabels("rijk")
axis.set_title("which filter, with which sign")
plt.show()
