"""How large generated tensors are at the start: a variance per tensor, whatever generates it.

    hyperfan-in    weight  c/(b d_in)      bias  c/2
    hyperfan-out   weight  c/d_out         bias  max(0, c (1 - d_in/d_out))
    harmonic       2/(1/in + 1/out) of the two

d_in, d_out: fan-in and fan-out of the layer that the tensor belongs to; c = 2 for a target of ReLUs, else 1; b = 2
where the bias of the layer is generated too, else 1. The generator's outputs start with variance 1 and are multiplied
by the root of this, which is the published rule for the head, Var(H) = variance/(h Var(g)), with the factor h Var(g)
measured.

Chang, Flokas and Lipson 2020, Principled Weight Initialization for Hypernetworks, ICLR,
https://openreview.net/forum?id=H1lma24tPB, sections 4.1 and 4.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RULES = ("unit", "hyperfan_in", "hyperfan_out", "harmonic")
#: Standard deviation of generated tensors whose target starts constant, such as the gains of norm layers.
CONSTANT_STD = 0.1


@dataclass(frozen=True)
class Law:
    """What the target says about one of its tensors at the start.

    Args:
        mean: of its entries, 0 unless the target starts constant.
        std: of its entries about the mean, by the target's own law.
        fans: fan-in and fan-out of the plain layer it is part of; None elsewhere, where its own law holds in every
        rule.
        is_bias: whether it is a bias of that layer.
        with_bias: whether the bias of that layer is generated too.
    """

    mean: float
    std: float
    fans: tuple[int, int] | None = None
    is_bias: bool = False
    with_bias: bool = False

    def variance(self, rule: str, gain: float) -> float:
        """Variance of a generated entry at the start.

        Args:
            rule: one of ``RULES``.
            gain: c.

        Returns:
            the variance.
        """
        if rule == "unit" or self.fans is None:
            return self.std**2
        fan_in, fan_out = self.fans
        if self.is_bias:
            by_in, by_out = gain / 2, max(0.0, gain * (1 - fan_in / fan_out))
        else:
            by_in, by_out = gain / ((2 if self.with_bias else 1) * fan_in), gain / fan_out
        return {"hyperfan_in": by_in, "hyperfan_out": by_out}.get(rule, harmonic_mean(by_in, by_out))


def harmonic_mean(a: float, b: float) -> float:
    """2/(1/a + 1/b).

    Args:
        a: at least 0.
        b: at least 0.

    Returns:
        the mean, 0 if either is.

    Example:
        >>> harmonic_mean(2.0, 6.0)
        3.0
    """
    return 2 * a * b / (a + b) if a and b else 0.0


def chunk_variances(variances: Sequence[float], sizes: Sequence[int], chunk_size: int) -> list[float]:
    """The mean variance of the entries in each chunk.

    Args:
        variances: of the entries of each tensor.
        sizes: numbers of each tensor, in the order in which chunks cover them.
        chunk_size: L.

    Returns:
        one per chunk; the surplus of the last one does not count.

    Example:
        >>> chunk_variances([1.0, 4.0], [3, 3], 4)
        [1.75, 4.0]
    """
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    means = []
    for start in range(0, ends[-1], chunk_size):
        stop = min(start + chunk_size, ends[-1])
        shares = [max(0, min(stop, b) - max(start, a)) for a, b in itertools.pairwise(ends)]
        means.append(sum(n * v for n, v in zip(shares, variances, strict=True)) / (stop - start))
    return means


def chunk_embedding_variance(wanted: float, code_variance: float, code_size: int, chunk_size: int) -> float:
    """Variance of a chunk's embedding with which the inputs of the generator have the variance wanted of its outputs.

    Args:
        wanted: Var(v), of the entries of the chunk.
        code_variance: Var(e), of the task embedding or condition.
        code_size: n_e.
        chunk_size: n_c, of the chunk's embedding.

    Returns:
        max(0, ((n_e + n_c) Var(v) - n_e Var(e))/n_c).

    Source:
        von Oswald, Henning, Sacramento and Grewe 2020, Continual learning with hypernetworks, ICLR,
        https://arxiv.org/abs/1906.00695, and the rule of Chang et al. for one generator of several layers.

    Example:
        >>> chunk_embedding_variance(0.5, 0.25, code_size=4, chunk_size=2)
        1.0
    """
    return max(0.0, ((code_size + chunk_size) * wanted - code_size * code_variance) / chunk_size)


def draw_head(weight: Tensor, moment: Tensor) -> None:
    """Draw the weight of a head so that its outputs have mean square 1 over their entries and over all codes.

    Args:
        weight: (h, numbers), filled in place.
        moment: (h, h), mean of g g^T over the codes.
    """
    with torch.no_grad():
        weight.normal_()
        if weight.is_meta:
            return
        flat = weight.double()
        square = float((moment.double() * (flat @ flat.T)).sum()) / flat.shape[1]
        weight.div_(math.sqrt(square) if square > 0 else 1.0)
