"""Contract values to protobuf messages and back, without loss: `from_proto(to_proto(x)) == x`, floats bit for bit.

One walk over the dataclasses' fields does both ways: a message has the name of its dataclass, its fields those of the dataclass (times
carry `_s` on the wire). Unknown fields of a newer peer are ignored.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from windtunnel.errors import ExtraMissingError, PlanContractError, PluginSerializationError
from windtunnel.policy.planning import contract
from windtunnel.policy.planning.contract import Accept, Override, Reject, Stage, StageResponse

try:
    from google.protobuf.message import DecodeError, Message

    from windtunnel.live.plugins import planner_pb2 as pb
except ImportError as error:
    raise ExtraMissingError("planner plugins over gRPC", "grpc") from error

ON_WIRE = {("StageRequest", "tick_at"): "tick_at_s", ("StageRequest", "now"): "now_s"}
STAGES = {stage: i for i, stage in enumerate(Stage, start=1)}
STAGES_BACK = {i: stage for stage, i in STAGES.items()}
PAYLOADS: dict[type, str] = {Accept: "accept", Override: "override", Reject: "reject"}


def to_proto(value: Any) -> Message:
    """The message of a contract value."""
    message = getattr(pb, type(value).__name__)()
    if isinstance(value, StageResponse):
        message.final = value.final
        if value.answer is not None:
            _fill(getattr(message, PAYLOADS[type(value.answer)]), value.answer)
        return message
    _fill(message, value)
    return message


def from_proto(message: Message) -> Any:
    """The contract value of a message. Raises PluginSerializationError naming the field that is missing or wrong."""
    name = message.DESCRIPTOR.name
    kind = getattr(contract, name, None)
    if kind is None:
        raise PluginSerializationError(f"{name} is not a value of the contract")
    try:
        return _response(message) if kind is StageResponse else _read(message, kind)
    except PlanContractError as error:
        raise PluginSerializationError(f"{name}: {error}") from error


def parse(kind: type[Message], data: bytes) -> Any:
    """Bytes to a contract value; PluginSerializationError if they are none."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise PluginSerializationError(f"not a {kind.DESCRIPTOR.name}: {error}") from error
    return from_proto(message)


def _response(message: Any) -> StageResponse:
    which = message.WhichOneof("result")
    answer = None if which is None else from_proto(getattr(message, which))
    return StageResponse(answer, message.final)


# -- one field at a time ----------------------------------------------------------------------------------------------------------------


def _fill(message: Any, value: Any) -> None:
    name = type(value).__name__
    if not fields(value):
        message.SetInParent()  # Accept has nothing but its presence
    for f in fields(value):
        item = getattr(value, f.name)
        if item is not None:
            _put(message, ON_WIRE.get((name, f.name), f.name), item)
    if not message.ByteSize():
        message.SetInParent()


def _put(message: Any, field: str, item: Any) -> None:
    if isinstance(item, Stage):
        setattr(message, field, STAGES[item])
    elif isinstance(item, tuple):
        for one in item:
            _fill(getattr(message, field).add(), one)
    elif isinstance(item, Mapping):
        target = getattr(message, field)
        for key, one in item.items():
            if isinstance(one, Mapping):  # engines: reports by replica and rank
                target[key].SetInParent()
                for inner, report in one.items():
                    _fill(target[key].reports[inner], report)
            else:
                _fill(target[key], one)
    elif is_dataclass(item):
        _fill(getattr(message, field), item)
    else:
        setattr(message, field, int(item) if isinstance(item, IntEnum) else item)


@cache
def _shape(kind: type) -> tuple[tuple[str, str, Any, bool, bool], ...]:
    """(field, name on the wire, type without None, may be None, has a default) of a dataclass."""
    hints = typing.get_type_hints(kind)
    out = []
    for f in fields(kind):
        hint = hints[f.name]
        args = typing.get_args(hint)
        nullable = isinstance(hint, types.UnionType) and type(None) in args
        plain = next(a for a in args if a is not type(None)) if nullable else hint
        default = f.default is not MISSING or f.default_factory is not MISSING
        out.append((f.name, ON_WIRE.get((kind.__name__, f.name), f.name), plain, nullable, default))
    return tuple(out)


def _read(message: Any, kind: type) -> Any:
    values = {}
    for name, wire, plain, nullable, _ in _shape(kind):
        values[name] = _get(message, wire, plain, nullable, f"{kind.__name__}.{name}")
    return kind(**values)


def _get(message: Any, wire: str, plain: Any, nullable: bool, path: str) -> Any:
    origin = typing.get_origin(plain)
    if origin is tuple:
        inner = typing.get_args(plain)[0]
        return tuple(_read(one, inner) for one in getattr(message, wire))
    if origin is not None and issubclass(origin, Mapping):
        inner = typing.get_args(plain)[1]
        found = getattr(message, wire)
        if typing.get_origin(inner) is not None:
            report = typing.get_args(inner)[1]
            return {key: {k: _read(r, report) for k, r in one.reports.items()} for key, one in found.items()}
        return {key: _read(one, inner) for key, one in found.items()}
    if plain is Stage or (isinstance(plain, type) and issubclass(plain, IntEnum)):
        number = getattr(message, wire)
        if not number:
            raise PluginSerializationError(f"{path} is unspecified")
        try:
            return STAGES_BACK[number] if plain is Stage else plain(number)
        except (KeyError, ValueError):
            raise PluginSerializationError(f"{path}: unknown value {number}") from None
    descriptor = message.DESCRIPTOR.fields_by_name[wire]
    if descriptor.has_presence and not message.HasField(wire):
        if nullable:
            return None
        raise PluginSerializationError(f"{path} is missing")
    value = getattr(message, wire)
    return _read(value, plain) if is_dataclass(plain) else value  # type: ignore[arg-type]
