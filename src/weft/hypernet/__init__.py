"""Hypernetworks: networks whose parameters another network makes, per task or per row of the batch."""

from weft.hypernet.activations import SlotSwish
from weft.hypernet.hypernetwork import HyperNetwork
from weft.hypernet.program import per_row_call

__all__ = ["HyperNetwork", "SlotSwish", "per_row_call"]
