"""Labels (of columns, names of indexes, attrs) as JSON that keeps their types."""

from __future__ import annotations

import json
from typing import Any


class Inexact(Exception):
    """There is no description that would give back exactly this value."""


def to_json(label: Any) -> Any:
    """A label as JSON. Raises Inexact."""
    kind = type(label)
    if label is None or kind is str:
        return label
    if kind is int:
        return {"int": str(label)}
    if kind is float:
        return {"float": label.hex()}
    if kind is bool:
        return {"bool": label}
    if kind is tuple:
        return {"tuple": [to_json(part) for part in label]}
    raise Inexact(kind)


def from_json(told: Any) -> Any:
    """The label again."""
    if told is None or isinstance(told, str):
        return told
    ((kind, value),) = told.items()
    if kind == "int":
        return int(value)
    if kind == "float":
        return float.fromhex(value)
    if kind == "bool":
        return bool(value)
    return tuple(from_json(part) for part in value)


def check_plain(value: Any) -> Any:
    """`value`, if JSON gives back exactly the same. Raises Inexact."""
    if not value:
        return value
    try:
        same = _same(value, json.loads(json.dumps(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise Inexact(type(value)) from error
    if not same:
        raise Inexact(type(value))
    return value


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if type(a) is dict:
        return list(a) == list(b) and all(type(k) is str and _same(v, b[k]) for k, v in a.items())
    if type(a) is list:
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
