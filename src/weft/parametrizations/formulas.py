"""Formulas of the records: arithmetic in the sizes of a member, read from text without running it as code."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping

from weft.errors import OptionError
from weft.parametrizations.base import Parametrization

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
#: What a formula may call.
FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "log2": math.log2,
    "ceil": math.ceil,
    "floor": math.floor,
    "min": min,
    "max": max,
}


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """The value of a formula of a record.

    Args:
        formula: numbers, names, ``+ - * / ^``, parentheses, and log2, ceil, floor, min, max.
        values: of the names; ``in`` may be one.

    Returns:
        the value.

    Raises:
        OptionError: the formula contains something else.

    Example:
        >>> evaluate("n^3 + out*in/n", {"n": 4, "out": 8, "in": 12})
        88.0
    """
    text = re.sub(r"\bin\b", "in_", formula).replace("^", "**")

    def value(node: ast.AST) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.Name(id=name) if name.removesuffix("_") in values:
                return values[name.removesuffix("_")]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(value, arguments))
        raise OptionError(
            f"formula {formula!r} holds {ast.unparse(node)!r}, which is none of {sorted(values)} or arithmetic"
        )

    return value(ast.parse(text, mode="eval").body)


def numbers_of(member: Parametrization) -> dict[str, float]:
    """What a formula may name: the sizes of a member.

    Args:
        member: of any family.

    Returns:
        ``out`` and ``in``; ``gain``, the root mean square of the outputs at the start over that of a new
        ``nn.Linear``, (3*in*variance)^0.5, which is 1 unless the layer was asked for another initial law; and every
        attribute and property that is a number.

    Example:
        >>> from weft.parametrizations import LowRank
        >>> numbers = numbers_of(LowRank((8, 12), rank=2))
        >>> numbers["in"], numbers["rank"], numbers["num_parameters"]
        (12, 2, 40)
    """
    properties = (name for name in dir(member) if isinstance(getattr(type(member), name, None), property))
    numbers = {}
    for name in (*properties, *vars(member)):
        value = getattr(member, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = value
    rows, columns = member.shape
    return {**numbers, "out": rows, "in": columns, "gain": (3 * columns * member.variance) ** 0.5}
