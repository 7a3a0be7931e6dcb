"""Lightning modules that train models.

``import weft`` does not import this package; it needs the ``train`` extra (``pip install weft[train]``).
"""

from weft.train.callbacks import DecreasingLR
from weft.train.callbacks import ParameterLog
from weft.train.classifier import Classifier
from weft.train.continual import ContinualClassifier
from weft.train.continual import forgetting
from weft.train.decreasing_lr import Round
from weft.train.decreasing_lr import train_with_decreasing_lr
from weft.train.ode import ODEForecaster
from weft.train.rank_experiment import RankBias
from weft.train.rank_experiment import rank_bias
from weft.train.superposed import SuperposedClassifier

__all__ = [
    "Classifier",
    "ContinualClassifier",
    "DecreasingLR",
    "ODEForecaster",
    "ParameterLog",
    "RankBias",
    "Round",
    "SuperposedClassifier",
    "forgetting",
    "rank_bias",
    "train_with_decreasing_lr",
]
