"""Reading `log.jsonl` back: streaming, one step (an event and its effects) at a time, with a torn tail cut off."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from windtunnel.errors import RunCorruptError, RunVersionError

VERSION = 1
HEADER_KEYS = frozenset({
    "windtunnel_log", "run_id", "world", "mode", "started_at", "clock_zero", "seed", "replication", "level", "control", "control_class",
    "needs", "scenario_digest", "code_digest", "first_seq", "continues"})
_END_KEYS, _ERROR_KEYS = frozenset({"end", "events", "effects", "sha256"}), frozenset({"c", "x", "m"})


@dataclass(slots=True)
class Step:
    """One handled event as it stands in the log. effects: objects in order; lines: their bytes; raised: (type, message) if `handle` raised.

    whole: False for the last step of a log that was cut off, whose effects may be incomplete.
    """

    seq: int
    now: float
    event: dict[str, Any]
    effects: list[dict[str, Any]] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    raised: tuple[str, str] | None = None
    whole: bool = True


def segments_of(where: Path | str) -> list[Path]:
    """The files of a log in order: `where` is the log, its directory, or a run's directory. Raises RunCorruptError if there is none."""
    path = Path(where)
    first = path / "log.jsonl" if path.is_dir() else path
    rest = sorted(first.parent.glob(f"{first.stem}-[0-9][0-9][0-9][0-9][0-9]{first.suffix}"))
    found = [p for p in (first, *rest) if p.exists()]
    if not found:
        raise RunCorruptError("there is no log here", where=str(first), hint='a simulated run keeps one with record: "full"')
    return found


class LogReader:
    """Streams a log's steps. `header`: of the first segment; `complete`: True once an end line closed the last segment and its hash agreed.

    Raises RunVersionError for a newer format, RunCorruptError(file, line) for damage before the tail. A torn last line is cut off with a
    RuntimeWarning that names the byte offset, and the log is not complete.
    """

    def __init__(self, where: Path | str | bytes) -> None:
        self._sources: list[Path | bytes] = [where] if isinstance(where, bytes) else list(segments_of(where))
        self.complete = False
        self.events = self.effects = 0
        self.header = self._header_of(self._sources[0])

    @property
    def first_seq(self) -> int:
        return int(self.header["first_seq"])

    def steps(self) -> Iterator[Step]:
        """Every step in `seq` order; memory O(1)."""
        step: Step | None = None
        last = 0
        for source in self._sources:
            for name, number, raw, item in self._lines(source):
                if "s" in item:
                    if step is not None:
                        yield step
                    if item["s"] != last + 1 and last:
                        raise _damaged(name, number, f"seq {item['s']} follows seq {last}")
                    last = item["s"]
                    step = Step(last, item["t"], item)
                    self.events += 1
                elif "c" in item:
                    if step is None or item["c"] != step.seq:
                        raise _damaged(name, number, "an effect without its event")
                    self._add(step, raw, item, name, number)
        if step is not None:
            step.whole = self.complete
            yield step

    def _add(self, step: Step, raw: bytes, item: dict[str, Any], name: str, number: int) -> None:
        if "x" in item:
            _only(item, _ERROR_KEYS, name, number)
            step.raised = (item["x"], item.get("m", ""))
            return
        if item.get("i") != len(step.effects):
            raise _damaged(name, number, f"effect {item.get('i')} where {len(step.effects)} was due")
        step.effects.append(item)
        step.lines.append(raw)
        self.effects += 1

    def _lines(self, source: Path | bytes) -> Iterator[tuple[str, int, bytes, dict[str, Any]]]:
        """(file, line number, bytes, object) of a segment's event, effect and exception lines."""
        name = source.name if isinstance(source, Path) else "log.jsonl"
        digest, offset, ended = hashlib.sha256(), 0, False
        for number, raw, last in _with_last(source):
            item = _parse(raw)
            if item is None:
                if not last:
                    raise _damaged(name, number, "not a JSON object")
                warnings.warn(f"{name}: the last line is torn; cut off at byte {offset}", RuntimeWarning, stacklevel=2)
                break
            if ended:
                raise _damaged(name, number, "something follows the end line")
            if "end" in item:
                _only(item, _END_KEYS, name, number)
                if item["sha256"] != digest.hexdigest():
                    raise _damaged(name, number, "the bytes before do not have the recorded SHA-256")
                ended = True
            elif number > 1:
                if "s" not in item and "c" not in item:
                    raise _damaged(name, number, f"unknown key {sorted(item)[0]!r}" if item else "an empty object")
                yield name, number, raw, item
            digest.update(raw)
            offset += len(raw)
        self.complete = ended

    def _header_of(self, source: Path | bytes) -> dict[str, Any]:
        name = source.name if isinstance(source, Path) else "log.jsonl"
        first = next(_with_last(source), None)
        header = _parse(first[1]) if first else None
        if header is None or "windtunnel_log" not in header:
            raise _damaged(name, 1, "no header")
        if header["windtunnel_log"] > VERSION:
            raise RunVersionError(f"the log has format {header['windtunnel_log']}; this is format {VERSION}", where=name)
        _only(header, HEADER_KEYS, name, 1)
        return header


def _with_last(source: Path | bytes) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line, is it the last one)."""
    if isinstance(source, bytes):
        yield from _flagged(iter(source.splitlines(keepends=True)))
        return
    with source.open("rb") as file:
        yield from _flagged(iter(file))


def _flagged(lines: Iterator[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    number, held = 0, next(lines, None)
    while held is not None:
        following = next(lines, None)
        number += 1
        yield number, held, following is None
        held = following


def _parse(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        item = json.loads(raw)
    except ValueError:
        return None
    return item if isinstance(item, dict) else None


def _only(item: Mapping[str, Any], known: frozenset[str], name: str, number: int) -> None:
    unknown = sorted(set(item) - known)
    if unknown:
        raise _damaged(name, number, f"unknown key {unknown[0]!r}")


def _damaged(name: str, number: int, what: str) -> RunCorruptError:
    return RunCorruptError(what, where=f"{name}:{number}")
