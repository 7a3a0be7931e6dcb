"""Whole models: convert, approximate, fold, verify, summarise. Knows layers, no family."""

from weft.surgery.approximate import approximate
from weft.surgery.compare import Trial
from weft.surgery.compare import compare
from weft.surgery.convert import ConversionReport
from weft.surgery.convert import Converted
from weft.surgery.convert import convert
from weft.surgery.fold import fold
from weft.surgery.groups import parameter_groups
from weft.surgery.overparameterize import overparameterize
from weft.surgery.penalty import algebra_penalty
from weft.surgery.summary import Row
from weft.surgery.summary import Summary
from weft.surgery.summary import summary
from weft.surgery.verify import Verification
from weft.surgery.verify import verify

__all__ = [
    "ConversionReport",
    "Converted",
    "Row",
    "Summary",
    "Trial",
    "Verification",
    "algebra_penalty",
    "approximate",
    "compare",
    "convert",
    "fold",
    "overparameterize",
    "parameter_groups",
    "summary",
    "verify",
]
