"""Weft: weights that are cleverer than a dense matrix.

Layers that behave like ``torch.nn.Linear`` and ``torch.nn.Conv*d`` but whose weight is described by fewer, or better
placed, numbers; the conversion of whole models; and the way back to plain torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from weft import parametrizations
from weft import quaternion
from weft import superposition
from weft.errors import WeftError
from weft import hypernet
from weft.hypernet import HyperNetwork
from weft.layers import Conv1d
from weft.layers import Conv2d
from weft.layers import Conv3d
from weft.layers import ConvTranspose1d
from weft.layers import ConvTranspose2d
from weft.layers import ConvTranspose3d
from weft.layers import Embedding
from weft.layers import GRU
from weft.layers import HEDLRLinear
from weft.layers import HMatLinear
from weft.layers import HODLRLinear
from weft.layers import LDRLinear
from weft.layers import LRLinear
from weft.layers import LSTM
from weft.layers import Linear
from weft.layers import MultiheadAttention
from weft.layers import PHConv1d
from weft.layers import PHConv2d
from weft.layers import PHConv3d
from weft.layers import PHConvTranspose1d
from weft.layers import PHConvTranspose2d
from weft.layers import PHConvTranspose3d
from weft.layers import MonarchLinear
from weft.layers import PSMLinear
from weft.layers import PHMLinear
from weft.layers import QuaternionConv1d
from weft.layers import QuaternionConv2d
from weft.layers import QuaternionConv3d
from weft.layers import QuaternionConvTranspose1d
from weft.layers import QuaternionConvTranspose2d
from weft.layers import QuaternionConvTranspose3d
from weft.layers import QuaternionLinear
from weft.layers import RNN
from weft.layers import ResidualGate
from weft.layers import SSSLinear
from weft.layers import TLLinear
from weft.layers import clear_cache
from weft.overparam import EPConv1d
from weft.overparam import EPConv2d
from weft.overparam import EPConv3d
from weft.overparam import EPLinear
from weft.overparam import effective_rank
from weft.parametrizations import Parametrization
from weft.parametrizations import families
from weft.plots import plot_partition
from weft.superposition import MIMO
from weft.surgery import algebra_penalty
from weft.surgery import approximate
from weft.surgery import convert
from weft.surgery import fold
from weft.surgery import overparameterize
from weft.surgery import parameter_groups
from weft.surgery import summary
from weft.surgery import verify

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "MIMO",
    "RNN",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "EPConv1d",
    "EPConv2d",
    "EPConv3d",
    "EPLinear",
    "Embedding",
    "HEDLRLinear",
    "HMatLinear",
    "HODLRLinear",
    "HyperNetwork",
    "LDRLinear",
    "LRLinear",
    "Linear",
    "MonarchLinear",
    "MultiheadAttention",
    "PHConv1d",
    "PHConv2d",
    "PHConv3d",
    "PHConvTranspose1d",
    "PHConvTranspose2d",
    "PHConvTranspose3d",
    "PHMLinear",
    "PSMLinear",
    "Parametrization",
    "QuaternionConv1d",
    "QuaternionConv2d",
    "QuaternionConv3d",
    "QuaternionConvTranspose1d",
    "QuaternionConvTranspose2d",
    "QuaternionConvTranspose3d",
    "QuaternionLinear",
    "ResidualGate",
    "SSSLinear",
    "TLLinear",
    "WeftError",
    "algebra_penalty",
    "approximate",
    "clear_cache",
    "convert",
    "effective_rank",
    "families",
    "fold",
    "hypernet",
    "overparameterize",
    "parameter_groups",
    "parametrizations",
    "plot_partition",
    "quaternion",
    "summary",
    "superposition",
    "verify",
]

_LAZY = ("data", "models", "testing", "train")  # need more than torch and numpy


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"weft.{name}")
    raise AttributeError(f"module 'weft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY])
