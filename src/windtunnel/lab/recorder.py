"""The recorder: what happened and what was decided, appended to columns as it happens, by record level.

`requests`: one row per original request, at its last end; `decisions`: also one row per effect except WakeAt and Note, one per pool and
tick of a planner, and the planner's notes; `full`: also those, all notes, the engines' steps and the log. A step costs about a
microsecond at level `requests`: dictionary look-ups and one tuple per request, turned into typed columns every few thousand rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from windtunnel import effects as fx
from windtunnel import events as ev
from windtunnel.errors import ConfigValueError
from windtunnel.lab import tables
from windtunnel.lab.decisions import DecisionRows
from windtunnel.lab.log import LogWriter, header_of
from windtunnel.lab.originals import CUT, STOPPED, Originals
from windtunnel.lab.tables import LEVELS, Tables
from windtunnel.sources.clients import GAVE_UP

if TYPE_CHECKING:
    from windtunnel.lab.run_meta import RunMeta

STREAMS = frozenset({"scheduler", "request", "routing", "session", "planner", "fleet"})


def wants_of(level: str) -> frozenset[str]:
    """The note streams that a record level keeps."""
    return STREAMS if level == "full" else frozenset({"planner"}) if level == "decisions" else frozenset()


class Recorder:
    """Takes every handled event with its effects, in order; `close` gives the tables.

    itl: keep the engines' steps and who decoded in which, for the gaps between tokens; the world must tell them.
    control_name: "main" or a shadow's name. log: a live run's writer; a simulated run at level `full` calls `open_log`.
    """

    def __init__(self, level: str = "requests", *, control_name: str = "main", log: LogWriter | None = None, itl: bool = False) -> None:
        if level not in LEVELS:
            raise ConfigValueError("record", f"expected one of {', '.join(LEVELS)}, got {level!r}")
        self.level, self.log = level, log
        self._originals = Originals()
        self._on, self._do = self._originals.on, self._originals.do
        self._series: tuple[list[float], list[str], list[str], list[float]] = ([], [], [], [])
        self._replicas: list[dict[str, Any]] = []
        self._steps: list[pa.Table] = []
        self._decodes: list[tuple[Any, ...]] = []
        self.itl = itl
        self._details = DecisionRows(control_name, everything=level == "full") if level != "requests" else None
        self._slow = self._details is not None or log is not None

    @property
    def wants(self) -> frozenset[str]:
        """The note streams that this level keeps."""
        return wants_of(self.level)

    def open_log(self, meta: RunMeta, control: Any) -> None:
        """Keep a log in memory, with the header of this run."""
        self.log, self._slow = LogWriter(header_of(meta, control)), True

    # -- what a world tells -----------------------------------------------------------------------------------------------------------

    def step(self, seq: int, now: float, event: ev.Event, effects: Sequence[fx.Effect],
             verdicts: Sequence[str | None] | None = None) -> None:
        """One handled event; verdicts: None = all applied, else per effect None or the reason for which it was held back."""
        on = self._on.get(type(event))
        if on is not None:
            on(now, event)
        if self._slow:
            self._slow_step(seq, now, event, effects, verdicts)
            return
        for effect in effects:
            do = self._do.get(type(effect))
            if do is not None:
                do(now, effect, event)

    def error(self, seq: int, now: float, event: ev.Event, error: BaseException) -> None:
        """The control raised on this event: the log keeps both, and the arrival counts as a request."""
        if type(event) is ev.Arrived and event.request.id not in self._originals.open:
            self._originals.arrived(now, event)
        if self.log is not None:
            self.log.error(seq, now, event, error)

    def note(self, now: float, note: fx.Note) -> None:
        """A note of a source or of the world itself, not an effect of the control. `client_gave_up` ends originals."""
        if note.kind == GAVE_UP:
            self._originals.gave_up(now, note)
        if self._details is not None and note.stream in self.wants:
            self._details.note(0, now, note)

    def sample(self, now: float, name: str, key: str, value: float) -> None:
        """One row of the series table."""
        times, names, keys, values = self._series
        times.append(now)
        names.append(name)
        keys.append(key)
        values.append(value)

    def replica_row(self, row: Mapping[str, Any], /) -> None:
        """One life of a replica: columns of the replicas table."""
        self._replicas.append(dict(row))

    def pieces(self, replica: str, rows: Mapping[str, Any]) -> None:
        """Runs of equal engine steps of one replica: columns of the steps table, `replica` apart. Kept with `itl`."""
        if self.itl:
            n = len(next(iter(rows.values()), ()))
            self._steps.append(tables.arrow_table("steps", {"replica": [replica] * n, **rows}))

    def decodes(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Who decoded in which of these steps: columns of the decodes table, by id of the submission. Kept with `itl`."""
        if self.itl:
            self._decodes.extend(rows)

    def _decodes_table(self) -> pa.Table:
        known = set(self._originals.table().column("request_id").to_pylist())
        ids = [row[0] if row[0] in known else row[0].rpartition("!")[0] for row in self._decodes]  # a client's retry
        named = dict(zip(("replica", "t_s", "first_s", "step0", "steps"), zip(*(row[1:] for row in self._decodes))))
        return tables.arrow_table("decodes", {"request_id": ids, **{name: list(column) for name, column in named.items()}})

    def close(self, now: float, *, complete: bool = True) -> Tables:
        """The tables. What is still open has no outcome and no end; reason `cut`, or `stopped` if the run is not complete."""
        self._originals.close(CUT if complete else STOPPED)
        if self.log is not None:
            self.log.close()
        made: dict[str, Callable[[], pa.Table]] = {
            "requests": self._originals.table,
            "replicas": lambda: tables.rows_table("replicas", self._replicas),
            "series": lambda: tables.arrow_table("series", dict(zip(("t_s", "name", "key", "value"), self._series))),
        }
        if self._details is not None:
            made |= {"decisions": self._details.decisions, "notes": self._details.notes}
        if self.itl or self.level == "full":
            made["steps"] = lambda: pa.concat_tables([tables.arrow_table("steps", {}), *self._steps]).unify_dictionaries()
        if self.itl:
            made["decodes"] = self._decodes_table
        log = self.log
        kept = None if log is None else (log.data() if log.path is None else log.path)
        return Tables(self.level, made, end_s=now, log=kept)

    def _slow_step(self, seq: int, now: float, event: ev.Event, effects: Sequence[fx.Effect],
                   verdicts: Sequence[str | None] | None) -> None:
        details, originals = self._details, self._originals
        for i, effect in enumerate(effects):
            if details is not None:
                row = originals.open.get(_request_id(effect))
                details.add(seq, now, event, effect, row.request if row is not None else None, originals.pool_of, originals.waiting,
                            originals.running, verdicts is None or verdicts[i] is None)
            do = self._do.get(type(effect))
            if do is not None:
                do(now, effect, event)
        if self.log is not None:
            self.log.step(seq, now, event, effects, verdicts)


def _request_id(effect: Any) -> str:
    return str(effect.request.id if type(effect) is fx.Dispatch else getattr(effect, "request_id", ""))
