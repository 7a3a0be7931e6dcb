"""The contract that every family passes, as named checks.

from weft.testing import Case, parametrize_with_contract

@parametrize_with_contract([Case("rank 3", make_rank_3, my_slow_dense)])
def test_contract(case, check):
    check(case)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from weft.testing import fitting, state, values
from weft.testing.case import Case

if TYPE_CHECKING:
    import pytest

Check = Callable[[Case], None]


def checks(case: Case | None = None) -> dict[str, Check]:
    """The checks of the contract.

    Args:
        case: take only those that concern its family (one with ``has_fit=False`` must refuse to fit instead of
            fitting well); None for all.

    Returns:
        name to function; a function takes a case and raises AssertionError.

    Example:
        >>> checks()["product_equals_dense"].__doc__
        '``linear`` is the product with ``dense()``, for every leading shape, with and without a bias.'
    """
    with_fit, without_fit = (True, True) if case is None else (case.record.has_fit, not case.record.has_fit)
    functions = [*values.CHECKS, *state.CHECKS]
    functions += fitting.CHECKS * with_fit + fitting.CHECKS_WITHOUT_FIT * without_fit
    return {function.__name__: function for function in functions}


def parametrize_with_contract(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """A pytest decorator that runs a test function once per case and check.

    Checks that the record of a family declares under ``expected_failures`` are strict expected failures with the
    declared reason: one that starts to pass fails the test run, so that the declaration is removed.

    Args:
        cases: what to test.

    Returns:
        the decorator; the test function takes ``case`` and ``check``.
    """
    given = [(case.reasons, name, (case, check)) for case in cases for name, check in checks(case).items()]
    return parametrize("case, check", given)


def parametrize(
    arguments: str, parameters_of_tests: Iterable[tuple[Mapping[str, str], str, tuple[Any, ...]]]
) -> pytest.MarkDecorator:
    """Parameters from (check to why it must fail, name of the check, values); the values' names name the test."""
    import pytest

    parameters = []
    for reasons, name, given in parameters_of_tests:
        reason = reasons.get(name)
        marks = () if reason is None else (pytest.mark.xfail(reason=reason, strict=True),)
        label = "-".join(name if callable(value) else str(value) for value in given)
        parameters.append(pytest.param(*given, id=label, marks=marks))
    return pytest.mark.parametrize(arguments, parameters)
