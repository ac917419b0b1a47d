"""What a planner has to tell a monitoring system: samples from its counters, its newest tick and its plugins. A pure function; unknown is absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING, Literal

from windtunnel.policy.planning.asking import TYPE_NAMES
from windtunnel.policy.planning.audit import BUCKETS
from windtunnel.policy.planning.breaker import Circuit
from windtunnel.policy.planning.contract import Override
from windtunnel.policy.planning.diagnostics import LOAD, PREDICT, THROUGHPUT
from windtunnel.policy.planning.labels import Labels, within_budget
from windtunnel.policy.planning.load_sla import SlaSignal
from windtunnel.policy.planning.said import queued

if TYPE_CHECKING:
    from windtunnel.policy.planning.shell import PipelinePlanner

Kind = Literal["counter", "gauge", "histogram"]
Buckets = tuple[tuple[int, ...], float]

# name → (labels, help); every name gets the prefix windtunnel_planner_
COUNTERS: Mapping[str, tuple[Labels, str]] = {
    "plugin_evaluations_total": (("plugin_id", "stage", "result"), "Answers of plugins, by what they were."),
    "plugin_held_over_total": (("plugin_id",), "Times that a plugin's last answer stood in for a new one."),
    "ticks_total": (("action",), "Ticks, by how they ended."),
    "ticks_missed_total": ((), "Grid times that passed without a tick."),
    "tick_timeout_total": ((), "Ticks that ran out of time."),
    "requires_unsatisfied_total": (("plugin_id", "missing_field"), "Times that a plugin was left out because a field that it needs was missing."),
    "clamped_total": (("stage", "component", "bound", "plugin_id"), "Times that a bound moved a recommendation."),
    "bounds_conflict_total": (("component",), "Times that a floor was above a ceiling."),
    "set_dropped_total": (("plugin_id",), "Fixed counts that were dropped in a stage which takes bounds only."),
    "rejected_total": (("plugin_id",), "Ticks that a plugin rejected."),
    "registrations_total": (("outcome",), "Registrations of plugins."),
    "evictions_total": ((), "Plugins that were removed because they fell silent."),
    "plans_total": (("status",), "Plans that were emitted, and how they were answered."),
    "scale_up_stuck_total": (("component",), "Times that ordered replicas did not come."),
    "observation_invalid_total": (("field",), "Readings that were no finite number."),
    "gpu_seconds_total": (("component",), "GPU-seconds held by replicas that serve, start or drain."),
}
HISTOGRAMS: Mapping[str, tuple[Labels, str]] = {
    "plugin_latency_seconds": (("plugin_id", "stage"), "Time of one call; calls answered inside the process have no clock and are left out."),
    "tick_duration_seconds": ((), "From the start of a tick to its end."),
}
GAUGES: Mapping[str, tuple[Labels, str]] = {
    "plugin_circuit_state": (("plugin_id",), "0 closed, 0.5 half open, 1 open."),
    "plugin_cache_age_seconds": (("plugin_id",), "Age of the answer that is kept for a plugin."),
    "plugin_override_active": (("plugin_id", "type"), "1 for the kinds of override that a plugin had in the newest tick."),
    "tick_lag_seconds": ((), "How late the newest tick began."),
    "replicas": (("component", "state"), "Replicas by state: ready, starting, draining, expected."),
    "target_replicas": (("component",), "Replicas that the newest tick planned."),
    "observed_requests_per_second": ((), "Arrivals in the newest traffic window."),
    "observed_isl_tokens": ((), "Mean prompt length in the newest traffic window."),
    "observed_osl_tokens": ((), "Mean output length in the newest traffic window."),
    "observed_ttft_seconds": ((), "Mean time to first token in the newest traffic window."),
    "observed_itl_seconds": ((), "Mean time between tokens in the newest traffic window."),
    "predicted_requests_per_second": ((), "Forecast arrivals, when replicas ordered now are ready."),
    "predicted_isl_tokens": ((), "Forecast prompt length."),
    "predicted_osl_tokens": ((), "Forecast output length."),
    "forecast_error_wape": (("field",), "Sum of absolute forecast errors over the sum of what came, last 64 windows."),
    "forecast_bias": (("field",), "Mean of what came minus what was forecast, last 64 windows."),
    "slo_ttft_seconds": ((), "Bound of the time to first token."),
    "slo_itl_seconds": ((), "Bound of the time between tokens."),
    "estimated_ttft_seconds": (("component",), "Time to first token of a request that came now, at the busiest engine."),
    "estimated_itl_seconds": (("component",), "Time between tokens at the busiest engine."),
    "engine_capacity_rps": (("component",), "Requests per second that one replica serves within the SLO."),
    "queued_prefill_tokens": ((), "Prompt tokens that wait in engines."),
    "queued_decode_kv_tokens": ((), "KV tokens that wait in engines."),
    "power_limit_watts": ((), "Power budget."),
    "power_projected_watts": ((), "Power of the planned replicas."),
    "decision": (("component", "reason"), "1 for the reasons of the newest tick."),
}
PREFIX = "windtunnel_planner_"
CIRCUITS: Mapping[Circuit, float] = {Circuit.CLOSED: 0.0, Circuit.HALF_OPEN: 0.5, Circuit.OPEN: 1.0}


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. samples: label values → number; histograms: label values → (cumulative counts by bound, the last one of all; sum)."""

    name: str
    kind: Kind
    labels: Labels
    help: str
    samples: Mapping[Labels, float] = field(default_factory=dict)
    histograms: Mapping[Labels, Buckets] = field(default_factory=dict)


