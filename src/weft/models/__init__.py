"""Models, one skeleton each, whose layers take any family. ``import weft`` does not import this package."""

from weft.models.mlp import MLP
from weft.models.resnet import CifarResNet
from weft.models.resnet import ResNet
from weft.models.small_cnn import SmallCNN
from weft.models.vgg import VGG

__all__ = [
    "MLP",
    "VGG",
    "CifarResNet",
    "ResNet",
    "SmallCNN",
]
