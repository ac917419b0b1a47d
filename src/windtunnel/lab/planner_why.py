"""Why a pool's count is what it is, of one tick: the reasons that decided, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windtunnel.lab.planner_words import LOAD, PLAN, RATE, THROUGHPUT

LOAD_LOOP, THROUGHPUT_LOOP = "builtin_load_propose", "builtin_throughput_propose"
QUIET = frozenset({"unchanged", "applied", "advisory", "slo_infeasible"})  # what came of it, not why
MERGED = frozenset({"merge_floor", "merge_ceiling"})
BLIND = frozenset({"no_traffic_data", "predict_failed", "model_not_ready", "partner_not_ready", "circuit_open"})
SILENT = frozenset({"disabled", "unset", "held_over", ""})
Reason = tuple[str, str]  # (whose: plan, load, throughput, rate or plugin; the word)
TABLES = {"plan": PLAN, "load": LOAD, "throughput": THROUGHPUT, "rate": RATE}


def reasons_of(row: Mapping[str, Any]) -> tuple[Reason, ...]:
    """The reasons that decided, the deciding one first; never empty."""
    if "load_reason" not in row:
        return tuple(("rate", word) for word in row["plan_reasons"])
    own = [word for word in row["plan_reasons"] if word not in QUIET]
    special = [word for word in own if word not in MERGED]
    plan: list[Reason] = [("plan", word) for word in special or own]
    if moved(row):
        return (*_mover(row), *plan) or (("plan", "applied"),)
    return tuple(plan) or _loops(row) or (("plan", "unchanged"),)


def moved(row: Mapping[str, Any]) -> bool:
    """Does the plan want another count than there was?"""
    return row["planned"] is not None and row["planned"] != row["baseline"]


def _mover(row: Mapping[str, Any]) -> tuple[Reason, ...]:
    """Who asked for the move."""
    who = row.get("proposer") or row.get("winner") or ""
    if who == LOAD_LOOP:
        return (("load", row["load_reason"]),)
    if who == THROUGHPUT_LOOP:
        word = row["throughput_reason"]
        return (("throughput", "set_lower_bound" if word in SILENT else word),)
    return (("plugin", who),) if who else ()


def _loops(row: Mapping[str, Any]) -> tuple[Reason, ...]:
    load, throughput = row["load_reason"], row["throughput_reason"]
    out: list[Reason] = [("load", load)] if load not in SILENT else []
    if throughput in BLIND or (not out and throughput not in SILENT):
        out.append(("throughput", throughput))
    return tuple(out)


def sentence(row: Mapping[str, Any]) -> str:
    """The reasons in words, and who decided: whose bounds, or whose number."""
    found = reasons_of(row)
    asked = f" asked for it ({row['told']})" if row.get("told") else " asked for it"
    parts = [f"{word}{asked}" if whose == "plugin" else TABLES[whose].get(word, word.replace("_", " ")) for whose, word in found]
    parts += [PLAN[word] for word in ("advisory", "slo_infeasible") if word in row["plan_reasons"]]
    text = "; ".join(dict.fromkeys(parts))
    who = ", ".join(f"{bound} of {short(owner)}" for bound, _, owner in (clamp.partition(" ") for clamp in row.get("clamps") or ()))
    if not who and not any(whose == "plugin" for whose, _ in found):  # which is named already
        who = short(row.get("winner") or "")
    return f"{text} ({who})" if who else text


def short(plugin_id: str) -> str:
    """A built-in plugin without its prefix."""
    return plugin_id.removeprefix("builtin_")
