"""Contract values as plain data and back, for the log: what a plugin answered must be there when the log is replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from windtunnel.errors import PlanContractError
from windtunnel.policy.planning.calls import Answer, CallError
from windtunnel.policy.planning.contract import PredictResponse, StageResponse, StageResponseWire
from windtunnel.policy.planning.plugin import Registration


def plain(value: Any) -> Any:
    """JSON's form of a contract value; fields with their defaults are left out, enums are their values, answers as on the wire."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if type(value) is StageResponse:
        return {key: plain(item) for key, item in StageResponseWire.wrap(value).items() if key != "final" or item}
    out = {}
    for f in fields(value):
        item = getattr(value, f.name)
        if f.compare and (f.default is MISSING or item != f.default):
            out[f.name] = plain(item)
    return out


def build(kind: Any, data: Any) -> Any:
    """The value of type `kind` that `plain` wrote. Raises PlanContractError for what is no such value."""
    if get_origin(kind) in (Union, UnionType):
        if data is None:
            return None
        [kind] = [k for k in get_args(kind) if k is not type(None)]
    origin = get_origin(kind)
    if origin is tuple:
        return tuple(build(get_args(kind)[0], item) for item in data)
    if origin is Mapping:
        return {key: build(get_args(kind)[1], item) for key, item in data.items()}
    if kind is StageResponse:
        kind_data = dict(data)
        return build(StageResponseWire, kind_data).unwrap()
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(data)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        unknown = sorted(set(data) - hints.keys())
        if unknown:
            raise PlanContractError(f"{kind.__name__}.{unknown[0]}: unknown field")
        try:
            made: Any = kind
            return made(**{name: build(hints[name], item) for name, item in data.items()})
        except TypeError as error:
            raise PlanContractError(f"{kind.__name__}: {error}") from None
    return float(data) if kind is float and type(data) is int else data


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def answer_plain(answer: Answer) -> dict[str, Any]:
    """An answer for the log."""
    out: dict[str, Any] = {"plugin_id": answer.plugin_id}
    if answer.response is not None:
        out["predict" if isinstance(answer.response, PredictResponse) else "stage"] = plain(answer.response)
    if answer.error is not None:
        out["error"] = plain(answer.error)
    for name in ("started_at", "finished_at"):
        if getattr(answer, name) is not None:
            out[name] = getattr(answer, name)
    return out


def answer_of(data: Mapping[str, Any]) -> Answer:
    """Raises PlanContractError."""
    response: Any = None
    if "predict" in data:
        response = build(PredictResponse, data["predict"])
    elif "stage" in data:
        response = build(StageResponse, data["stage"])
    error = build(CallError, data["error"]) if "error" in data else None
    return Answer(data["plugin_id"], response, error, data.get("started_at"), data.get("finished_at"))


def registration_of(data: Mapping[str, Any]) -> Registration:
    """Raises PlanContractError, ValueError for an unknown stage or hold policy."""
    return build(Registration, data)  # type: ignore[no-any-return]


