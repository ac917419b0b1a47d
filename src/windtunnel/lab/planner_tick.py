"""The whole chain of one tick in words: what was seen, what each plugin said, how it was merged and clamped, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from windtunnel.errors import ConfigValueError
from windtunnel.lab.planner_explain import columns
from windtunnel.lab.planner_log import Entry, PlannerLog
from windtunnel.lab.planner_why import moved, sentence
from windtunnel.lab.planner_words import ACTIONS, FAILED, SKIPPED, in_words
from windtunnel.lab.summary import number

STAGES = ("predict", "propose", "reconcile", "constrain")
AFTER = {"propose": "proposed", "reconcile": "reconciled", "constrain": "constrained"}
SEEN = (("rps", "demand {} requests/s"), ("isl", "prompt {} tokens"), ("osl", "output {} tokens"), ("ttft_s", "TTFT {} s"), ("itl_s", "ITL {} s"),
        ("kv_hit_rate", "cache hits {}"), ("accept_length", "{} tokens a step"), ("coverage", "coverage {}"))
QUEUED = (("queued_prefill_tokens", "{} prompt tokens"), ("queued_decode_kv_tokens", "{} KV tokens"))
TELLING = frozenset({"tie_broken", "bounds_conflict", "set_dropped", "final_used", "final_ignored", "negative_clamped", "boundary_changed",
                     "hold_expired", "answer_discarded", "circuit_opened", "circuit_half_opened", "circuit_closed", "scale_up_stuck", "replica_lost",
                     "manual_edit_seen", "plan_superseded", "rollout_step", "evicted", "cache_cleared"})


def tick_of(log: PlannerLog, number_: int) -> Mapping[str, Any]:
    """Raises ConfigValueError if there was no such tick."""
    for tick in log.ticks:
        if tick["tick"] == number_:
            return tick
    span = f"ticks {log.ticks[0]['tick']} to {log.ticks[-1]['tick']}" if log.ticks else "no ticks"
    raise ConfigValueError("tick", f"no tick {number_} in {log.name}", hint=f"it has {span}")


def tick_text(log: PlannerLog, number_: int, pool: str | None = None) -> str:
    """The story of one tick, by line. pool: only what was decided for it."""
    tick = tick_of(log, number_)
    late = tick["now"] - tick["tick_at"]
    head = f"tick {tick['tick']} of {log.name} at {number(tick['tick_at'])} s"
    head += f", run {number(late)} s late" if late > 1e-6 else ""
    head += f": {ACTIONS.get(tick['action'], tick['action'])}" + (f", {tick['reason']}" if tick["reason"] else "")
    rows = {c: row for c, row in tick["components"].items() if pool in (None, c)}
    records = log.of_tick(number_)
    lines = [*_seen(tick, rows), *_forecast(tick), *_sizing(tick)]
    for stage in STAGES:
        lines += _stage(stage, tick, rows, records) if log.kind == "pipeline" else ()
    lines += _passed_over(tick, records)
    lines += [("record", _telling(e)) for e in records if e.kind in TELLING]
    lines += [("result", f"{c}: {_result(row)}") for c, row in rows.items()]
    return "\n".join([head, *columns(_once(lines), "  ")])


def _once(lines: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """A heading that repeats is written once."""
    last = ""
    for head, text in lines:
        yield ("" if head == last else head, text)
        last = head


def _seen(tick: Mapping[str, Any], rows: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    seen = tick["observed"]
    told = [text.format(number(seen[name])) for name, text in SEEN if seen.get(name) is not None]
    yield "seen", ", ".join(told) or "no traffic figures"
    waits = [text.format(number(seen[name])) for name, text in QUEUED if seen.get(name) is not None]
    if waits:
        yield "seen", f"{', '.join(waits)} wait in the engines"
    for component, row in rows.items():
        counts = [f"{'?' if row.get(name) is None else row[name]} {name}" for name in ("ready", "starting", "draining") if name in row]
        expected = f", expected {'?' if row.get('expected') is None else row['expected']}" if "expected" in row else ""
        yield "pools", f"{component}: {', '.join(counts)}{expected}; plans from {'?' if row['baseline'] is None else row['baseline']}"


def _forecast(tick: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    ahead = tick["forecast"]
    if ahead.get("rps") is not None:
        yield "forecast", f"{number(ahead['rps'])} requests/s in {number(ahead['horizon_s'])} s, by {ahead['source'] or 'a plugin'}"
    score = (ahead.get("errors") or {}).get("num_req")
    if score:
        wape = "–" if score["wape"] is None else f"{100 * score['wape']:.0f} %"
        yield "forecast", f"past forecasts of the demand were off by {wape}, last time by {number(score['last_error'])} requests a window"


def _sizing(tick: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for role, can in tick["capacity"].items():
        text = f"{role}: one replica serves {number(can['rps'])} requests/s" + ("" if can.get("eligible", True) else ", and misses the SLO")
        if can.get("planned_rps") is not None:
            text += f"; {number(can['planned_rps'])} requests/s to plan for"
        queue = tick["queue"].get(role) or {}
        if queue.get("waiting") is not None:
            text += f", {number(queue['waiting'])} wait"
            text += f" ({number(queue['fits'])} fit the SLO)" if queue.get("fits") is not None else ""
        yield "sizing", text + (f" → {can['needed']} replicas" if can.get("needed") is not None else "")


def _stage(stage: str, tick: Mapping[str, Any], rows: Mapping[str, Any], records: tuple[Entry, ...]) -> Iterator[tuple[str, str]]:
    said = [a for a in tick["answers"] if a["stage"] == stage]
    for a in said:
        words = f"{a['plugin']}: {a['says'] or a['kind']}"
        words += " final" if a.get("final") else ""
        words += " (its last answer, held over)" if a.get("held_over") else ""
        yield stage, words + (f' "{a["reason"]}"' if a.get("reason") else "")
    key = AFTER.get(stage)
    if key is None or (not said and stage != "propose"):
        return
    for component, row in rows.items():
        clamped = [e for e in records if e.kind == "clamped" and e.component == component and e.data["stage"] == stage]
        told = "".join(f", wanted {e.data['wanted']}: {e.data['bound']} of {e.plugin_id}" for e in clamped)
        yield stage, f"→ {component} {'?' if row[key] is None else row[key]}{told}"


def _passed_over(tick: Mapping[str, Any], records: tuple[Entry, ...]) -> Iterator[tuple[str, str]]:
    messages = {e.plugin_id: e.data["message"] for e in records if e.kind == "plugin_failed" and e.data.get("message")}
    answered = {a["plugin"] for a in tick["answers"]}
    for plugin, why, path in tick["skipped"]:
        yield "not asked", f"{plugin}: {SKIPPED.get(why, why)}" + (f" {path}" if path and why == "requires" else "")
    for plugin, error in tick["failed"]:
        if plugin not in answered:
            yield "failed", f"{plugin}: {FAILED.get(error, error)}" + (f": {messages[plugin]}" if plugin in messages else "")
    for plugin in tick["ignored"]:
        yield "ignored", f"{plugin}: another answer was final"


def _telling(e: Entry) -> str:
    data = " ".join(f"{k}={v}" for k, v in sorted(e.data.items()))
    return " ".join(word for word in (e.kind.replace("_", " "), e.plugin_id, e.component, data) if word)


def _result(row: Mapping[str, Any]) -> str:
    base, planned = ("?" if n is None else n for n in (row["baseline"], row["planned"]))
    text = f"{base} → {planned}" if moved(row) else f"hold {planned}"
    outcome = in_words(w for w in row["plan_reasons"] if w in ("applied", "advisory"))
    return f"{text}: {sentence(row)}" + (f"; {outcome}" if outcome and outcome not in sentence(row) else "")