def planner_metrics(planner: PipelinePlanner) -> tuple[Family, ...]:
    """Every family that has a sample, no label with more values than its budget. Changes nothing in the planner."""
    gauges: dict[str, dict[Labels, float]] = {}
    for name, labels, value in _gauges(planner):
        gauges.setdefault(name, {})[labels] = float(value)
    counts: dict[str, dict[Labels, float]] = {}
    for key, count in planner.journal.counts.items():
        counts.setdefault(key[0], {})[tuple(str(word) for word in key[1:])] = float(count)
    for name, labels, value in _counted(planner):
        counts.setdefault(name, {})[labels] = float(value)
    out = [Family(name, "counter", *of, samples=within_budget(of[0], counts[name], add)) for name, of in COUNTERS.items() if name in counts]
    told: dict[str, dict[Labels, Buckets]] = {}
    for (name, *words), h in planner.journal.histograms.items():
        told.setdefault(name, {})[tuple(words)] = (tuple(accumulate(h.counts)), h.total)
    out += [Family(n, "histogram", *of, histograms=within_budget(of[0], told[n], _both)) for n, of in HISTOGRAMS.items() if n in told]
    return (*out, *(Family(n, "gauge", *of, samples=within_budget(of[0], gauges[n], max)) for n, of in GAUGES.items() if n in gauges))


def _both(one: Buckets, other: Buckets) -> Buckets:
    return tuple(map(add, one[0], other[0])), one[1] + other[1]


def bounds_of(name: str) -> tuple[float, ...]:
    """Upper bounds of a histogram's buckets, s, without infinity."""
    return BUCKETS[name]


def _counted(planner: PipelinePlanner) -> Iterator[tuple[str, Labels, float]]:
    """Counters that are kept elsewhere than in the journal."""
    for component, pool in planner.pools.items():
        yield "gpu_seconds_total", (component,), pool.gpu_seconds
    traffic = getattr(planner.observer, "traffic", None)
    for name, count in getattr(traffic, "invalid", {}).items():
        yield "observation_invalid_total", (name,), count


def _gauges(planner: PipelinePlanner) -> Iterator[tuple[str, Labels, float]]:
    yield from _plugins(planner)
    yield from _pools(planner)
    yield from _traffic(planner)
    yield from _models(planner)
    yield from _limits(planner)


def _plugins(planner: PipelinePlanner) -> Iterator[tuple[str, Labels, float]]:
    last = planner.last
    for entry in planner.roster.snapshot().entries:
        yield "plugin_circuit_state", (entry.plugin_id,), CIRCUITS[entry.breaker.last]
        if entry.cache is not None and last is not None:
            yield "plugin_cache_age_seconds", (entry.plugin_id,), max(0.0, last.tick_at - entry.cached_at)
    for plugin_id, _, response, _ in last.answers if last is not None else ():
        answer = getattr(response, "answer", None)
        for kind in {t.type for t in answer.targets if t.replicas is not None} if type(answer) is Override else ():
            yield "plugin_override_active", (plugin_id, TYPE_NAMES[kind]), 1.0
    if last is not None:
        yield "tick_lag_seconds", (), last.now - last.tick_at


