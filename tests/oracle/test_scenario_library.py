"""Each scenario of the library shows what it says: the phenomenon appears, and it goes when the cause or the remedy says so."""

from __future__ import annotations

from functools import cache

import pandas as pd
import pytest

from windtunnel.datafiles import data_path
from windtunnel.lab.fairness import jain, service_curves
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.prefix import PrefixCache
from windtunnel.sources.traces.open import open_trace
from windtunnel.sources.traces.ops import operation_of


def fly(name: str, variant: str | None = None, **changes: object) -> Run:
    scenario = Scenario.load(name).with_(changes) if changes else Scenario.load(name)
    return (scenario.variant(variant) if variant else scenario).run()


def good_rps(run: Run, minute: int) -> float:
    """Requests that ended within 8 s in that minute, per second."""
    rows = run.requests
    mine = rows[(rows.outcome == "success") & (rows.e2e_s <= 8) & (rows.ended_s >= 60 * minute) & (rows.ended_s < 60 * minute + 60)]
    return len(mine) / 60


def test_retry_storm_stays_down_without_protection_and_recovers_with_it() -> None:
    plain, patient, protected = fly("retry-storm"), fly("retry-storm", "no_retries"), fly("retry-storm", "protected")
    assert good_rps(plain, 3) > 7.0, "before the burst all is well"
    assert [good_rps(plain, m) for m in (8, 12, 15, 18)] == [0, 0, 0, 0], "ten minutes after the burst, nothing"
    assert good_rps(patient, 8) < 1.0 and good_rps(patient, 18) >= 7.3, "without retries it comes back by itself, late"
    assert min(good_rps(protected, m) for m in range(7, 19)) >= 6.0, "dropping what nobody waits for, with a retry budget"
    for run in (plain, patient, protected):
        assert run.requests.request_id.is_unique and run.requests.outcome.notna().all()


def test_retry_storm_newest_first_serves_throughout() -> None:
    run = fly("retry-storm", "lifo")
    assert min(good_rps(run, m) for m in range(8, 19)) >= 5.0


def test_straggler_round_robin_diverges_and_others_notice() -> None:
    mean, share = {}, {}
    for name in (None, "power_of_two", "least_outstanding", "healthy"):
        rows = fly("straggler", name).requests
        rows = rows[rows.arrived_s > 100]
        mean[name], share[name] = rows.e2e_s.mean(), (rows.replica == "chat-3").mean()
    assert mean[None] > 15 and share[None] == pytest.approx(0.25, abs=0.005)
    assert 1.9 < mean["power_of_two"] < 2.6 and 1.6 < mean["least_outstanding"] < 2.0
    assert share["least_outstanding"] < 0.2 and mean["healthy"] < 2.0


def test_spot_loss_follows_the_arithmetic_of_rates() -> None:
    cut, told, again = fly("spot-loss"), fly("spot-loss", "with_notice"), fly("spot-loss", "redispatch")
    waiting = cut.series[cut.series.name == "waiting"]
    assert waiting.value.max() == pytest.approx(180, abs=3), "one request a second too many for 180 s"
    drained = waiting[(waiting.t_s > 480) & (waiting.value <= 0)].t_s.min()
    assert drained - 480 == pytest.approx(90, abs=3), "worked off at two a second"
    assert (cut.requests.outcome == "provider_failure").sum() in (1, 2, 3)
    assert (told.requests.outcome == "success").all() and (again.requests.outcome == "success").all()


def test_tenant_flood_starves_the_small_tenant_unless_shared_fairly() -> None:
    waits = {}
    for name in (None, "fair", "vtc", "quota"):
        rows = fly("tenant-flood", name, duration_s=60).requests
        small = rows[(rows.tenant == "small") & (rows.arrived_s > 20)]
        waits[name] = (small.first_token_s - small.arrived_s).mean()
    assert waits[None] > 10 and max(waits["fair"], waits["vtc"], waits["quota"]) < 0.5


def test_token_fairness_needs_tokens_to_be_counted() -> None:
    index = {}
    for name in (None, "fair", "vtc"):
        curves = service_curves(fly("token-fairness", name, duration_s=60).requests, [5.0, 60.0])
        index[name] = jain((curves.iloc[1] - curves.iloc[0]).tolist())
    assert index["vtc"] > 0.99 > 0.9 > index[None] > index["fair"]


def test_overload_is_tamed_by_adaptive_admission() -> None:
    good = {name: fly("overload", name).summary().to_dict()["good_fraction"] for name in ("unprotected", None)}
    assert good["unprotected"] < 0.5 < 0.8 < good[None]


SIZES = (1000, 2000, 4000, 7000)


