"""One case per family and kind of option, for the contract and the interoperability protocol."""

from weft.parametrizations import Dense, Kronecker, LowRank, Monarch, QuaternionRotation
from weft.testing import Case, oracles

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
CASES = (DENSE, LOW_RANK, PHM, COMPLEX, QUATERNION, RANK, ROTATION, MONARCH, MONARCH_RANK)