def _pools(planner: PipelinePlanner) -> Iterator[tuple[str, Labels, float]]:
    for component, pool in planner.pools.items():
        state = pool.state()
        for name in ("ready", "starting", "draining", "expected"):
            count = getattr(state, name)
            if count is not None:
                yield "replicas", (component, name), count
    for component, row in planner.last.components.items() if planner.last is not None else ():
        if row["planned"] is not None:
            yield "target_replicas", (component,), row["planned"]
        for reason in row["plan_reasons"]:
            yield "decision", (component, reason), 1.0


def _traffic(planner: PipelinePlanner) -> Iterator[tuple[str, Labels, float]]:
    seen = planner.observed.traffic if planner.observed is not None else None
    ahead = planner.predicted
    found: dict[str, float | None] = {}
    if seen is not None and seen.duration_s > 0:
        found |= {"observed_requests_per_second": seen.num_req / seen.duration_s, "observed_isl_tokens": seen.isl, "observed_osl_tokens": seen.osl,
                  "observed_ttft_seconds": seen.ttft_s, "observed_itl_seconds": seen.itl_s}
    if ahead is not None:
        rps = ahead.predicted_num_req / ahead.window_s if ahead.predicted_num_req is not None and ahead.window_s else None
        found |= {"predicted_requests_per_second": rps, "predicted_isl_tokens": ahead.predicted_isl, "predicted_osl_tokens": ahead.predicted_osl}
    waiting = queued(planner.observed)
    if waiting is not None:
        found |= {"queued_prefill_tokens": waiting[0], "queued_decode_kv_tokens": waiting[1]}
    yield from ((name, (), value) for name, value in found.items() if value is not None)
    predict = planner.plugins.get(PREDICT)
    for name, score in predict.scores().items() if predict is not None else ():
        if score is not None:
            yield "forecast_bias", (name,), score.bias
            if score.wape is not None:
                yield "forecast_error_wape", (name,), score.wape


def _models(planner: PipelinePlanner) -> Iterator[tuple[str, Labels, float]]:
    """What replicas can do, and what they are about to give, as the built-in plugins know it."""
    throughput = planner.plugins.get(THROUGHPUT)
    for role, rps in throughput.capacity_rps.items() if throughput is not None else ():
        yield "engine_capacity_rps", (planner.settings.component(role),), rps
    loop = planner.plugins.get(LOAD) or throughput
    observed = planner.observed
    if loop is None or observed is None or observed.fpm is None:
        return
    for role in planner.settings.roles:
        component = planner.settings.component(role)
        reports = list(observed.fpm.engines.get(component, {}).values())
        signal = SlaSignal(loop.sizing, role, observed.traffic)
        if not reports or not signal.ready():
            continue
        for name, estimate in (("estimated_ttft_seconds", signal.ttft_s), ("estimated_itl_seconds", signal.itl_s)):
            values = [estimate(report) for report in reports]
            known = [value for value in values if value is not None]
            if known and len(known) == len(values):
                yield name, (component,), max(known)


def _limits(planner: PipelinePlanner) -> Iterator[tuple[str, Labels, float]]:
    settings = planner.settings
    bounds, power_w = settings.slo.bounds, settings.budget.power_w
    for name, value in (("slo_ttft_seconds", bounds.ttft_s), ("slo_itl_seconds", bounds.itl_s), ("power_limit_watts", power_w)):
        if value is not None:
            yield name, (), value
    planned = planner.last.components if planner.last is not None else {}
    watts = [(settings.pools[role].watts_per_replica, planned.get(settings.component(role), {}).get("planned")) for role in settings.roles]
    if all(each is not None and n is not None for each, n in watts):
        yield "power_projected_watts", (), sum(each * n for each, n in watts if each is not None and n is not None)
