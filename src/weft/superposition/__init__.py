"""Computing in superposition: several inputs through one network at once."""

from weft.superposition.binding import FHRR
from weft.superposition.binding import HRR
from weft.superposition.binding import MAP
from weft.superposition.binding import MBAT
from weft.superposition.binding import Binding
from weft.superposition.binding import Bundle
from weft.superposition.binding import make_binding
from weft.superposition.measure import Regrouping
from weft.superposition.measure import regrouping_spread
from weft.superposition.measure import seconds_per_input
from weft.superposition.mimo import MIMO
from weft.superposition.regularization import isometry_penalty
from weft.superposition.statistics import SwitchableBatchNorm
from weft.superposition.statistics import recalibrate
from weft.superposition.unbinding import Unbinding

__all__ = [
    "FHRR",
    "HRR",
    "MAP",
    "MBAT",
    "MIMO",
    "Binding",
    "Bundle",
    "Regrouping",
    "SwitchableBatchNorm",
    "Unbinding",
    "isometry_penalty",
    "make_binding",
    "recalibrate",
    "regrouping_spread",
    "seconds_per_input",
]
