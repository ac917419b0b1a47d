"""The scalars of a summary, exactly as defined. Rows of the warm-up, the cool-down and of other phases are left out everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from windtunnel.lab import metrics
from windtunnel.lab.metrics import Floats, Requests
from windtunnel.lab.perfect import perfect_hours
from windtunnel.lab.window import Window, occupancy

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

COUNTS = ("offered", "completed", "rejected", "timed_out", "cancelled", "failed", "good")
PARTIAL = (*COUNTS, "offered_rps", "success_fraction", "rejected_fraction", "timeout_fraction", "failed_fraction", "good_fraction",
           "goodput_rps", "request_rps", "input_tps", "output_tps", "total_tps", "wasted_tokens", "prefix_hit_rate", "prefix_hit_n",
           "retries_per_request", "lag_p99_s", "eta_mape", "eta_n", "preempted")
WHOLE = ("window_s", "makespan_s", "in_flight.avg", "in_flight.max", "waiting.avg", "waiting.max", "kv_used_fraction.avg",
         "kv_used_fraction.max", "utilisation", "jain", "service_gap_max", "gpu_hours", "usd", "usd_per_hour", "kwh", "j_per_output_token",
         "usd_per_1k_good", "usd_per_mtok", "good_rps_per_usd_hour", "perfect_gpu_hours", "regret_gpu_hours", "decision_count",
         "scale_reversals", "replicas.max", "replicas.min", "per_step_share")
NAMES = (*PARTIAL, *WHOLE)
W_IN, W_OUT = 1.0, 2.0
REVERSAL_S = 600.0


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b, None if either is unknown or b is 0."""
    return None if a is None or not b else a / b


def part_of(run: Run, rows: Requests, slo: Mapping[str, Any], window: tuple[float, float] | None,
            base: Window | None = None) -> dict[str, Any]:
    """The scalars that are defined for any part of the requests; rates are over the window of the whole run."""
    if base is None:
        base = Window(run, Requests(run.tables.arrow("requests")), window)
    keep, seconds = rows.keep, base.window_s
    won = keep & rows.success
    rejected = keep & rows.is_word("outcome", "rate_limited")
    late = keep & rows.is_word("outcome", "provider_timeout", "local_timeout")
    left = keep & rows.is_word("outcome", "local_cancelled")
    offered, done, refused, timed, gone = (int(np.count_nonzero(m)) for m in (keep, won, rejected, late, left))
    good = metrics.goods(rows, slo)
    n_good = int((good.good & keep).sum())
    tokens_in, tokens_out = float(np.nansum(rows.number("input_tokens")[won])), float(np.nansum(rows.number("output_tokens")[won]))
    hit, asked, hits = _prefix(rows)
    attempts = float(rows.number("attempts")[keep].sum())
    eta_mape, eta_n = prediction_error(rows)
    lags = rows.values("lag_s") if run.meta.loop == "open" else np.empty(0)
    out: dict[str, Any] = {
        "offered": offered, "completed": done, "rejected": refused, "timed_out": timed, "cancelled": gone,
        "failed": offered - done - refused - timed - gone, "good": n_good, "offered_rps": ratio(offered, seconds),
        "success_fraction": ratio(done, offered), "rejected_fraction": ratio(refused, offered), "timeout_fraction": ratio(timed, offered),
        "failed_fraction": ratio(offered - done - refused - timed, offered), "good_fraction": ratio(n_good, offered),
        "goodput_rps": ratio(n_good, seconds), "request_rps": ratio(done, seconds), "input_tps": ratio(tokens_in, seconds),
        "output_tps": ratio(tokens_out, seconds), "total_tps": ratio(tokens_in + tokens_out, seconds),
        "wasted_tokens": int(np.nansum(rows.number("wasted_tokens")[keep])), "prefix_hit_rate": ratio(hit, asked), "prefix_hit_n": hits,
        "retries_per_request": None if not offered else attempts / offered - 1.0,
        "lag_p99_s": float(np.percentile(lags, 99)) if len(lags) else None, "eta_mape": eta_mape, "eta_n": eta_n,
        "preempted": int(np.nansum(rows.number("preempted")[keep])) if rows.has("preempted") else None,
    }
    for column, met in good.met.items():
        out[f"slo_attainment.{column}"] = ratio(int((met & keep).sum()), offered)
    return out


