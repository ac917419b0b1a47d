"""The record of a live run, which may be lost while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from windtunnel.effects import Effect, Note
from windtunnel.events import Event


class Recorder(Protocol):
    """What a driver tells the record."""

    def step(self, seq: int, now: float, event: Event, effects: Sequence[Effect],
             verdicts: tuple[str | None, ...] | None = None) -> None: ...
    def error(self, seq: int, now: float, event: Event, error: BaseException) -> None: ...
    def note(self, now: float, note: Note) -> None: ...
    def sample(self, now: float, name: str, key: str, value: float) -> None: ...
    def replica_row(self, row: Mapping[str, Any], /) -> None: ...


class Record:
    """Writes to a recorder until that raises: from then on the record is lost, which `lost(error)` is told once."""

    def __init__(self, recorder: Recorder, lost: Callable[[Exception], None]) -> None:
        self._recorder, self._tell_lost = recorder, lost
        self._lost = False

    def step(self, seq: int, now: float, event: Event, effects: Sequence[Effect], verdicts: tuple[str | None, ...] | None) -> bool:
        """Is it written?"""
        if self._lost:
            return False
        try:
            self._recorder.step(seq, now, event, effects, verdicts)
            return True
        except Exception as error:
            self._lose(error)
            return False

    def error(self, seq: int, now: float, event: Event, error: Exception) -> None:
        """The control raised on an event."""
        if self._lost:
            return
        try:
            self._recorder.error(seq, now, event, error)
        except Exception as lost:
            self._lose(lost)

    def note(self, now: float, note: Note) -> None:
        """A source told something for the record only."""
        if self._lost:
            return
        try:
            self._recorder.note(now, note)
        except Exception as lost:
            self._lose(lost)

    def _lose(self, error: Exception) -> None:
        self._lost = True
        self._tell_lost(error)
