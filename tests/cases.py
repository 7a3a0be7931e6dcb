"""One case per family and kind of option, for the contract and the interoperability protocol."""

import math

from weft.parametrizations import (
    HEDLR,
    HODLR,
    LDR,
    PSM,
    Butterfly,
    Chain,
    Dense,
    HMat,
    Kronecker,
    LowRank,
    Monarch,
    QuaternionRotation,
    SequentiallySemiseparable,
    ToeplitzLike,
)
from weft.testing import Case, oracles

_DESCENT = "not convex: the closed form is refined by a bounded number of descent steps"
DENSE = Case("dense", Dense, lambda p: p.weight.detach().clone())
LOW_RANK = Case(
    "low_rank",
    lambda shape, **common: LowRank(shape, rank=3, **common),
    lambda p: oracles.product_of_two(p.left, p.right),
)
PHM = Case(
    "kronecker_n4",
    lambda shape, **common: Kronecker(shape, n=4, **common),
    lambda p: oracles.sum_of_kroneckers(p.mixing, p.blocks),
)
COMPLEX = Case(
    "kronecker_complex",
    lambda shape, **common: Kronecker(shape, algebra="complex", **common),
    lambda p: oracles.complex_matrix(p.blocks),
)
QUATERNION = Case(
    "kronecker_quaternion",
    lambda shape, **common: Kronecker(shape, algebra="quaternion", **common),
    lambda p: oracles.quaternion_matrix(p.blocks),
)
RANK = Case(
    "kronecker_rank5",
    lambda shape, **common: Kronecker(shape, n=4, rank=5, **common),
    lambda p: oracles.sum_of_kroneckers(
        oracles.sum_of_outer_products(p.block_mix, p.output_mix, p.input_mix), p.blocks
    ),
    expected_failures={
        "residual_is_orthogonal": "often no nearest A of a CP rank exists; the fit ends at moderate terms"
    },
)
ROTATION = Case(
    "quaternion_rotation",
    QuaternionRotation,
    lambda p: oracles.rotation_blocks(p.quaternions, p.scale, p.n),
)
SSS = Case(
    "sss",
    lambda shape, **common: SequentiallySemiseparable(shape, stages=4, state=2, **common),
    oracles.semiseparable_matrix,
    expected_failures={"residual_is_orthogonal": _DESCENT},
)
SSS_UNEVEN = Case(
    "sss_uneven",
    lambda shape, **common: SequentiallySemiseparable(shape, stages=5, state=3, **common),
    oracles.semiseparable_matrix,
    shapes=((8, 13), (12, 7), (7, 7)),
    expected_failures={"residual_is_orthogonal": _DESCENT},
)
HIERARCHY = Case(
    "hodlr_depth3",
    lambda shape, **common: HODLR(shape, depth=3, rank=1, **common),
    lambda p: oracles.hodlr_matrix(p.left, p.right, p.shape, p.depth, p.rank, p.positions),
)
UNEVEN_HIERARCHY = Case(
    "hodlr_uneven",
    lambda shape, **common: HODLR(shape, depth=3, rank=2, **common),
    lambda p: oracles.hodlr_matrix(p.left, p.right, p.shape, p.depth, p.rank, p.positions),
    shapes=((10, 15), (15, 10), (9, 9)),
)


class QuickLDR(LDR):
    """Fitted in few steps of descent, for tests of other things than how near it comes."""

    _descent = 24


class SteppedLDR(QuickLDR):
    """Goes the ways of large matrices: stretches of operators, and Horner's rule on the matrix."""

    _whole, _few = 4, 1


LOW_DISPLACEMENT = Case(
    "ldr",
    lambda shape, **common: QuickLDR(shape, rank=1, **common),
    lambda p: oracles.low_displacement_rank(p.row_operator, p.column_operator, p.left, p.right),
)


