"""Lightning modules that train models.

``import weft`` does not import this package; it needs the ``train`` extra (``pip install weft[train]``).
"""

from weft.train.classifier import Classifier

__all__ = [
    "Classifier",
]
