"""Events and effects as plain data and back: the lines of a log.

A line is one JSON object with sorted keys, no spaces, floats by `repr`, no NaN or infinity. Fields that have their default are left out;
`content` and `truth` of a request are never written. Decoding refuses unknown kinds and keys, so that nothing is silently dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from windtunnel import effects as fx
from windtunnel import events as ev
from windtunnel.errors import RunCorruptError
from windtunnel.policy.routing.turns import TurnRef

EVENTS: Mapping[str, type[Any]] = {c.__name__: c for c in (
    ev.Arrived, ev.Cancelled, ev.Started, ev.FirstToken, ev.HandedOver, ev.Progressed, ev.Finished, ev.Failed, ev.ReplicaBooting,
    ev.ReplicaReady, ev.ReplicaGone, ev.Scraped, ev.StepReported, ev.PoolsObserved, ev.ScaleAnswered, ev.Answered, ev.Woke, ev.Commanded)}
EFFECTS: Mapping[str, type[Any]] = {c.__name__: c for c in (
    fx.Dispatch, fx.Reject, fx.Close, fx.Cancel, fx.ScaleTo, fx.Drain, fx.WakeAt, fx.Ask, fx.Note)}
NEVER = frozenset({"content", "truth"})
_EVENT_KEYS, _EFFECT_KEYS = frozenset({"s", "t", "e"}), frozenset({"c", "i", "f", "applied", "why"})


def canonical(value: Any) -> bytes:
    """`value` as one line of UTF-8 JSON with its LF. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=plain)
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a client's JSON
        return (json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=plain) + "\n").encode()


def plain(value: Any) -> Any:
    """`value` as what JSON has: facts become objects, tuples and sets lists, non-finite floats words."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0.0 else str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(plain(v) for v in value)
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if is_dataclass(value):
        as_plain = getattr(value, "as_plain", None)  # a value with a form of its own
        return fact_object(value) if as_plain is None else plain(as_plain())
    if hasattr(value, "item"):  # a NumPy scalar
        return plain(value.item())
    return str(value)


_DEFAULTS: dict[type[Any], tuple[tuple[str, Any], ...]] = {}


def _defaults(cls: type[Any]) -> tuple[tuple[str, Any], ...]:
    """(field, default) of a fact, looked up once per type; MISSING for required ones, which are always written."""
    found = _DEFAULTS.get(cls)
    if found is None:
        wanted = (f for f in fields(cls) if f.name not in NEVER)
        found = _DEFAULTS[cls] = tuple((f.name, f.default if f.default_factory is MISSING else f.default_factory()) for f in wanted)
    return found


def fact_object(value: Any) -> dict[str, Any]:
    """A fact as an object, without what has its default."""
    out = {}
    for name, default in _defaults(type(value)):
        got = getattr(value, name)
        if got is not default and (default is MISSING or got != default):
            out[name] = plain(got)
    return out


def event_object(seq: int, now: float, event: Any) -> dict[str, Any]:
    """The event line's object: `s` number, `t` run seconds, `e` kind, then the fields."""
    return {"s": seq, "t": now, "e": type(event).__name__, **fact_object(event)}


def effect_object(seq: int, index: int, effect: Any, why: str | None = None) -> dict[str, Any]:
    """The effect line's object: `c` number of its event, `i` its place, `f` kind, then the fields; why: the reason if it was held back."""
    out = {"c": seq, "i": index, "f": type(effect).__name__, **fact_object(effect)}
    if type(effect) is fx.Dispatch:
        out["request"] = effect.request.id
    if why is not None:
        out["applied"], out["why"] = False, why
    return out


def event_of(line: Mapping[str, Any]) -> Any:
    """The event of an event line's object. Raises RunCorruptError for an unknown kind or key, or a missing field."""
    cls = EVENTS.get(line.get("e", ""))
    if cls is None:
        raise RunCorruptError(f"unknown event {line.get('e')!r}")
    return _fact(cls, line, _EVENT_KEYS)


def effect_of(line: Mapping[str, Any], request_of: Callable[[str], ev.Request]) -> Any:
    """The effect of an effect line's object; `request_of` finds a Dispatch's request by id. Raises RunCorruptError as `event_of`."""
    cls = EFFECTS.get(line.get("f", ""))
    if cls is None:
        raise RunCorruptError(f"unknown effect {line.get('f')!r}")
    if cls is fx.Dispatch:
        line = {**line, "request": request_of(line["request"])}
    return _fact(cls, line, _EFFECT_KEYS)


def _fact(cls: type[Any], line: Mapping[str, Any], beside: frozenset[str] = frozenset()) -> Any:
    known = dict(_defaults(cls))
    unknown = sorted(set(line) - known.keys() - beside)
    if unknown:
        raise RunCorruptError(f"{cls.__name__} has no field {unknown[0]!r}")
    given = {k: _field(k, v) for k, v in line.items() if k in known}
    missing = [name for name, default in known.items() if default is MISSING and name not in given]
    if missing:
        raise RunCorruptError(f"{cls.__name__} lacks {missing[0]!r}")
    return cls(**given)


def _pairs(value: Any) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(pair) for pair in value)


def _denial(value: Mapping[str, Any]) -> Any:
    from windtunnel.policy.admission.denial import Denial, Reason

    denial = {**value, "reason": Reason(value["reason"])} if "reason" in value else value
    return _fact(Denial, denial)


def _report(value: Any) -> Any:
    from windtunnel.policy.planning.contract import ForwardPass
    from windtunnel.policy.planning.plain import build

    return value if isinstance(value, ForwardPass) else build(ForwardPass, value)


_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "tried": frozenset, "blocks": tuple, "labels": _pairs, "counts": _pairs, "targets": _pairs, "items": tuple, "calls": tuple,
    "ids": tuple, "fork_children": tuple, "denial": _denial,
    "turn": lambda v: _fact(TurnRef, v), "scrape": lambda v: _fact(ev.Scrape, v),
    "report": _report,
    "request": lambda v: v if isinstance(v, ev.Request) else _fact(ev.Request, v),
}


def _field(name: str, value: Any) -> Any:
    """The Python form of a field that JSON has in another form."""
    convert = _FIELDS.get(name)
    if convert is None or value is None:
        return value
    try:
        return convert(value)
    except (TypeError, ValueError, AttributeError, KeyError) as e:
        raise RunCorruptError(f"field {name!r} is not understood: {e}") from None
