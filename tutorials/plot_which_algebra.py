"""
Which algebra did it learn?
===========================

The blocks of a PHM layer may be recombined without changing its weight, so its mixing matrices are known only up to a
change of basis. What is fixed is the space that they span. ``weft.parametrizations.algebra_distance`` compares such
spaces: 0 is the same algebra, 1 has nothing in common.

Four layers imitate products in four algebras. Nobody tells them which.
"""

import matplotlib.pyplot as plt
import torch

import weft
from weft.parametrizations import algebra_distance, multiplication_table

ALGEBRAS = ("quaternion", "split_quaternion", "tessarine", "cl(2,0)")

# %%
# Imitation
# ---------
# A teacher multiplies by random numbers of its algebra; the student is a PHM layer with free mixing matrices and free
# blocks. It sees inputs and answers only.


def learn(algebra: str) -> torch.Tensor:
    torch.manual_seed(1)
    teacher = weft.Linear(32, 32, bias=False, parametrization="kronecker", algebra=algebra)
    student = weft.PHMLinear(32, 32, n=4, bias=False)
    optimizer = torch.optim.LBFGS(student.parameters(), max_iter=400, history_size=50, line_search_fn="strong_wolfe")
    inputs = torch.randn(256, 32)
    answers = teacher(inputs).detach()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(student(inputs), answers)
        loss.backward()
        return loss

    optimizer.step(closure)
    print(f"{algebra:17s} mean squared error {closure().item():.1e}")
    return student.parametrization.mixing.detach()


learned = {algebra: learn(algebra) for algebra in ALGEBRAS}
untrained = weft.PHMLinear(32, 32, n=4).parametrization.mixing.detach()

# %%
# Distances
# ---------
# Each student lies nearest to the algebra of its teacher. A layer that has learned nothing lies far from all.

rows = {f"taught {algebra}": mixing for algebra, mixing in learned.items()} | {"untrained": untrained}
distances = torch.tensor([[algebra_distance(mixing, algebra) for algebra in ALGEBRAS] for mixing in rows.values()])
figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
image = axis.imshow(distances.numpy(), cmap="viridis", vmin=0, vmax=1)
axis.set_xticks(range(len(ALGEBRAS)), ALGEBRAS, rotation=20)
axis.set_yticks(range(len(rows)), rows)
for (row, column), value in zip(
    torch.cartesian_prod(*map(torch.arange, distances.shape)), distances.flatten(), strict=True
):
    axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
figure.colorbar(image, label="distance")
plt.show()

# %%
# What is inside
# --------------
# Recombined into the basis that fits best, the learned matrices are those of the quaternions.

figure, axes = plt.subplots(2, 4, figsize=(8, 4), layout="constrained")
table = multiplication_table("quaternion")
basis = torch.linalg.lstsq(learned["quaternion"].reshape(4, 16).T, table.reshape(4, 16).T).solution
in_basis = (learned["quaternion"].reshape(4, 16).T @ basis).T.reshape(4, 4, 4)
for column in range(4):
    for row, (what, matrices) in enumerate((("as learned", learned["quaternion"]), ("in the known basis", in_basis))):
        axes[row, column].imshow(matrices[column].numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axes[row, column].set(title=f"{what}, {column}", xticks=[], yticks=[])
plt.show()
