"""Who uses a weight: layers of torch whose weight is any parametrization. No layer knows a family."""

from weft.layers.attention import MultiheadAttention
from weft.layers.base import Layer
from weft.layers.composite import Composite
from weft.layers.composite import clear_cache
from weft.layers.conv import Conv1d
from weft.layers.conv import Conv2d
from weft.layers.conv import Conv3d
from weft.layers.conv import ConvTranspose1d
from weft.layers.conv import ConvTranspose2d
from weft.layers.conv import ConvTranspose3d
from weft.layers.embedding import Embedding
from weft.layers.foldable import Foldable
from weft.layers.gate import ResidualGate
from weft.layers.linear import Linear
from weft.layers.named import HEDLRLinear
from weft.layers.named import HMatLinear
from weft.layers.named import HODLRLinear
from weft.layers.named import LDRLinear
from weft.layers.named import LRLinear
from weft.layers.named import PHConv1d
from weft.layers.named import PHConv2d
from weft.layers.named import PHConv3d
from weft.layers.named import PHConvTranspose1d
from weft.layers.named import PHConvTranspose2d
from weft.layers.named import PHConvTranspose3d
from weft.layers.named import MonarchLinear
from weft.layers.named import PSMLinear
from weft.layers.named import PHMLinear
from weft.layers.named import QuaternionConv1d
from weft.layers.named import QuaternionConv2d
from weft.layers.named import QuaternionConv3d
from weft.layers.named import QuaternionConvTranspose1d
from weft.layers.named import QuaternionConvTranspose2d
from weft.layers.named import QuaternionConvTranspose3d
from weft.layers.named import QuaternionLinear
from weft.layers.named import SSSLinear
from weft.layers.named import TLLinear
from weft.layers.recurrent import GRU
from weft.layers.recurrent import LSTM
from weft.layers.recurrent import RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Composite",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "Foldable",
    "HEDLRLinear",
    "HMatLinear",
    "HODLRLinear",
    "LDRLinear",
    "LRLinear",
    "Layer",
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
    "clear_cache",
]
