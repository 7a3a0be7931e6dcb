"""Over-parametrisation: layers that train in the form of several and run as one."""

from weft.overparam.base import EPLayer
from weft.overparam.conv import EPConv1d
from weft.overparam.conv import EPConv2d
from weft.overparam.conv import EPConv3d
from weft.overparam.conv import same_padding
from weft.overparam.graph import plot_graph
from weft.overparam.linear import EPLinear
from weft.overparam.rank import effective_rank

__all__ = ["EPConv1d", "EPConv2d", "EPConv3d", "EPLayer", "EPLinear", "effective_rank", "plot_graph", "same_padding"]