def scalars_of(run: Run, rows: Requests, slo: Mapping[str, Any], window: tuple[float, float] | None) -> dict[str, Any]:
    """All scalars; what is unknown or was not recorded is None."""
    base = Window(run, rows, window)
    out = part_of(run, rows, slo, window, base)
    out |= {"window_s": base.window_s, "basis": base.basis, "makespan_s": base.makespan_s}
    out |= occupancy(rows, base)
    out |= _fairness(run, rows, base)
    out |= _series(run, base)
    out |= _cost(run, out, base if window is not None or rows.flags("marked").any() else None)
    out["per_step_share"] = _per_step(run)
    out["perfect_gpu_hours"] = perfect = perfect_hours(run)
    out["regret_gpu_hours"] = None if perfect is None or out["gpu_hours"] is None else out["gpu_hours"] - perfect
    out["decision_count"] = len(run.tables.arrow("decisions")) if "decisions" in run.tables.names else None
    return out


def _per_step(run: Run) -> float | None:
    """Share of the engines' steps that were taken one by one; None without steps."""
    table = run.tables.arrow("replicas")
    if "per_step_steps" not in table.column_names:
        return None  # a run saved before this was recorded
    return ratio(pc.sum(table.column("per_step_steps")).as_py(), pc.sum(table.column("steps")).as_py())


def prediction_error(rows: Requests) -> tuple[float | None, int]:
    """(mean of |predicted start - dispatch| / wait, requests that it is over): those that waited for their only dispatch and were told when
    to expect it. A prediction is made when a request is queued."""
    if not rows.has("predicted_start_s"):
        return None, 0  # a run saved before this was recorded
    predicted, sent = rows.number("predicted_start_s"), rows.number("dispatched_s")
    wait = sent - rows.number("arrived_s")
    told = rows.keep & ~np.isnan(predicted) & (wait > 0) & (rows.number("attempts") == 1)
    n = int(np.count_nonzero(told))
    return (float(np.mean(np.abs(predicted - sent)[told] / wait[told])) if n else None), n


def _prefix(rows: Requests) -> tuple[float, float, int]:
    cached, prompt = rows.number("cached_tokens"), rows.number("input_tokens")
    known = rows.keep & ~np.isnan(cached) & ~np.isnan(prompt)
    return float(cached[known].sum()), float(prompt[known].sum()), int(known.sum())


def _fairness(run: Run, rows: Requests, base: Window) -> dict[str, float | None]:
    """Jain's index of service per weight over tenants with demand; the largest gap between tenants that waited throughout."""
    codes, names = rows.words("tenant")
    demand = np.unique(codes[rows.keep])
    weights = weights_of(run, names)
    done = rows.keep & rows.success
    work = W_IN * np.nan_to_num(rows.number("input_tokens")) + W_OUT * np.nan_to_num(rows.number("output_tokens"))
    served = np.bincount(codes[done], work[done], len(names))[demand] / weights[demand]
    return {"jain": jain(served), "service_gap_max": _gap(rows, codes, work, weights, demand, base)}


def weights_of(run: Run, names: list[str]) -> Floats:
    """The fair-queue weight of each tenant, from the control's spec; `default` (1.0) for the others."""
    given = (run.meta.control_spec or {}).get("tenants") or {}
    weight = {k: float(v.get("weight", 1.0) if isinstance(v, Mapping) else v) for k, v in given.items()}
    return np.array([weight.get(n, weight.get("default", 1.0)) for n in names])


def jain(served: Floats) -> float | None:
    """(sum s)^2 / (n · sum s^2); None if nobody got anything."""
    squares = float((served**2).sum())
    return float(served.sum()) ** 2 / (len(served) * squares) if squares else None


def _gap(rows: Requests, codes: Any, work: Floats, weights: Floats, demand: Any, base: Window) -> float | None:
    if not 2 <= len(demand) <= 64:
        return None
    arrived, sent, ended = rows.number("arrived_s"), rows.number("dispatched_s"), rows.number("ended_s")
    left = np.where(np.isnan(sent), ended, sent)
    last = float(arrived[rows.keep].max())
    throughout = []
    for tenant in demand:
        of = rows.keep & (codes == tenant)
        order = np.argsort(arrived[of])
        begins, until = arrived[of][order], np.fmax.accumulate(left[of][order])
        if until[-1] >= last and (begins[1:] <= until[:-1]).all() and begins[0] <= base.start + 0.01 * base.window_s:
            throughout.append(tenant)
    if len(throughout) < 2:
        return None
    done = rows.keep & rows.success & np.isin(codes, throughout)
    order = np.argsort(ended[done], kind="stable")
    who = codes[done][order]
    each = (work[done] / weights[codes[done]])[order]
    running = np.stack([np.cumsum(np.where(who == t, each, 0.0)) for t in throughout])
    return float((running.max(axis=0) - running.min(axis=0)).max()) if running.shape[1] else None


