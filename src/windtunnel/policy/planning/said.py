"""What a tick saw and what plugins said, as flat plain values: for records, tables and people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windtunnel.policy.planning.contract import (
    Accept,
    ObservationData,
    Override,
    OverrideType,
    PredictionData,
    PredictResponse,
    Reject,
    Stage,
    StageResponse,
    StepLoad,
)

SIGNS: Mapping[OverrideType, str] = {OverrideType.SET: "=", OverrideType.AT_LEAST: ">=", OverrideType.AT_MOST: "<="}
PREDICTED = ("num_req", "isl", "osl", "kv_hit_rate", "accept_length")


def targets_text(answer: Override) -> str:
    """ "decode=4 prefill>=2"; targets without an opinion are left out."""
    return " ".join(f"{t.component}{SIGNS[t.type]}{t.replicas}" for t in answer.targets if t.replicas is not None)


def predictions_text(ahead: PredictionData) -> str:
    """ "num_req 120 isl 300": the fields that have an opinion."""
    values = ((name, getattr(ahead, f"predicted_{name}")) for name in PREDICTED)
    return " ".join(f"{name} {value:.6g}" for name, value in values if value is not None)


def said_plain(plugin_id: str, stage: Stage, response: PredictResponse | StageResponse, held_over: bool) -> dict[str, Any]:
    """One answer: plugin, stage, kind, says, reason; `final` and `held_over` only if they are so."""
    out: dict[str, Any] = {"plugin": plugin_id, "stage": stage.value, **_words(response)}
    out |= {name: True for name, so in (("final", response.final), ("held_over", held_over)) if so}
    return out


def _words(response: PredictResponse | StageResponse) -> dict[str, str]:
    if type(response) is PredictResponse:
        ahead = response.predictions
        return {"kind": "empty" if ahead is None else "predict", "says": predictions_text(ahead) if ahead else "", "reason": response.reason}
    answer = response.answer  # type: ignore[union-attr]
    match answer:
        case Override():
            return {"kind": "override", "says": targets_text(answer), "reason": answer.reason}
        case Reject():
            return {"kind": "reject", "says": "", "reason": answer.reason}
        case Accept():
            return {"kind": "accept", "says": "", "reason": ""}
    return {"kind": "empty", "says": "", "reason": ""}


def queued(observed: ObservationData | None) -> tuple[int, int] | None:
    """(prompt tokens, KV tokens) that wait in the engines of all pools; None without engine reports."""
    if observed is None or observed.fpm is None:
        return None
    loads: list[StepLoad] = [report.queued for ranks in observed.fpm.engines.values() for report in ranks.values()]
    return sum(load.prefill_tokens for load in loads), sum(load.decode_kv_tokens for load in loads)


def observed_plain(observed: ObservationData | None) -> dict[str, Any]:
    """rps, isl, osl, ttft_s, itl_s, kv_hit_rate, window_s, coverage of the shortest traffic window that was read, and what is queued.

    What is not known is left out.
    """
    out: dict[str, Any] = {}
    traffic = observed.traffic if observed is not None else None
    if traffic is not None and traffic.duration_s > 0:
        out = {"rps": traffic.num_req / traffic.duration_s, "window_s": traffic.duration_s, "coverage": traffic.coverage}
        out |= {name: getattr(traffic, name) for name in ("isl", "osl", "ttft_s", "itl_s", "kv_hit_rate", "accept_length")}
    waiting = queued(observed)
    if waiting is not None:
        out |= {"queued_prefill_tokens": waiting[0], "queued_decode_kv_tokens": waiting[1]}
    return {name: value for name, value in out.items() if value is not None}
