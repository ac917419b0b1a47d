"""Rows of the `decisions` and `notes` tables, one per effect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from windtunnel import effects as fx
from windtunnel.events import PRIORITY_NAMES, Event, Request
from windtunnel.lab import tables
from windtunnel.lab.codec import plain

_NAMES = tuple(c.name for c in tables.DECISIONS)
_NOTE_NAMES = tuple(c.name for c in tables.NOTES)


def _text(data: Any) -> str | None:
    return None if data is None or data == {} else json.dumps(plain(data), sort_keys=True, ensure_ascii=False)


class DecisionRows:
    """Collects rows; everything: also WakeAt and Note."""

    def __init__(self, control_name: str, *, everything: bool) -> None:
        self._control, self._everything = control_name, everything
        self._rows: list[tuple[Any, ...]] = []
        self._notes: list[tuple[Any, ...]] = []
        self._targets: dict[str, int] = {}

    def add(self, seq: int, now: float, event: Event, effect: Any, request: Request | None, pool_of: Mapping[str, str], waiting: int,
            running: int, applied: bool) -> None:
        """One effect, with the state in which it was decided. request: whose it is, if that is known."""
        kind = type(effect)
        if kind is fx.Note:
            self.note(seq, now, effect)
            if effect.kind == "plan" and effect.stream == "planner":
                self._plan(seq, now, event, effect.data or {}, waiting, running)
        if not self._everything and (kind is fx.Note or kind is fx.WakeAt):
            return
        row: dict[str, Any] = dict.fromkeys(_NAMES)
        row.update(seq=len(self._rows) + 1, t_s=now, cause=type(event).__name__, cause_seq=seq, effect=kind.__name__, queue_len=waiting,
                   in_flight=running, applied=applied, control=self._control)
        if request is not None:
            row.update(request_id=request.origin or request.id, attempt=request.attempt, tenant=request.tenant,
                       priority=PRIORITY_NAMES.get(request.priority, str(request.priority)))
        row.update(self._of(effect))
        if row["replica"] is not None:
            row["pool"] = pool_of.get(row["replica"])
        self._rows.append(tuple(row.values()))

    def _plan(self, seq: int, now: float, event: Event, tick: Mapping[str, Any], waiting: int, running: int) -> None:
        """One row per pool that the tick planned for; a planner that tells no pools gives one row."""
        pools: Mapping[str, Any] = tick.get("components") or {tick.get("pool", ""): tick}
        for name, plan in pools.items():
            reasons = plan.get("plan_reasons")
            row: dict[str, Any] = dict.fromkeys(_NAMES)
            row.update(seq=len(self._rows) + 1, t_s=now, cause=type(event).__name__, cause_seq=seq, effect="plan", policy="planner",
                       kind=tick.get("action"), reason=reasons[0] if reasons else tick.get("reason"), pool=name or None,
                       value=plan.get("planned"), value_before=plan.get("baseline"), queue_len=waiting, in_flight=running,
                       applied=True, control=self._control, detail=_text({"tick": tick.get("tick"), "tick_at": tick.get("tick_at"), **plan}))
            self._rows.append(tuple(row.values()))

    def note(self, seq: int, now: float, note: fx.Note) -> None:
        """One row of the notes table; seq 0: not of a control, but of a source or the world."""
        ids = _text(list(note.ids)) if note.ids else None
        self._notes.append((seq, now, note.stream, note.kind, ids, note.reason or None, _text(note.data), note.sequence or None))

    def _of(self, effect: Any) -> dict[str, Any]:
        """What an effect says in the table's words."""
        more: dict[str, Any]
        match effect:
            case fx.Dispatch():
                more = {"lease_id": effect.lease_id, "matched_blocks": effect.matched_blocks, "prefill": effect.prefill}
                return {"stage": "route", "reason": effect.reason, "dispatch": effect.dispatch, "replica": effect.replica,
                        "value": effect.score, "detail": _text({k: v for k, v in more.items() if v is not None})}
            case fx.Reject(denial=denial):
                return {"stage": denial.stage, "kind": effect.state, "reason": str(denial.reason), "code": denial.code,
                        "value": denial.retry_after_s, "policy": denial.policy_label or None, "detail": _text(denial.diagnostics)}
            case fx.Close():
                more = {"outcome": effect.outcome}
                return {"kind": effect.state, "reason": effect.reason, "value": effect.retry_after_s, "detail": _text(more)}
            case fx.Cancel():
                return {"reason": effect.reason, "dispatch": effect.dispatch, "replica": effect.replica}
            case fx.ScaleTo():
                return self._scale(effect)
            case fx.Drain():
                more = {"deadline_at": effect.deadline_at, "undo": effect.undo}
                return {"policy": "planner", "reason": effect.reason or None, "replica": effect.replica, "detail": _text(more)}
            case fx.WakeAt():
                return {"reason": effect.key, "value": effect.at}
            case fx.Ask():
                more = {"gather_id": effect.gather_id, "calls": len(effect.calls)}
                return {"policy": "planner", "value": effect.deadline_at, "detail": _text(more)}
            case fx.Note():
                return {"kind": effect.kind, "reason": effect.reason or None, "detail": _text(effect.data)}
        return {}

    def _scale(self, effect: fx.ScaleTo) -> dict[str, Any]:
        more = {"plan_id": effect.plan_id, "targets": dict(effect.targets)}
        out: dict[str, Any] = {"policy": "planner", "reason": effect.reason or None, "detail": _text(more)}
        if len(effect.targets) == 1:
            pool, target = effect.targets[0]
            out.update(pool=pool, value=target, value_before=self._targets.get(pool))
        self._targets.update(effect.targets)
        return out

    def decisions(self) -> pa.Table:
        return tables.arrow_table("decisions", _by_column(_NAMES, self._rows))

    def notes(self) -> pa.Table:
        return tables.arrow_table("notes", _by_column(_NOTE_NAMES, self._notes))


def _by_column(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    found = list(zip(*rows)) if rows else [()] * len(names)
    return dict(zip(names, found))


def plans_of(decisions: pd.DataFrame) -> pd.DataFrame:
    """The rows of a planner's ticks, `detail` unpacked into columns: t_s, pool, then what the planner told of the tick."""
    rows = decisions[decisions["effect"] == "plan"]
    told = [json.loads(text) for text in rows["detail"]]
    pools = rows["pool"].astype(object).where(rows["pool"].notna(), None)
    return pd.DataFrame([{"t_s": t, "pool": pool} | {k: v for k, v in row.items() if k != "pool"}
                         for t, pool, row in zip(rows["t_s"], pools, told, strict=True)])
