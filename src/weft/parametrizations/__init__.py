"""What a weight is: families of matrices, each described by its own parameters. Pure mathematics, no layers."""

from weft.parametrizations.algebra import algebra_distance
from weft.parametrizations.algebra import algebras
from weft.parametrizations.algebra import check_laws
from weft.parametrizations.algebra import fast_product
from weft.parametrizations.algebra import laws
from weft.parametrizations.algebra import multiplication_table
from weft.parametrizations.base import Parametrization
from weft.parametrizations.base import Stage
from weft.parametrizations.base import StageShape
from weft.parametrizations.butterfly import Butterfly
from weft.parametrizations.chain import Chain
from weft.parametrizations.dense import Dense
from weft.parametrizations.hedlr import HEDLR
from weft.parametrizations.hmat import HMat
from weft.parametrizations.hodlr import HODLR
from weft.parametrizations.kronecker import Kronecker
from weft.parametrizations.ldr import LDR
from weft.parametrizations.low_rank import LowRank
from weft.parametrizations.monarch import Monarch
from weft.parametrizations.psm import PSM
from weft.parametrizations.partition import Block
from weft.parametrizations.rotation import QuaternionRotation
from weft.parametrizations.registry import Family
from weft.parametrizations.registry import check_options
from weft.parametrizations.registry import families
from weft.parametrizations.registry import family
from weft.parametrizations.registry import make
from weft.parametrizations.registry import record_of
from weft.parametrizations.registry import register
from weft.parametrizations.semiseparable import SequentiallySemiseparable
from weft.parametrizations.stacked import Stacked
from weft.parametrizations.toeplitz_like import ToeplitzLike

__all__ = [
    "HEDLR",
    "HODLR",
    "LDR",
    "PSM",
    "Block",
    "Butterfly",
    "Chain",
    "Dense",
    "Family",
    "HMat",
    "Kronecker",
    "LowRank",
    "Monarch",
    "Parametrization",
    "QuaternionRotation",
    "SequentiallySemiseparable",
    "Stacked",
    "Stage",
    "StageShape",
    "ToeplitzLike",
    "algebra_distance",
    "algebras",
    "check_laws",
    "check_options",
    "families",
    "family",
    "fast_product",
    "laws",
    "make",
    "multiplication_table",
    "record_of",
    "register",
]
