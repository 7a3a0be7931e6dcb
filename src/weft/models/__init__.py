"""Models, one skeleton each, whose layers take any family. ``import weft`` does not import this package."""

from weft.models.hyper_mlp import HyperMLP
from weft.models.mlp import MLP
from weft.models.overparameterized import overparameterized
from weft.models.resnet import CifarResNet
from weft.models.resnet import ResNet
from weft.models.small_cnn import SmallCNN
from weft.models.vgg import VGG
from weft.models.wide_resnet import mimonet
from weft.models.wide_resnet import wide_isonet
from weft.models.wide_resnet import wide_isorelunet
from weft.models.wide_resnet import wide_network
from weft.models.wide_resnet import wide_resnet

__all__ = [
    "MLP",
    "VGG",
    "CifarResNet",
    "HyperMLP",
    "ResNet",
    "SmallCNN",
    "mimonet",
    "overparameterized",
    "wide_isonet",
    "wide_isorelunet",
    "wide_network",
    "wide_resnet",
]
