"""Faults of traffic, replies, metrics and clocks; what policies see of engines; pools that come to nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from windtunnel.errors import ConfigError, ConfigValueError
from windtunnel.events import Request, Scraped
from windtunnel.lab.history import violations
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.fault_config import Fault, surges_of
from windtunnel.sim.scrape import ScrapeModel
from windtunnel.sources.dist import Uniform
from windtunnel.sources.surge import Surge, Surges

TEXT = """
windtunnel: 1
name: faulty
duration_s: 60
seed: 3
fleet:
  pools:
    chat:
      {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, engine: {max_num_seqs: 16}, startup: {node_s: 10, image_s: 0, weights_s: 5, compile_s: 0}}
source: {kind: arrivals, rate_rps: 6, input_tokens: 300, output_tokens: {kind: lognormal, mean: 60, cv: 0.5}, tenants: {a: 1, b: 1}}
control: {queue: {kind: fifo}, admission: {limit: {kind: none}}, routing: {kind: least_outstanding}}
record: full
"""


def fly(*faults: dict[str, Any], **changes: Any) -> Run:
    return Scenario.load(TEXT).with_({"faults": list(faults), **changes}).run(check=True)


class Stream:
    """Requests at given times."""

    name, loop, needs = "s", "open", frozenset[str]()

    def __init__(self, times: Sequence[float], tenant: str = "t") -> None:
        self.times, self.tenant = times, tenant

    def stream(self) -> Iterator[Request] | None:
        for i, at in enumerate(self.times):
            yield Request(f"r{i}", self.tenant, "m", 0, at, 10, 5, deadline_s=at + 5.0)

    def start(self, now: float) -> Sequence[Any]:
        return ()

    def handle(self, what: Any, now: float) -> Sequence[Any]:
        return ()

    def done(self) -> bool:
        return True


def surged(times: Sequence[float], *surges: Surge, seed: int = 1) -> list[Request]:
    return list(Surges(Stream(times), surges, np.random.default_rng(seed)).stream() or ())  # type: ignore[arg-type]


def test_SJ_1_load_multiplies_inside_its_window_and_nowhere_else() -> None:
    times = np.arange(0.0, 100.0, 0.1)
    out = surged(times, Surge(20.0, 40.0, 3.0))
    at = np.array([r.arrived_s for r in out])
    assert (np.diff(at) >= 0).all() and len({r.id for r in out}) == len(out)
    assert ((at >= 20) & (at < 40)).sum() == 600 and len(out) == 1000 + 400
    assert all(r.deadline_s == pytest.approx(r.arrived_s + 5.0) for r in out)


def test_SJ_1_load_thins_and_overlaps_multiply_and_tenants_are_told_apart() -> None:
    times = np.arange(0.0, 400.0, 0.1)
    assert len(surged(times, Surge(0.0, 1e9, 0.25))) == pytest.approx(1000, rel=0.1)
    assert len(surged(times, Surge(0.0, 1e9, 1.5))) == pytest.approx(6000, rel=0.05)
    assert len(surged(times, Surge(0.0, 1e9, 2.0), Surge(0.0, 1e9, 3.0))) == 24000
    assert len(surged(times, Surge(0.0, 1e9, 3.0, "other"))) == 4000
    assert surged([], Surge(0.0, 1e9, 3.0)) == [] and len(surged([1.0, 1.0], Surge(0.0, 1e9, 2.0))) == 4


def test_SJ_1_load_in_a_run_is_noted_and_comes_back() -> None:
    run = fly({"kind": "load", "at_s": 20, "for_s": 10, "factor": 4, "tenant": "a"})
    rows, plain = run.requests, fly().requests
    during = rows[(rows.arrived_s >= 20) & (rows.arrived_s < 30)]
    before = plain[(plain.arrived_s >= 20) & (plain.arrived_s < 30)]
    assert (during.tenant == "a").sum() == pytest.approx(4 * (before.tenant == "a").sum(), abs=4)
    assert (during.tenant == "b").sum() == (before.tenant == "b").sum()
    notes = run.notes[run.notes.stream == "fleet"]
    assert notes.kind.tolist() == ["fault_started", "fault_ended"] and notes.t_s.tolist() == [20.0, 30.0]
    windows = surges_of([Fault("slow", at_s=0.0), Fault("load", every_s=20.0, for_s=5.0)], seed=1, replication=0, until_s=60.0)
    assert [(s.from_s, s.to_s) for s in windows] == [(0.0, 5.0), (20.0, 25.0), (40.0, 45.0)]


def test_SJ_1_load_needs_arrivals_of_their_own() -> None:
    class Reacts(Stream):
        def stream(self) -> Iterator[Request] | None:
            return None

    with pytest.raises(ConfigValueError, match="only reacts"):
        Surges(Reacts([]), [Surge(0, 1, 2)], np.random.default_rng(1)).stream()  # type: ignore[arg-type]


def test_SJ_1_replies_that_break_off_after_the_first_token() -> None:
    run = fly({"kind": "errors", "at_s": 20, "for_s": 20, "after": "first_token", "status": 502, "p": 0.5},
              **{"control.settings.attempts": 3})
    rows = run.requests
    broken = rows[rows.outcome == "provider_failure"]
    assert len(broken) > 20 and (broken.reason == "http_502").all() and (broken.attempts == 1).all(), "no second try once a token is out"
    assert broken.first_token_s.notna().all() and (broken.ended_s == broken.first_token_s).all()
    assert (broken.ended_s >= 20).all() and (broken.ended_s <= 40).all() and (rows[rows.arrived_s > 41].outcome == "success").all()
    assert violations(run) == []


# -- what policies see ------------------------------------------------------------------------------------------------------------


def looks(model: ScrapeModel, *faults: dict[str, Any], seconds: float = 60.0) -> list[tuple[float, Scraped]]:
    """(delivered at, event) of a run in which somebody wants scrapes."""
    import dataclasses

    from windtunnel.sim.driver import SimDriver

    scenario = Scenario.load(TEXT).with_({"faults": list(faults), "duration_s": seconds})
    fleet = scenario.build_fleet()
    fleet = dataclasses.replace(fleet, pools={n: dataclasses.replace(p, scrape=model) for n, p in fleet.pools.items()})
    control, heard = scenario.build_control(), []
    control.needs |= {"scrape"}

    class Ear:
        def __getattr__(self, name: str) -> Any:
            return lambda *a, **k: None

        def step(self, seq: int, now: float, event: Any, effects: Any, verdicts: Any = None) -> None:
            if isinstance(event, Scraped):
                heard.append((now, event))

    driver = SimDriver(control, scenario.build_source(), fleet, Ear(), seed=1, until=seconds, faults=scenario.build_faults())  # type: ignore[arg-type]
    driver.advance()
    assert driver.error is None
    return [(now, e) for now, e in heard if now <= seconds]


def test_SO_1_in_phase_all_replicas_are_read_at_the_same_times() -> None:
    found = looks(ScrapeModel(2.0))
    assert [now for now, _ in found] == [t for t in np.arange(2.0, 61.0, 2.0) for _ in range(2)]
    assert all(e.scrape.sampled_s == now and e.scrape.running is not None for now, e in found)


def test_SO_1_random_phase_spreads_them_and_is_the_same_each_time() -> None:
    found = looks(ScrapeModel(2.0, "random"))
    first = {e.replica: now % 2.0 for now, e in reversed(found)}
    assert len(set(first.values())) == 2 and len(found) in (59, 60, 61)
    assert [(n, e.replica) for n, e in looks(ScrapeModel(2.0, "random"))] == [(n, e.replica) for n, e in found]


def test_SO_1_late_lost_and_partial() -> None:
    assert all(now - e.scrape.sampled_s == pytest.approx(3.0) for now, e in looks(ScrapeModel(1.0, delay_s=3.0)))
    spread = [now - e.scrape.sampled_s for now, e in looks(ScrapeModel(1.0, delay_s=Uniform(0.0, 5.0)))]
    assert 0.0 < min(spread) < 1.0 < 4.0 < max(spread) < 5.0
    sampled = [e.scrape.sampled_s for _, e in looks(ScrapeModel(1.0, delay_s=Uniform(0.0, 5.0)))]
    assert sampled != sorted(sampled), "late ones are overtaken"
    assert len(looks(ScrapeModel(1.0, drop_p=0.5))) == pytest.approx(60, abs=20) and looks(ScrapeModel(1.0, drop_p=1.0)) == []
    only = looks(ScrapeModel(1.0, fields=("running", "waiting")))[0][1].scrape
    assert only.running is not None and only.kv_used_fraction is None and only.num_blocks is None and only.output_tokens_total is None


def test_SJ_1_metrics_faults_compose_and_clocks_are_off() -> None:
    late = looks(ScrapeModel(1.0), {"kind": "metrics_delay", "at_s": 10, "for_s": 20, "delay_s": 2},
                 {"kind": "metrics_delay", "at_s": 20, "delay_s": 1})
    by = {e.scrape.sampled_s: now - e.scrape.sampled_s for now, e in late}
    assert (by[5.0], by[15.0], by[25.0], by[35.0]) == (0.0, 2.0, 3.0, 1.0)
    off = looks(ScrapeModel(1.0), {"kind": "clock", "at_s": 10, "for_s": 10, "step_s": -4, "replicas": [1]})
    steps = {(now, e.replica): e.scrape.sampled_s - now for now, e in off}
    assert steps[15.0, "chat-1"] == -4.0 and steps[15.0, "chat-0"] == 0.0 and steps[25.0, "chat-1"] == 0.0
    frozen = looks(ScrapeModel(1.0), {"kind": "pause", "at_s": 10, "for_s": 10, "replicas": [0]})
    seen = {e.scrape.sampled_s for now, e in frozen if e.replica == "chat-0" and 10 < now < 20}
    assert len(seen) == 1, "a process that stands still shows what it showed"


@pytest.mark.parametrize("wrong", [{"interval_s": 0.0}, {"phase": "mid"}, {"delay_s": -1.0}, {"drop_p": 2.0}, {"fields": ("cpu",)}])
def test_SO_1_bad_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(wrong))):
        ScrapeModel(**wrong)
    with pytest.raises(ConfigError):
        Scenario.load(TEXT).with_({f"fleet.pools.chat.scrape.{k}": list(v) if isinstance(v, tuple) else v for k, v in wrong.items()})


def test_SO_1_scrapes_come_from_the_file() -> None:
    part = {"interval_s": 5, "phase": "random", "delay_s": {"kind": "uniform", "lo": 0, "hi": 1}, "drop_p": 0.1, "fields": ["running"]}
    model = Scenario.load(TEXT).with_({"fleet.pools.chat.scrape": part}).build_fleet().pools["chat"].scrape
    assert model == ScrapeModel(5.0, "random", Uniform(0.0, 1.0), 0.1, ("running",))


# -- edges: defined, and never a hang ------------------------------------------------------------------------------------------------


def test_a_pool_of_nothing_ends_everybody() -> None:
    run = fly(**{"fleet.pools.chat.replicas": 0})
    assert len(run.requests) > 300 and (run.requests.outcome == "rate_limited").all() and violations(run) == []


def test_the_last_replica_crashes_for_good_with_work_waiting() -> None:
    run = fly({"kind": "crash", "at_s": 10, "restart": False}, **{"control.admission.limit": {"kind": "fixed", "limit": 4}})
    rows = run.requests
    assert rows.outcome.notna().all() and set(rows.outcome) == {"success", "provider_failure", "rate_limited"}
    assert (rows[rows.arrived_s > 10].reason == "no_replica").all() and violations(run) == []


def test_many_faults_at_once_and_on_those_already_gone() -> None:
    everything = [{"kind": k, "at_s": 20, "for_s": 10} for k in ("slow", "pause", "errors", "metrics_drop", "metrics_freeze", "clock", "load",
                                                                    "boot_slow", "boot_fail")]
    run = fly({"kind": "crash", "at_s": 20, "replicas": [0]}, {"kind": "crash", "at_s": 20, "replicas": [0]},
              {"kind": "spot", "at_s": 20, "replicas": [0], "notice_s": 5}, *everything, {"kind": "crash", "at_s": 25, "restart": False, "count": 9})
    assert violations(run) == [] and run.requests.outcome.notna().all() and run.complete
    assert "fault_missed" in set(run.notes.kind)


def test_a_pause_that_ends_while_the_replica_drains_lets_it_finish() -> None:
    run = fly({"kind": "pause", "at_s": 20, "for_s": 10, "replicas": [0]}, {"kind": "spot", "at_s": 21, "replicas": [0], "notice_s": 60})
    assert (run.requests.outcome == "success").all() and violations(run) == []


def test_one_prompt_of_a_million_tokens_is_served_or_refused() -> None:
    big = {"source.input_tokens": 1_000_000, "source.rate_rps": 0.1, "fleet.pools.chat.replicas": 1}
    for why, changes in (("context_length_exceeded", {}), ("kv_capacity_exceeded", {"source.input_tokens": 100_000,
                                                                                   "fleet.pools.chat.engine.num_blocks": 5000})):
        refused = fly(**{**big, **changes})
        assert (refused.requests.outcome == "unexpected_exception").all() and set(refused.requests.reason) == {why}
    served = fly(**big, **{"fleet.pools.chat.tp": 8, "fleet.pools.chat.engine.max_model_len": 2_000_000, "grace_s": 20_000})
    assert (served.requests.outcome == "success").all() and violations(served) == []


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_rates_that_mean_nothing_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate_rps"):
        Scenario.load(TEXT).with_({"source.rate_rps": rate})


def test_SV_5_faults_clients_and_scrapes_together_are_the_same_in_every_process() -> None:
    code = ("import hashlib, sys; from windtunnel.lab.scenario import Scenario; r = Scenario.load(sys.argv[1]).run();"
            "lines = r.tables.log.splitlines()[1:-1];"  # the header says when, and the end line hashes the header too
            "print(hashlib.sha256(b'|'.join(lines)).hexdigest(), len(r.requests))")
    text = TEXT.replace("tenants: {a: 1, b: 1}}", "tenants: {a: 1, b: 1}, clients: {timeout_s: 3, cancel_on_timeout: false, "
                        "retry: {jitter: decorrelated, budget: 0.5}}}")
    text = text.replace("startup:", "scrape: {phase: random, delay_s: {kind: exp, mean: 1}, drop_p: 0.2}, startup:")
    text = text.replace("control: {", "control: {ledger: {accounting: since_scrape}, ")
    text += ("faults: [{kind: crash, rate_per_h: 120, count: 1}, {kind: load, every_s: 20, at_s: 5, for_s: 8, factor: 2.5}, "
             "{kind: errors, at_s: 5, p: 0.2, after: first_token, status: 500}, {kind: clock, at_s: 9, fraction: 0.5}, "
             "{kind: slow, rate_per_h: 300, for_s: 5, fraction: 0.5}]\n")
    outs = {subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "WINDTUNNEL_QUIET": "1"}).stdout for seed in ("1", "77")}
    assert len(outs) == 1 and int(outs.pop().split()[1]) > 300