def hit_rates(**changes: object) -> dict[str, dict[int, float]]:
    """Of input tokens found cached, by who routes and by blocks of 512 tokens in a replica."""
    found: dict[str, dict[int, float]] = {"turns": {}, "affinity": {}}
    for by, kind in (("turns", "round_robin"), ("affinity", "prefix_affinity")):
        for size in SIZES:
            run = fly("prefix-thrash", **{"control.routing": {"kind": kind}, "fleet.pools.chat.engine.num_blocks": 32 * size}, **changes)
            found[by][size] = run.summary().to_dict()["prefix_hit_rate"]
    return found


def test_prefix_thrash_affinity_beats_turns_at_every_size() -> None:
    found = hit_rates()
    for size in SIZES:
        assert found["affinity"][size] > 1.5 * found["turns"][size]
    for rates in found.values():
        assert list(rates.values()) == sorted(rates.values()), "more memory, more hits"
    assert found["affinity"][2000] > found["turns"][7000]
    collapsed = fly("prefix-thrash", "any_match").requests.replica.value_counts()
    assert len(collapsed) == 1, "one shared first block draws everyone to one replica"


@pytest.mark.slow
@pytest.mark.parametrize(("trace", "until_s"), [("conversation", 3540), ("synthetic", 1030)])
def test_prefix_thrash_over_whole_traces(trace: str, until_s: int) -> None:
    found = hit_rates(**{"source.path": f"data/traces/mooncake_{trace}.jsonl.gz", "source.ops": [], "duration_s": until_s})
    for size in SIZES:
        assert found["affinity"][size] > 1.5 * found["turns"][size]
    best = {"conversation": 0.3736, "synthetic": 0.6512}[trace]  # of one cache without bounds for all
    assert 0.8 * best < found["affinity"][7000] < best


@cache
def agent_prompts() -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(session of the whole tree, blocks) of every recorded call in order of arrival, one session more every 30 s."""
    trace = open_trace(data_path("traces/agentic_coding_sessions.parquet")).apply(operation_of({"stagger": 30}))
    rows = sorted(trace.rows(), key=lambda row: row.arrival_s)  # stable: file order at equal times
    return tuple((row.parent_session or row.session, row.blocks) for row in rows)


AGENT_HITS = {  # by block: session i on replica i mod 4, requests in turns over four, all on one
    None: {"session": 0.9426, "turns": 0.8013, "one": 0.9426}, 40_000: {"session": 0.9408, "turns": 0.7280, "one": 0.8795},
    20_000: {"session": 0.9100, "turns": 0.6321, "one": 0.7484}, 8000: {"session": 0.8222, "turns": 0.4580, "one": 0.4361}}


@pytest.mark.parametrize(("capacity", "by"), [
    pytest.param(capacity, by, marks=[] if capacity == 8000 and by != "one" else [pytest.mark.slow])
    for capacity, row in AGENT_HITS.items() for by in row])
def test_agentic_dag_hits_by_block_in_caches_alone(capacity: int | None, by: str) -> None:
    """No engine: a cache of 64-token blocks for each replica, one call after the other."""
    calls = agent_prompts()
    place = {session: i for i, session in enumerate(dict.fromkeys(session for session, _ in calls))}
    assert len(calls) == 2689 and len(place) == 59
    caches = [PrefixCache(capacity, "reverse") for _ in range(4)]
    hits = 0
    for i, (session, blocks) in enumerate(calls):
        hits += caches[{"session": place[session] % 4, "turns": i % 4, "one": 0}[by]].access(blocks)
    assert round(hits / sum(len(blocks) for _, blocks in calls), 4) == AGENT_HITS[capacity][by]


def test_agentic_dag_a_session_stays_where_it_is() -> None:
    runs = {name: fly("agentic-dag", name, duration_s=600) for name in (None, "by_session", "by_prefix")}
    found = {name: run.summary().to_dict()["prefix_hit_rate"] for name, run in runs.items()}
    assert min(found["by_session"], found["by_prefix"]) > 0.8 > 0.65 > found[None]
    places = {name: run.requests.groupby("root_session").replica.nunique() for name, run in runs.items()}
    assert (places["by_session"] == 1).all() and places[None].mean() > 2.5 > 1.5 > places["by_prefix"].mean()
    first = {name: run.requests.ttft_s.mean() for name, run in runs.items()}
    assert 2 * max(first["by_session"], first["by_prefix"]) < first[None]


def test_every_scenario_opens_with_a_question() -> None:
    from windtunnel.lab.locate import bundled

    found = {name: Scenario.load(path) for name, path in bundled().items()}
    known = {"agentic-dag", "retry-storm", "straggler", "spot-loss", "tenant-flood", "token-fairness", "overload", "data-pipeline", "prefix-thrash",
             "planner-flap"}
    assert known <= set(found)
    assert all(s.question.endswith("?") for s in found.values()), pd.Series({n: s.question for n, s in found.items()})
