"""Contract values to protobuf messages and back, without loss: `from_proto(to_proto(x)) == x`, floats bit for bit.

One walk over the dataclasses' fields does both ways: a message has the name of its dataclass, its fields those of the dataclass (times
carry `_s` on the wire). Unknown fields of a newer peer are ignored.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from functools import cache
from operator import attrgetter
from typing import Any

from windtunnel.errors import ExtraMissingError, PlanContractError, PluginSerializationError
from windtunnel.policy.planning import contract
from windtunnel.policy.planning.contract import Accept, ObservationData, Override, Reject, Stage, StageResponse

try:
    from google.protobuf.message import DecodeError, Message

    from windtunnel.live.plugins import planner_pb2
except ImportError as error:
    raise ExtraMissingError("planner plugins over gRPC", "grpc") from error

pb: Any = planner_pb2  # its names are made at run time
ON_WIRE = {("StageRequest", "tick_at"): "tick_at_s", ("StageRequest", "now"): "now_s"}
STAGES = {stage: i for i, stage in enumerate(Stage, start=1)}
STAGES_BACK = {i: stage for stage, i in STAGES.items()}
PAYLOADS: dict[type, str] = {Accept: "accept", Override: "override", Reject: "reject"}


def to_proto(value: Any) -> Any:
    """The message of a contract value. What all requests of a tick have in common, its observations, is written once."""
    if isinstance(value, StageResponse):
        if value.answer is None:
            return pb.StageResponse(final=value.final)
        return pb.StageResponse(**{PAYLOADS[type(value.answer)]: to_proto(value.answer)}, final=value.final)
    kind: Any = type(value)
    message, names, get, plain = _writer(kind)
    values = get(value)
    if not plain:
        values = [_put(item) for item in values]
    return message(**dict(zip(names, values)))


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


# -- one type at a time -------------------------------------------------------------------------------------------------------------------

Writer = tuple[Any, tuple[str, ...], Callable[[Any], Sequence[Any]], bool]
_written: tuple[Any, Any] = (None, None)  # the newest observations and their message


@cache
def _writer(kind: type) -> Writer:
    """(message class, names on the wire, reads the values, whether they can be handed over as they are) of a dataclass."""
    shape = _shape(kind)
    names = tuple(f.wire for f in shape)
    if len(names) > 1:
        get: Any = attrgetter(*(f.name for f in shape))
    else:
        def get(value: Any) -> list[Any]:
            return [getattr(value, f.name) for f in shape]
    return getattr(pb, kind.__name__), names, get, all(f.mode in (PLAIN, PRESENT) for f in shape)


def _put(item: Any) -> Any:
    """A field's value as a message takes it; None is left out."""
    if item is None or type(item) in SCALARS:
        return item
    if isinstance(item, Stage):
        return STAGES[item]
    if isinstance(item, tuple):
        return [to_proto(one) for one in item]
    if isinstance(item, Mapping):
        return {key: pb.EngineReports(reports=_put(one)) if isinstance(one, Mapping) else to_proto(one) for key, one in item.items()}
    if type(item) is ObservationData:
        return _observations(item)
    return to_proto(item) if is_dataclass(item) else int(item)


def _observations(item: ObservationData) -> Any:
    global _written
    known, message = _written
    if known is not item:
        message = to_proto(item)
        _written = (item, message)
    return message


PLAIN, PRESENT, ENUM, MANY, TABLE, ENGINES, NESTED = range(7)
SCALARS = frozenset({int, float, str, bool})


@dataclass(frozen=True, slots=True)
class _Field:
    """name, name on the wire, how it is read, of which type, and whether it may be missing. PRESENT: a scalar that says if it is there."""

    name: str
    wire: str
    mode: int
    kind: Any
    nullable: bool


@cache
def _shape(kind: type) -> tuple[_Field, ...]:
    """The fields of a dataclass, in its order."""
    hints, described = typing.get_type_hints(kind), getattr(pb, kind.__name__).DESCRIPTOR.fields_by_name
    out = []
    for f in fields(kind):
        hint, wire = hints[f.name], ON_WIRE.get((kind.__name__, f.name), f.name)
        args = typing.get_args(hint)
        nullable = isinstance(hint, types.UnionType) and type(None) in args
        plain = next(a for a in args if a is not type(None)) if nullable else hint
        origin, mode = typing.get_origin(plain), PRESENT if described[wire].has_presence else PLAIN
        if origin is tuple:
            mode, plain = MANY, typing.get_args(plain)[0]
        elif origin is not None:
            inner = typing.get_args(plain)[1]
            nested = typing.get_origin(inner) is not None
            mode, plain = (ENGINES, typing.get_args(inner)[1]) if nested else (TABLE, inner)
        elif plain is Stage or issubclass(plain, IntEnum):
            mode = ENUM
        elif is_dataclass(plain):
            mode = NESTED
        out.append(_Field(f.name, wire, mode, plain, nullable))
    return tuple(out)


@cache
def _flat(kind: type) -> tuple[Callable[[Any], Sequence[Any]], tuple[_Field, ...]] | None:
    """(reads the values, fields that must be there) of a dataclass of scalars that are never None."""
    shape = _shape(kind)
    if len(shape) < 2 or any(f.nullable or f.mode not in (PLAIN, PRESENT) for f in shape):
        return None
    return attrgetter(*(f.wire for f in shape)), tuple(f for f in shape if f.mode == PRESENT)


def _read(message: Any, kind: type) -> Any:
    values: list[Any] = []
    has, flat = message.HasField, _flat(kind)
    if flat is not None:
        get, needed = flat
        for f in needed:
            if not has(f.wire):
                raise PluginSerializationError(f"{kind.__name__}.{f.name} is missing")
        return kind(*get(message))
    for f in _shape(kind):
        mode, wire = f.mode, f.wire
        if mode == PLAIN:
            values.append(getattr(message, wire))
        elif mode in (PRESENT, NESTED):
            if has(wire):
                value = getattr(message, wire)
                values.append(value if mode == PRESENT else _read(value, f.kind))
            elif f.nullable:
                values.append(None)
            else:
                raise PluginSerializationError(f"{kind.__name__}.{f.name} is missing")
        elif mode == MANY:
            values.append(tuple([_read(one, f.kind) for one in getattr(message, wire)]))
        elif mode == TABLE:
            values.append({key: _read(one, f.kind) for key, one in getattr(message, wire).items()})
        elif mode == ENGINES:
            values.append({key: {k: _read(r, f.kind) for k, r in one.reports.items()} for key, one in getattr(message, wire).items()})
        else:
            values.append(_enum(getattr(message, wire), f, kind))
    return kind(*values)


def _enum(number: int, field: _Field, kind: type) -> Any:
    if not number:
        raise PluginSerializationError(f"{kind.__name__}.{field.name} is unspecified")
    try:
        return STAGES_BACK[number] if field.kind is Stage else field.kind(number)
    except (KeyError, ValueError):
        raise PluginSerializationError(f"{kind.__name__}.{field.name}: unknown value {number}") from None
