"""H-matrix: low rank in blocks that grow with their distance from the diagonal, dense or low rank near it.

    W = U_b V_b in every block b of a tree that is split until  max(rows, columns) <= 2 eta distance(rows, columns)

Letters: O, I = rows and columns of W; B = rows of the input; T = stored numbers; A, C, r = rows, columns and rank of a
block.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.errors import OptionError
from weft.parametrizations.hierarchical import Hierarchical
from weft.parametrizations.partition import Tree, admissible_tree
from weft.parametrizations.registry import Family, register


class HMat(Hierarchical):
    """A matrix of blocks that are small near the diagonal and large far from it, each of a rank of its own.

    Blocks are split in four until they lie far enough from the diagonal for their size, or are small. A block of A rows
    and C columns is stored as factors of r(A + C) numbers, or as it is where that takes no more. ``fit_`` shares the
    numbers out among all blocks: whichever singular value lowers the error most per number comes first. Choose it where
    features have an order, and interactions are smooth in some places and rough in others. Where only the diagonal is
    rough, ``hodlr`` says the same with fewer, larger blocks of one rank; ``hedlr`` has no preferred diagonal.

    Args:
        shape: (out, in) of the matrix.
        numbers: T, stored numbers, in (those of the smallest block of rank 1)..out*in; or use ``share``.
        min_block: blocks are split while both sides exceed twice this, in rows and input channels; at least 1. None
            takes 64, less for small matrices so that there are 8 by 8 blocks near the diagonal, and more for few
            numbers. With ``share`` and a target, the best of 2, 4, ..., 64 by the singular values.
        eta: in (0, 1); a block stays whole if max(rows, columns) <= 2 eta distance. Larger means larger blocks.
            Lengths are parts of the whole side, so that the diagonal of a rectangular matrix goes from corner to
            corner.
        positions: kernel positions per input channel, which no block cuts; see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        values (T), level by level: the rows of all V by block column, then the columns of all U, or of the dense
        blocks, by block row, nothing padded; takes weight decay. Less than the next step of a rank takes lies idle.
        Buffer: ranks, one integer per block, min(A, C) where it is dense. ``fit_`` changes the ranks, and a state
        carries them.

    Initial law:
        one rank for all blocks, and dense where that is no more; what is left of the numbers goes to blocks from the
        diagonal outwards. All uniform: V with variance 1/(3 C), U with 3 C/r times the wanted one, which blocks of
        rank 0 raise in the others.

    Cost:
        T numbers; T multiply-adds per row, in practice 1.1 to 1.5 T, since panels of blocks are filled up to equal
        widths. Two batches of products per level.

    Raises:
        OptionError: ``numbers``, ``min_block`` or ``eta`` is missing or out of range.

    Source:
        Hackbusch 1999, A Sparse Matrix Arithmetic Based on H-Matrices, Part I, https://doi.org/10.1007/s006070050015;
        as a layer Kissel and Diepold 2023, Structured Matrices and Their Application in Neural Networks: A Survey,
        https://doi.org/10.1007/s00354-023-00226-1. Differs from the latter in dense blocks, in scaled distances, and in
        an initial law that is exact.

    Example:
        >>> p = HMat((64, 64), numbers=1000, min_block=2)
        >>> p.blocks, p.num_parameters
        (112, 1000)
        >>> HMat.within((300, 300), share=0.2).num_parameters
        18000
    """

    family = "hmat"
    _option = "min_block"

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        numbers: int | None = None,
        min_block: int | None = None,
        eta: float = 0.5,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"min_block": min_block, "eta": eta}
        super().__init__(shape, numbers, options, positions=positions, variance=variance, device=device, dtype=dtype)
        self.eta = eta

    @classmethod
    def _trees(
        cls, shape: tuple[int, int], positions: int, options: dict[str, Any], searched: bool
    ) -> list[tuple[int, Tree]]:
        min_block, eta = options.get("min_block"), options.get("eta", 0.5)
        if not 0 < eta < 1:
            raise OptionError(f"eta must be in (0, 1), got {eta}")
        if min_block is not None and min_block < 1:
            raise OptionError(f"min_block must be at least 1, got {min_block}")
        side = min(shape[0], shape[1] // positions)
        if min_block is not None:
            sizes = [min_block]
        elif searched:
            sizes = [64, 32, 16, 8, 4, 2]
        else:
            sizes = [2]
            while sizes[0] < 64 and 16 * sizes[0] < side:
                sizes[0] *= 2
            while 2 * sizes[-1] < side:
                sizes.append(2 * sizes[-1])
        return [(size, admissible_tree(shape, positions, size, eta)) for size in sizes]


register(
    Family(
        name="hmat",
        cls=HMat,
        title="H-matrix",
        summary="Blocks that grow with their distance from the diagonal, each of a low rank of its own, or dense.",
        advice="For features in an order whose interactions are smooth in some places and rough in others; else hodlr.",
        source="Hackbusch 1999, https://doi.org/10.1007/s006070050015; as a layer Kissel and Diepold 2023, "
        "https://doi.org/10.1007/s00354-023-00226-1",
        options={
            "numbers": "stored numbers of all blocks, up to out*in; or give share",
            "min_block": "blocks are split while both sides exceed twice this, from 1; default: by size, or the best",
            "eta": "blocks stay whole if max(rows, columns) <= 2*eta*distance, in (0, 1); default 0.5",
        },
        parameters="numbers",
        cost="rows*padded (padded: numbers, and what fills panels of blocks up to equal ranks)",
        weight_decay={"values": True},
        lr_multiplier={"values": "0.6*blocks^0.25/gain"},
        sgd_multiplier={"values": "0.15*blocks^0.33/gain^2"},
        launches=50,
        efficiency=0.5,
    )
)
