"""Feed a recorded log into a fresh control and compare what it decides: `replay(path)`.

Streams: memory is that of the open requests. The same effects, as canonical lines without `applied` and `why`, mean that the control is
a function of its events alone. A different code digest is reported, not an error in itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windtunnel.errors import RunReplayError
from windtunnel.lab import codec
from windtunnel.lab.digest import code_digest
from windtunnel.lab.logread import LogReader, Step

if TYPE_CHECKING:
    from windtunnel.lab.run import Run
    from windtunnel.policy.control import Control

_BESIDE = frozenset({"c", "i", "f", "applied", "why"})


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A replay that agreed. events, effects: how many were compared; complete: the log had its end; same_code: written by this code.

    control: as it stands after the last event.
    """

    header: Mapping[str, Any]
    events: int
    effects: int
    complete: bool
    same_code: bool
    control: Control

    def to_dict(self) -> dict[str, Any]:
        return {"run_id": self.header["run_id"], "events": self.events, "effects": self.effects, "complete": self.complete,
                "same_code": self.same_code}

    def __repr__(self) -> str:
        code = "same code" if self.same_code else f"code {self.header['code_digest'][:8]} then, {code_digest()[:8]} now"
        tail = "" if self.complete else "; the log was cut off"
        return f"replay of {self.header['run_id']} agrees: {self.events:,} events, {self.effects:,} effects ({code}){tail}"


def replay(what: Path | str | bytes | Run, control: Control | Callable[[Mapping[str, Any]], Control] | None = None) -> ReplayResult:
    """Replay a log, a run's directory, a log's bytes or a `Run`.

    control: None builds one from the log's header; a fresh Control, or a function header → Control, tries another.
    Raises RunReplayError at the first difference, RunCorruptError or RunVersionError for the log itself.
    """
    reader = LogReader(_source(what))
    if reader.first_seq != 1:
        text = f"log starts at seq {reader.first_seq}; replay needs seq 1"
        raise RunReplayError(text, seq=reader.first_seq, index=0, field="seq", recorded="", replayed="")
    fresh = _control(control, reader.header)
    effects = 0
    for step in reader.steps():
        effects += _compare(step, fresh, reader.header)
    return ReplayResult(reader.header, reader.events, effects, reader.complete, reader.header["code_digest"] == code_digest(), fresh)


def _source(what: Any) -> Path | bytes:
    if isinstance(what, bytes):
        return what
    if isinstance(what, str | Path):
        return Path(what)
    log = what.tables.log
    if log is None:
        from windtunnel.errors import RunNotRecordedError

        raise RunNotRecordedError(f'log needs record: full; this run has "{what.tables.level}"')
    return log  # type: ignore[no-any-return]


def _control(given: Any, header: Mapping[str, Any]) -> Control:
    if given is None:
        from windtunnel.lab.build import control_from_header

        return control_from_header(header)
    if hasattr(given, "handle"):
        return given  # type: ignore[no-any-return]
    return given(header)  # type: ignore[no-any-return]


def _compare(step: Step, control: Control, header: Mapping[str, Any]) -> int:
    """Handle one recorded event; return how many effects agreed."""
    event = codec.event_of(step.event)
    try:
        made = control.handle(event, step.now)
    except Exception as error:
        if step.raised is not None and step.raised[0] == type(error).__name__:
            return 0
        recorded = ": ".join(step.raised) if step.raised else None
        raise _difference(step, header, 0, "exception", recorded, f"{type(error).__name__}: {error}") from error
    if step.raised is not None:
        raise _difference(step, header, 0, "exception", ": ".join(step.raised), "no exception")
    for i, effect in enumerate(made):
        if i >= len(step.effects):
            if not step.whole:
                return i
            raise _difference(step, header, i, "effect", None, _told(codec.effect_object(step.seq, i, effect)))
        replayed = codec.effect_object(step.seq, i, effect)
        if codec.canonical(replayed) != step.lines[i]:
            _differ(step, header, i, replayed)
    if len(made) < len(step.effects):
        raise _difference(step, header, len(made), "effect", _told(step.effects[len(made)]), None)
    return len(made)


def _differ(step: Step, header: Mapping[str, Any], index: int, replayed: dict[str, Any]) -> None:
    """Raise unless the two sides differ only in what the world did with the effect."""
    recorded = step.effects[index]
    now = codec.json.loads(codec.canonical(replayed))
    if recorded["f"] != now["f"]:
        raise _difference(step, header, index, "effect", _told(recorded), _told(now))
    names = sorted(k for k in recorded.keys() | now.keys() if k not in _BESIDE and recorded.get(k) != now.get(k))
    if names:
        raise _difference(step, header, index, ", ".join(names), _told(recorded, names), _told(now, names))


def _difference(step: Step, header: Mapping[str, Any], index: int, field: str, recorded: str | None,
                replayed: str | None) -> RunReplayError:
    recorded, replayed = recorded or "nothing", replayed or "nothing"
    head = f"replay differs at seq {step.seq} (t {step.now!r} s, {_told_event(step.event)})"
    differs = "" if field in ("effect", "exception") else f"      differs in: {field}"
    lines = [head, f"  effect {index} recorded: {recorded}", f"  effect {index} replayed: {replayed}{differs}"]
    lines.append(f"code digest recorded {header['code_digest'][:8]}, now {code_digest()[:8]}; {step.seq - 1} events before it agree")
    return RunReplayError("\n".join(lines), seq=step.seq, index=index, field=field, recorded=recorded, replayed=replayed)


def _told_event(event: Mapping[str, Any]) -> str:
    request = event.get("request_id") or (event.get("request") or {}).get("id") or event.get("key") or ""
    words = [event["e"], request, f"on {event['replica']}" if "replica" in event else ""]
    return " ".join(w for w in words if w)


def _told(effect: Mapping[str, Any], names: list[str] | None = None) -> str:
    """An effect in a few words, with the differing fields that the words do not hold."""
    get = effect.get
    subject = get("request") or get("request_id") or get("replica") or get("key") or ""
    words = [effect["f"], str(subject)]
    denial = get("denial") or {}
    shown = {"request", "request_id", "reason", "key"}
    if get("request") and get("replica"):
        words.append(f"→ {get('replica')}")
        shown.add("replica")
    if effect["f"] == "ScaleTo":
        words.append(" ".join(f"{pool} {n}" for pool, n in effect["targets"]))
        shown.add("targets")
    if effect["f"] == "WakeAt":
        words.append(f"at {get('at')!r}")
        shown.add("at")
    reason = get("reason") or denial.get("reason")
    if reason:
        words.append(f"({reason})")
    more = [f"{n}={codec.json.dumps(get(n), sort_keys=True, ensure_ascii=False)}" for n in names or () if n not in shown]
    return " ".join(w for w in (*words, *more) if w)
