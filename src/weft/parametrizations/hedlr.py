"""HEDLR, low rank in every block of a grid: the hierarchical matrix whose blocks are all split.

    W = [ U_11 V_11   U_12 V_12   ... ]        2^(depth - 1) blocks on each side, each of a rank of its own, or dense
        [ U_21 V_21   U_22 V_22   ... ]
        [ ...                         ]

Letters: O, I = rows and columns of W; B = rows of the input; T = stored numbers; A, C, r = rows, columns and rank of a
block.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.errors import OptionError
from weft.parametrizations.hierarchical import Hierarchical
from weft.parametrizations.hodlr import deepest
from weft.parametrizations.partition import Tree, grid
from weft.parametrizations.registry import Family, register


class HEDLR(Hierarchical):
    """A grid of blocks as equal as midpoints make them, each of a low rank of its own, or dense.

    The matrix is split in four, depth - 1 times over, off the diagonal and on it alike. ``fit_`` shares the numbers out
    among the blocks: whichever singular value lowers the error most per number comes first, and a block is stored as it
    is where factors would take no less. Choose it where parts of the input matter to parts of the output very
    unequally, and no diagonal is special. With one level it is ``low_rank``; with equal ranks it is a Monarch matrix up
    to the order of features. The product takes few large steps, so it is fast at any batch size.

    Args:
        shape: (out, in) of the matrix.
        numbers: T, stored numbers, in (those of the smallest block of rank 1)..out*in; or use ``share``.
        depth: levels of the tree, its root counted, in 1..1 + floor(log2(min(out, in/positions))). None takes 4, or
            less where numbers or features are few; with ``share`` and a target, the best of 1..5 by the singular
            values. Blocks of 4 rows or channels are then not split.
        positions: kernel positions per input channel, which no block cuts; see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        values (T): the rows of all V by block column, then the columns of all U, or of the dense blocks, by block row,
        nothing padded; takes weight decay. Less than the next step of a rank would take lies idle. Buffer: ranks,
        one integer per block, min(A, C) where it is dense. ``fit_`` changes the ranks, and a state carries them.

    Initial law:
        one rank for all blocks; what is left of the numbers goes to blocks along wrapped diagonals. All uniform: V with
        variance 1/(3 C), U with 3 C/r times the wanted one, which blocks of rank 0 raise in the others.

    Cost:
        T numbers; about T multiply-adds per row, up to 1.3 T where ranks differ, since panels of blocks are filled up
        to equal widths. Two batches of products.

    Raises:
        OptionError: ``numbers`` is missing, or ``numbers`` or ``depth`` out of range.

    Source:
        Kissel and Diepold 2023, Structured Matrices and Their Application in Neural Networks: A Survey,
        https://doi.org/10.1007/s00354-023-00226-1; without a hierarchy Amestoy et al. 2015, Improving Multifrontal
        Methods by Means of Block Low-Rank Representations, section 2, https://doi.org/10.1137/120903476.

    Example:
        >>> p = HEDLR((64, 64), numbers=1100, depth=4)
        >>> p.blocks, p.num_parameters
        (64, 1100)
        >>> HEDLR.within((300, 300), share=0.2).depth
        4
    """

    family = "hedlr"
    _option = "depth"

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        numbers: int | None = None,
        depth: int | None = None,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"depth": depth}
        super().__init__(shape, numbers, options, positions=positions, variance=variance, device=device, dtype=dtype)

    @classmethod
    def _trees(
        cls, shape: tuple[int, int], positions: int, options: dict[str, Any], searched: bool
    ) -> list[tuple[int, Tree]]:
        depth, most = options.get("depth"), deepest(shape, positions)
        if depth is not None and not 1 <= depth <= most:
            raise OptionError(
                f"depth must be in 1..1 + floor(log2(min(out, in/positions))) = 1..{most} for shape {tuple(shape)}, "
                f"got {depth}"
            )
        if depth is not None:
            depths = [depth]
        else:
            side = min(shape[0], shape[1] // positions)
            depths = [1, *(d for d in range(2, 6 if searched else 5) if side >> (d - 2) > _SMALLEST_SPLIT)]
            depths = depths if searched else depths[::-1]
        return [(depth, grid(shape, positions, depth - 1)) for depth in depths]


#: Without a given depth, blocks with a side up to this are not split: so many of them would be mere positions.
_SMALLEST_SPLIT = 4

register(
    Family(
        name="hedlr",
        cls=HEDLR,
        title="Low rank in every block of a grid",
        summary="A grid of blocks, each of a low rank of its own, or dense.",
        advice="Where parts of the input matter to parts of the output very unequally, and no diagonal is special.",
        source="Kissel and Diepold 2023, https://doi.org/10.1007/s00354-023-00226-1; Amestoy et al. 2015, section 2, "
        "https://doi.org/10.1137/120903476",
        options={
            "numbers": "stored numbers of all blocks, up to out*in; or give share",
            "depth": "levels of the tree, the root counted, 1..1 + floor(log2(min(out, in))); default 4, or the best",
        },
        parameters="numbers",
        cost="rows*padded (padded: numbers, and what fills panels of blocks up to equal ranks)",
        weight_decay={"values": True},
        lr_multiplier={"values": "0.6*blocks^0.25/gain"},
        sgd_multiplier={"values": "0.15*blocks^0.33/gain^2"},
        launches=25,
        efficiency=0.6,
    )
)
