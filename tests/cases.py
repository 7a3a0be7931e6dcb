"""One case per family and kind of option, for the contract and the interoperability protocol."""

from weft.parametrizations import HODLR, Dense, Kronecker, LowRank, QuaternionRotation, SequentiallySemiseparable
from weft.testing import Case, oracles

_DESCENT = "not convex: the realisation is refined by a bounded number of descent steps"
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
CASES = (DENSE, LOW_RANK, PHM, COMPLEX, QUATERNION, RANK, ROTATION, SSS, SSS_UNEVEN, HIERARCHY, UNEVEN_HIERARCHY)
