"""Hypernetworks: networks whose parameters another network makes, per task or per row of the batch."""

from weft.hypernet.activations import SlotSwish
from weft.hypernet.continual import OutputRegularizer
from weft.hypernet.continual import TaskInference
from weft.hypernet.continual import infer_task
from weft.hypernet.gradients import Finding
from weft.hypernet.gradients import GradientReport
from weft.hypernet.gradients import check_gradients
from weft.hypernet.hypernetwork import Explanation
from weft.hypernet.hypernetwork import HyperNetwork
from weft.hypernet.ode import solve_ode
from weft.hypernet.program import Choice
from weft.hypernet.program import per_row_call

__all__ = [
    "Choice",
    "Explanation",
    "Finding",
    "GradientReport",
    "HyperNetwork",
    "OutputRegularizer",
    "SlotSwish",
    "TaskInference",
    "check_gradients",
    "infer_task",
    "per_row_call",
    "solve_ode",
]
