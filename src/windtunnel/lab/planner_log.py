"""What a planner did in a run, read from wherever it stands: a run's notes, a recorded `log.jsonl`, or the planner's own audit file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windtunnel.errors import ConfigError, RunCorruptError, RunNotRecordedError, RunVersionError
from windtunnel.lab.logread import LogReader

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

AUDIT_VERSION = 1
_LINE = ("v", "seq", "t", "tick", "kind", "plugin_id", "component")


@dataclass(frozen=True, slots=True)
class Entry:
    """One record. seq: from 1, in order; t: run s; tick: 0 between ticks; data: what its kind tells."""

    seq: int
    t: float
    tick: int
    kind: str
    plugin_id: str = ""
    component: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannerLog:
    """name: of the run or file; kind: "pipeline" or "rate"; settings: as they were at the start, {} if they were not recorded.

    ticks: one mapping per tick, oldest first, with the keys of the diagnostics; those of a rate planner have what it knows.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    entries: tuple[Entry, ...]
    ticks: tuple[Mapping[str, Any], ...]

    @property
    def pools(self) -> tuple[str, ...]:
        """The planner's names of the pools that it sizes."""
        roles = (self.settings.get("resolved") or {}).get("roles") or {}
        known = [roles[role] for role in ("agg", "prefill", "decode") if role in roles]
        return tuple(dict.fromkeys([*known, *(c for tick in self.ticks for c in tick["components"])])) if self.ticks else ()

    def of_tick(self, number: int) -> tuple[Entry, ...]:
        """The records of one tick, in order."""
        return tuple(e for e in self.entries if e.tick == number)


def planner_log(what: Run | str | Path) -> PlannerLog:
    """Of a run, a run's directory, a `log.jsonl`, or an audit file.

    Raises RunNotRecordedError if the record level does not keep it, ConfigError if no planner ran, RunCorruptError for a damaged file.
    """
    if isinstance(what, str | Path):
        return _of_path(Path(what))
    if "notes" not in what.tables.names:
        raise RunNotRecordedError(f'the planner\'s decisions need record: decisions; this run has "{what.tables.level}"',
                                  hint="run it with --record decisions")
    return _made(what.meta.name, _of_notes(what))


def _of_path(path: Path) -> PlannerLog:
    if path.is_dir() and (path / "manifest.json").exists():
        from windtunnel.lab.run import Run

        return planner_log(Run.load(path))
    if path.is_dir():
        path = path / "log.jsonl"
    first = _first_line(path)
    if first.get("kind") == "header" and "v" in first:
        return _made(str(first.get("run_id") or path.name), _of_audit(path, first))
    return _made(path.name, _of_log(path))


def is_record(path: Path) -> bool:
    """Does the file open like a log or an audit, whatever its name is?"""
    try:
        first = _first_line(path)
    except RunCorruptError:
        return False
    return "windtunnel_log" in first or (first.get("kind") == "header" and "v" in first)


def _first_line(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline())
    except OSError as error:
        raise RunCorruptError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except ValueError:
        first = None
    if not isinstance(first, dict):
        raise RunCorruptError("not a record of a run: the first line is no JSON object", where=str(path))
    return first


def _of_notes(run: Run) -> Iterator[Entry]:
    notes = run.notes
    notes = notes[notes["stream"] == "planner"]
    columns = (notes[c].astype(object).where(notes[c].notna(), None) for c in ("t_s", "kind", "correlation", "detail"))
    for seq, (t, kind, ids, detail) in enumerate(zip(*columns, strict=True), 1):
        yield _entry(seq, float(t), str(kind), json.loads(ids) if ids else (), json.loads(detail) if detail else {})


def _of_log(path: Path) -> Iterator[Entry]:
    seq = 0
    for step in LogReader(path).steps():
        for effect in step.effects:
            if effect.get("f") == "Note" and effect.get("stream") == "planner":
                seq += 1
                yield _entry(seq, step.now, effect["kind"], effect.get("ids") or (), effect.get("data") or {})


def _of_audit(path: Path, header: Mapping[str, Any]) -> Iterator[Entry]:
    if header["v"] > AUDIT_VERSION:
        raise RunVersionError(f"the audit has format {header['v']}; this is format {AUDIT_VERSION}", where=str(path))
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                continue
            try:
                item = json.loads(line)
                data = {k: v for k, v in item.items() if k not in _LINE}
                yield Entry(item["seq"], item["t"], item["tick"], item["kind"], item.get("plugin_id", ""), item.get("component", ""), data)
            except (ValueError, KeyError, AttributeError, TypeError):
                raise RunCorruptError("not a record of a planner", where=f"{path}:{number}") from None


def _entry(seq: int, t: float, kind: str, ids: Any, data: dict[str, Any]) -> Entry:
    plugin_id, component = (*ids, "", "")[:2]
    data = dict(data)
    return Entry(seq, t, int(data.pop("tick", 0) or 0), kind, plugin_id, component, data)


def _made(name: str, found: Iterator[Entry]) -> PlannerLog:
    entries = tuple(found)
    told = next((e.data for e in entries if e.kind == "settings"), {})
    plans = [e for e in entries if e.kind == "plan"]
    if not entries:
        raise ConfigError(f"{name}: no planner ran", hint="give the scenario a control.planner, or choose another run")
    kind = told.get("planner") or ("pipeline" if any("components" in e.data for e in plans) else "rate")
    pool = (told.get("settings") or {}).get("pool")
    ticks = tuple({"tick": e.tick, **e.data} if "components" in e.data else _rate_tick(e, pool) for e in plans)
    return PlannerLog(name, kind, told.get("settings") or {}, entries, ticks)


def _rate_tick(entry: Entry, pool: str | None) -> dict[str, Any]:
    """A rate planner's tick in the words of the pipeline's diagnostics; what it does not know is not there."""
    said = entry.data
    baseline, ready, starting = said.get("baseline"), said.get("ready"), said.get("starting")
    row = {"baseline": baseline, "proposed": said.get("wanted"), "planned": said.get("planned", baseline), "ready": ready, "starting": starting,
           "expected": baseline, "plan_reasons": [said.get("reason", "")], "winner": "", "clamps": []}
    observed = {"rps": said["rate_rps"]} if said.get("rate_rps") is not None else {}
    name = said.get("pool") or pool or "pool"
    capacity = {name: {"rps": said["capacity_rps"]}} if said.get("capacity_rps") is not None else {}
    return {"tick": entry.tick, "tick_at": said.get("tick_at_s", entry.t), "now": entry.t, "action": "apply", "components": {name: row},
            "observed": observed, "forecast": {}, "capacity": capacity, "queue": {name: {"waiting": said.get("waiting")}}, "answers": [],
            "held_over": [], "skipped": [], "failed": [], "ignored": [], "conflicts": [], "reason": ""}