def _series(run: Run, base: Window) -> dict[str, float | None]:
    """What only the samples know: KV use over the window, how often the target turned back within 10 minutes, the most replicas that
    served or booted at once, and the fewest that served (of all pools together, in the whole run)."""
    table = run.tables.arrow("series")
    out: dict[str, float | None] = {"kv_used_fraction.avg": None, "kv_used_fraction.max": None, "scale_reversals": None, "replicas.max": None,
                                    "replicas.min": None}
    if not len(table):
        return out
    names = pc.cast(table.column("name"), pa.string())
    kv = table.filter(pc.equal(names, "kv_used_fraction"))
    at, value = kv.column("t_s").to_numpy(), kv.column("value").to_numpy()
    inside = (at >= base.start) & (at <= base.start + base.window_s) & ~np.isnan(value)
    if inside.any():
        out["kv_used_fraction.avg"], out["kv_used_fraction.max"] = float(value[inside].mean()), float(value[inside].max())
    for name in ("replicas_target", "replicas_ready"):
        some = table.filter(pc.equal(names, name))
        if len(some):
            out["scale_reversals"] = _reversals(some)
            break
    ready, all_of = (_total(table.filter(pc.is_in(names, pa.array(of)))) for of in (["replicas_ready"], ["replicas_ready", "replicas_booting"]))
    if len(ready):
        out["replicas.max"], out["replicas.min"] = float(all_of.max()), float(ready.min())
    return out


def _total(table: pa.Table) -> Any:
    """Sum over pools and series at each time."""
    return table.to_pandas().groupby("t_s")["value"].sum().to_numpy()


def _reversals(table: pa.Table) -> int:
    frame = table.to_pandas()
    found = 0
    for _, one in frame.groupby("key", observed=True):
        steps = np.diff(one["value"].to_numpy())
        at = one["t_s"].to_numpy()[1:][steps != 0]
        signs = np.sign(steps[steps != 0])
        found += int(((signs[1:] != signs[:-1]) & (np.diff(at) <= REVERSAL_S)).sum())
    return found


def _cost(run: Run, values: Mapping[str, Any], part: Window | None) -> dict[str, float | None]:
    """GPU-hours and money from provisioning to gone, of the whole run; an unknown price makes money unknown.

    part: what the requests were counted in, if that is not all of the run; what one of them cost is the money that was spent in it.
    """
    table = run.tables.arrow("replicas")

    def total(name: str) -> float | None:
        column = table.column(name)
        return None if not len(column) or column.null_count else float(pc.sum(column).as_py())

    seconds, usd, busy = total("gpu_seconds"), total("usd"), total("busy_s")
    ready = table.column("ready_s").to_numpy()
    gone = np.where(np.isnan(g := table.column("gone_s").to_numpy()), run.tables.end_s, g)
    served = float(np.nansum(gone - ready)) if len(table) else 0.0
    hours = run.tables.end_s / 3600.0
    per_hour = ratio(usd, hours)
    tokens = (values["total_tps"] or 0.0) * values["window_s"]
    spent = usd if usd is None or part is None else _spent(table, run.tables.end_s, part)
    thousand = ratio(spent, values["good"])
    kwh = total("kwh")
    joules = None if kwh is None else kwh * 3.6e6
    return {
        "utilisation": ratio(busy, served), "gpu_hours": None if seconds is None else seconds / 3600.0, "usd": usd,
        "usd_per_hour": per_hour, "kwh": kwh, "j_per_output_token": ratio(joules, total("output_tokens")),
        "usd_per_1k_good": None if thousand is None else thousand * 1000.0,
        "usd_per_mtok": None if not tokens or spent is None else spent / tokens * 1e6,
        "good_rps_per_usd_hour": ratio(values["goodput_rps"], per_hour) if not _nan(values["goodput_rps"]) else None,
    }


def _spent(table: pa.Table, end_s: float, part: Window) -> float:
    """Money of the replicas within a part of the run; each spends evenly from its provisioning until it is gone."""
    usd, seconds = (table.column(name).to_numpy() for name in ("usd", "gpu_seconds"))
    gpus = table.column("gpus").to_numpy() if "gpus" in table.column_names else np.ones(len(table))
    gone = np.where(np.isnan(g := table.column("gone_s").to_numpy()), end_s, g)
    lives = seconds / gpus
    inside = np.clip(np.minimum(gone, part.start + part.window_s) - np.maximum(gone - lives, part.start), 0.0, None)
    return float((usd * np.divide(inside, lives, out=np.zeros(len(lives)), where=lives > 0)).sum())


def _nan(value: float | None) -> bool:
    return value is None or math.isnan(value)