STEPPED_DISPLACEMENT = Case(
    "ldr_in_steps",
    lambda shape, **common: SteppedLDR(shape, rank=2, **common),
    LOW_DISPLACEMENT.dense,
    shapes=((10, 37), (37, 10), (33, 33)),
)
GRID = Case(
    "hedlr",
    lambda shape, **common: HEDLR(shape, numbers=2 * math.prod(shape) // 3, depth=3, **common),
    oracles.hedlr_matrix,
)
UNEVEN_GRID = Case(
    "hedlr_uneven",
    lambda shape, **common: HEDLR(shape, numbers=math.prod(shape) // 2, depth=3, **common),
    oracles.hedlr_matrix,
    shapes=((10, 13), (13, 9), (7, 7)),
)
BLOCKS = Case(
    "hmat",
    lambda shape, **common: HMat(shape, numbers=2 * math.prod(shape) // 5, min_block=1, **common),
    oracles.hmat_matrix,
    shapes=((16, 24), (24, 16), (16, 16)),
)
UNEVEN_BLOCKS = Case(
    "hmat_uneven",
    lambda shape, **common: HMat(shape, numbers=math.prod(shape) // 2, min_block=1, eta=0.7, **common),
    oracles.hmat_matrix,
    shapes=((18, 13), (13, 21), (17, 17)),
)
MONARCH = Case(
    "monarch",
    lambda shape, **common: Monarch(shape, blocks=4, **common),
    lambda p: oracles.monarch(p.left, p.right, p.shape),
)
MONARCH_RANK = Case(
    "monarch_rank2",
    lambda shape, **common: Monarch(shape, blocks=2, rank=2, **common),
    lambda p: oracles.monarch(p.left, p.right, p.shape),
)
BUTTERFLY = Case(
    "butterfly",
    Butterfly,
    lambda p: oracles.butterfly(p.factors, p.levels, p.shape),
    shapes=((16, 12), (12, 16), (8, 8)),
    expected_failures={"residual_is_orthogonal": "refined by a bounded number of steps, not to the last digit"},
)
BUTTERFLY_DEPTH = Case(
    "butterfly_depth2",
    lambda shape, **common: Butterfly(shape, depth=2, **common),
    lambda p: oracles.butterfly(p.factors, p.levels, p.shape),
    shapes=((16, 12), (12, 16), (32, 32)),
    expected_failures={
        "members_are_found_again": "only one butterfly is found by going down the hierarchy; two are refined",
        "residual_is_orthogonal": "refined by a bounded number of steps, not to the last digit",
    },
)
SPARSE = Case(
    "psm",
    lambda shape, **common: PSM(shape, nonzeros=48, **common),
    lambda p: oracles.sparse_product(p.values, p.row_index, p.column_index, p.counts, p.shape),
    expected_failures={
        "members_are_found_again": "the pattern of a given product is a combinatorial search",
        "residual_is_orthogonal": "refined by a bounded number of steps, not to the last digit",
    },
)
SPARSE_OF_THREE = Case(
    "psm_of_three",
    lambda shape, **common: PSM(shape, nonzeros=60, factors=3, last_share=0.4, **common),
    lambda p: oracles.sparse_product(p.values, p.row_index, p.column_index, p.counts, p.shape),
    expected_failures=SPARSE.expected_failures,
)
CHAIN = Case(
    "chain_depth3",
    lambda shape, **common: Chain(shape, depth=3, width=1.5, **common),
    lambda p: oracles.product_of_two(p.last, oracles.product_of_two(p.inner[0], p.first)),
)
CHAIN_NARROW = Case(
    "chain_narrow",
    lambda shape, **common: Chain(shape, depth=3, width=0.75, **common),
    lambda p: oracles.product_of_two(oracles.product_of_two(p.last, p.inner[0]), p.first),
)
TOEPLITZ = Case(
    "toeplitz_like",
    lambda shape, **common: ToeplitzLike(shape, rank=2, **common),
    lambda p: oracles.toeplitz_like(p.left, p.right, p.shape),
    expected_failures={"residual_is_orthogonal": _DESCENT},
)
TOEPLITZ_ODD = Case(
    "toeplitz_like_odd",
    lambda shape, **common: ToeplitzLike(shape, rank=3, **common),
    lambda p: oracles.toeplitz_like(p.left, p.right, p.shape),
    shapes=((6, 9), (13, 7), (7, 7)),
    expected_failures={"residual_is_orthogonal": _DESCENT},
)
CASES = (
    *(DENSE, LOW_RANK, PHM, COMPLEX, QUATERNION, RANK, ROTATION),
    *(SSS, SSS_UNEVEN, LOW_DISPLACEMENT, STEPPED_DISPLACEMENT, HIERARCHY, UNEVEN_HIERARCHY),
    *(GRID, UNEVEN_GRID, BLOCKS, UNEVEN_BLOCKS),
    *(MONARCH, MONARCH_RANK, BUTTERFLY, BUTTERFLY_DEPTH, SPARSE, SPARSE_OF_THREE),
    *(TOEPLITZ, TOEPLITZ_ODD, CHAIN, CHAIN_NARROW),
)
