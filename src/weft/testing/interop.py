"""The interoperability protocol: what the world around torch.nn does to a layer, for every family and kind of layer.

from weft.testing import parametrize_with_interoperability

@parametrize_with_interoperability(my_cases)
def test_interoperability(case, kind, check):
    check(case, kind)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from weft.testing import copies, exports, transforms
from weft.testing.case import Case
from weft.testing.contract import parametrize
from weft.testing.kinds import Kind, kinds

if TYPE_CHECKING:
    import pytest

InteroperabilityCheck = Callable[[Case, Kind], None]


def interoperability_checks(kind: Kind | None = None) -> dict[str, InteroperabilityCheck]:
    """The checks of the protocol.

    Args:
        kind: take only those that run for this kind of layer (compile, export and ONNX take seconds and run for three
            kinds); None for all.

    Returns:
        name to function; a function takes a case and a kind, and raises AssertionError.

    Example:
        >>> interoperability_checks()["meta_device"].__doc__
        'Built on the meta device, every tensor is there, and shapes come out right.'
    """
    functions = [*copies.CHECKS, *transforms.CHECKS, *(exports.CHECKS if kind is None or kind.heavy else ())]
    return {function.__name__: function for function in functions}


def parametrize_with_interoperability(
    cases: Iterable[Case], of_kinds: Iterable[Kind] | None = None
) -> pytest.MarkDecorator:
    """A pytest decorator that runs a test function once per case, kind of layer and check.

    ``expected_failures`` of the record, the case and the kind hold here too.

    Args:
        cases: what to test.
        of_kinds: in which kinds of layers; None for the linear ones and convolutions, ``kinds()``.

    Returns:
        the decorator; the test function takes ``case``, ``kind`` and ``check``.
    """
    chosen = list(kinds().values() if of_kinds is None else of_kinds)
    return parametrize(
        "case, kind, check",
        (
            ({**case.reasons, **kind.expected_failures}, name, (case, kind, check))
            for case in cases
            for kind in chosen
            for name, check in interoperability_checks(kind).items()
        ),
    )
