"""Data modules: real data as in-memory tensors, ready for a Lightning trainer.

``import weft`` does not import this package; it needs the ``train`` extra (``pip install weft[train]``).
"""

from weft.data.images import ImageData
from weft.data.tasks import TaskSequence
from weft.data.timeseries import SeriesData

__all__ = [
    "ImageData",
    "SeriesData",
    "TaskSequence",
]
