"""
Where the numbers of a matrix go
================================

Hierarchical matrices cut a matrix into blocks and give each block a rank. ``weft.plot_partition`` draws the blocks, so
that one sees what a fit found. The matrix here is a kernel that is smooth far from the diagonal, but for one corner,
which is nothing but noise.
"""

import matplotlib.pyplot as plt
import torch

import weft

torch.manual_seed(0)
place = torch.linspace(0, 1, 300, dtype=torch.float64)
rough = place[:, None] + place < 0.4
kernel = 1 / ((place[:, None] - place).abs() + 3e-3) + 20 * rough * torch.randn(300, 300, dtype=torch.float64)
plt.imshow(kernel, cmap="RdBu_r", vmin=-60, vmax=60)
plt.colorbar(label="entries")
plt.show()

# %%
# Four families with a fifth of the numbers
# -----------------------------------------
# Low rank has one rank for the whole matrix, HODLR one for all blocks off the diagonal. The others share their numbers
# out among the blocks, whichever gains most by them. The trees are searched by singular values.

members = {name: weft.approximate(kernel, name, share=0.2) for name in ("low_rank", "hodlr", "hedlr", "hmat")}
for name, member in members.items():
    print(f"{name:9s} relative error {member.fit_error:.4f}   {member}")

# %%
# The H-matrix
# ------------
# Blocks are large where they are far from the diagonal. The noise is stored as it is; a rank of 1 or 2 does for most
# of the rest.

weft.plot_partition(members["hmat"])
plt.show()

# %%
# The grid, and HODLR
# -------------------
# The grid has blocks of one size, and spends many on what one large block could say. HODLR has dense blocks on the
# diagonal and one rank for all others, however smooth or rough they are.

figure, axes = plt.subplots(1, 2, figsize=(12.5, 5), layout="constrained")
weft.plot_partition(members["hedlr"], axes[0])
weft.plot_partition(members["hodlr"], axes[1])
plt.show()
