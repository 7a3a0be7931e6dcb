"""Tests that every family passes, also those that are not Weft's own."""

from weft.testing import oracles
from weft.testing.case import Case
from weft.testing.case import assert_same
from weft.testing.contract import checks
from weft.testing.contract import parametrize_with_contract
from weft.testing.interop import interoperability_checks
from weft.testing.interop import parametrize_with_interoperability
from weft.testing.kinds import Kind
from weft.testing.kinds import kinds
from weft.testing.kinds import wrapped_kinds

__all__ = [
    "Case",
    "Kind",
    "assert_same",
    "checks",
    "interoperability_checks",
    "kinds",
    "oracles",
    "parametrize_with_contract",
    "parametrize_with_interoperability",
    "wrapped_kinds",
]
