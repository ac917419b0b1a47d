"""Checks of the contract's fields: each raises PlanContractError naming the dotted path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from windtunnel.errors import PlanContractError

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}  # read by pydantic's TypeAdapter at the edge
COMPONENT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def bad(path: str, what: str, value: object) -> PlanContractError:
    """The error for a value at a dotted path."""
    return PlanContractError(f"{path}: expected {what}, got {value!r}")


def real(path: str, value: Any, lo: float = 0.0, hi: float | None = None) -> None:
    """Raise unless `value` is a finite number in [lo, hi]; bools are none."""
    kind = type(value)
    if (kind is not float and (kind is bool or not isinstance(value, (int, float)))) or not isfinite(value):
        raise bad(path, "a finite number", value)
    if value < lo or (hi is not None and value > hi):
        raise bad(path, f"a number in [{lo:g}, {hi:g}]" if hi is not None else f"a number >= {lo:g}", value)


def whole(path: str, value: Any, lo: int = 0, hi: int | None = None) -> None:
    """Raise unless `value` is an int in [lo, hi]; bools are none."""
    if type(value) is not int:
        raise bad(path, "an int", value)
    if value < lo or (hi is not None and value > hi):
        raise bad(path, f"an int in [{lo}, {hi}]" if hi is not None else f"an int >= {lo}", value)


def text(path: str, value: Any) -> None:
    """Raise unless `value` is a string."""
    if type(value) is not str:
        raise bad(path, "a string", value)


def flag(path: str, value: Any) -> None:
    """Raise unless `value` is a bool."""
    if type(value) is not bool:
        raise bad(path, "true or false", value)


def one(path: str, value: Any, kind: type, optional: bool = True) -> None:
    """Raise unless `value` is of that kind, or None where that is allowed."""
    if not (isinstance(value, kind) or (optional and value is None)):
        raise bad(path, kind.__name__, value)


def each(path: str, values: Any, kind: type) -> None:
    """Raise unless `values` is a tuple of that kind."""
    if type(values) is not tuple:
        raise bad(path, "a tuple", values)
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise bad(f"{path}[{i}]", kind.__name__, value)


def table(path: str, values: Any) -> Mapping[str, Any]:
    """`values`; raise unless it is a mapping whose keys are strings."""
    if not isinstance(values, Mapping):
        raise bad(path, "a mapping", values)
    for key in values:
        text(f"{path} key", key)
    return values


def component_name(path: str, value: Any) -> None:
    """Raise PlanContractError unless `value` is a component's name: [a-z0-9][a-z0-9_-]{0,62}."""
    if type(value) is not str or COMPONENT.fullmatch(value) is None:
        raise bad(path, "a name [a-z0-9][a-z0-9_-]{0,62}", value)
