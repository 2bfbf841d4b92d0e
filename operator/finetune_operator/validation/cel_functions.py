"""Functions that Kubernetes adds to CEL, of lists and of quantities, for rules evaluated without an apiserver.

Source: https://kubernetes.io/docs/reference/using-api/cel/#cel-options-language-features-and-libraries
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import lark
from celpy import celtypes
from celpy.evaluation import CELEvalError

from finetune_operator.validation.field_errors import go_float

_MIN = "kubernetes_min"


class _EmptySum(celtypes.IntType):
    """The sum of an empty list: a zero of the type that it meets, since the type of the list's items is not known here.

    (cel-python refuses to compare or to add numbers of unlike types.)
    """

    __hash__ = celtypes.IntType.__hash__

    def __eq__(self, other: object) -> bool:
        return other == type(other)(0)  # type: ignore[call-arg]

    def __ne__(self, other: object) -> bool:
        return not (self == other)

    def __lt__(self, other: Any) -> bool:
        return bool(other > type(other)(0))

    def __le__(self, other: Any) -> bool:
        return bool(other >= type(other)(0))

    def __gt__(self, other: Any) -> bool:
        return bool(other < type(other)(0))

    def __ge__(self, other: Any) -> bool:
        return bool(other <= type(other)(0))

    def __add__(self, other: Any) -> Any:
        return other

    def __sub__(self, other: Any) -> Any:
        return -other


def _is_sorted(items: Sequence[Any]) -> celtypes.BoolType:
    return celtypes.BoolType(all(first <= second for first, second in pairwise(items)))


def _sum(items: Sequence[Any]) -> Any:
    return sum(items[1:], items[0]) if items else _EmptySum(0)


def _min(items: Sequence[Any]) -> Any:
    return min(items) if items else CELEvalError("min called on empty list")


def _max(items: Sequence[Any]) -> Any:
    return max(items) if items else CELEvalError("max called on empty list")


def _index_of(items: Sequence[Any], item: Any) -> celtypes.IntType:
    return celtypes.IntType(next((index for index, each in enumerate(items) if each == item), -1))


def _last_index_of(items: Sequence[Any], item: Any) -> celtypes.IntType:
    return celtypes.IntType(max((index for index, each in enumerate(items) if each == item), default=-1))


_QUANTITY = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?")


def _is_quantity(text: str) -> celtypes.BoolType:
    return celtypes.BoolType(_QUANTITY.fullmatch(text) is not None)


def _format(text: str, values: Sequence[Any]) -> celtypes.StringType:
    """With `%s` for each value."""
    said = (go_float(float(each)) if isinstance(each, celtypes.DoubleType) else each for each in values)
    return celtypes.StringType(text % tuple(said))


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "isSorted": _is_sorted,
    "sum": _sum,
    _MIN: _min,
    "max": _max,
    "indexOf": _index_of,
    "lastIndexOf": _last_index_of,
    "isQuantity": _is_quantity,
    "format": _format,
}
"""By the name that a rule calls them by, after `with_list_functions`."""


def with_list_functions(tree: lark.Tree[lark.Token]) -> lark.Tree[lark.Token]:
    """The parsed rule with `x.min()` as a call of ours: cel-python has a macro of that name, with other errors."""
    for call in tree.find_data("member_dot_arg"):
        name = call.children[1]
        if isinstance(name, lark.Token) and name == "min":
            call.children[1] = name.update(value=_MIN)
    return tree
