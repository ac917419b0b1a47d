"""Around an engine's steps: host costs, sleep, pause, reports, noise."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from engine_bench import AFFINE, SECOND, Bench

from windtunnel.errors import ConfigValueError, EngineBusyError
from windtunnel.sim.engine import Attempt, EngineConfig, HostCosts


def test_SE_11_ingress_delays_the_queue_and_egress_the_caller_only() -> None:
    host = HostCosts(connect_s=0.25, ingress_s=0.5, ingress_per_token_s=0.025, egress_s=2.0)
    bench = Bench(EngineConfig(host=host))
    a = bench.send("a", 10, 3)
    engine = bench.run()
    assert a.started_s == 1.0
    assert (a.first_token_s, a.finished_s) == (4.0, 6.0)
    assert bench.told == [("first", "a", 4.0), ("finish", "a", 6.0)]
    assert engine.busy_s == 3.0


def test_SE_11_a_client_that_leaves_on_the_way_in_never_reaches_the_engine() -> None:
    bench = Bench(EngineConfig(host=HostCosts(ingress_s=1.0), max_queued_requests=1))
    bench.send("a", 10, 3)
    bench.send("b", 10, 3)
    bench.at(0.5, lambda: bench.engine.cancel("a", 1))
    engine = bench.run()
    assert bench.told == [("cancel", "a", 0.5)]
    assert bench.refused == {"b": (503, "engine_queue_full", None)}
    assert engine.steps == 0


def test_SE_12_only_an_idle_engine_sleeps_and_a_sleeping_one_refuses() -> None:
    bench = Bench(EngineConfig(wake_s=(2.0, 30.0)))
    bench.send("a", 32, 3)
    busy: list[str] = []

    def try_to_sleep() -> None:
        with pytest.raises(EngineBusyError):
            bench.engine.sleep(1)
        busy.append("refused")

    bench.at(1.5, try_to_sleep)
    bench.at(5.0, lambda: bench.engine.sleep(2))
    bench.send("asleep", 10, 1, at_s=6.0)
    awake: list[float] = []
    bench.at(10.0, lambda: awake.append(bench.engine.wake(lambda: awake.append(bench.agenda.now))))
    bench.send("waking", 10, 1, at_s=39.0)
    b = bench.send("awake", 10, 1, at_s=40.5)
    bench.run()
    assert busy == ["refused"]
    assert bench.refused == {"asleep": (503, "engine_unavailable", None), "waking": (503, "engine_unavailable", None)}
    assert awake == [30.0, 40.0]
    assert b.finished_s == 41.5
    assert bench.engine.wake() == 0.0


def test_SE_12_sleep_forgets_the_prefix_cache() -> None:
    bench = Bench()
    a = Attempt("a", 1, 33, 1, 0, (1, 2))
    b = Attempt("b", 1, 33, 1, 0, (1, 2))
    bench.at(0.0, lambda: bench.engine.submit(a))
    bench.at(2.0, lambda: bench.engine.sleep(1))
    bench.at(3.0, lambda: bench.engine.wake())
    bench.at(4.0, lambda: bench.engine.submit(b))
    bench.run()
    assert b.cached_tokens == 0
    with pytest.raises(ConfigValueError):
        bench.engine.sleep(3)


def test_SJ_1_a_paused_engine_ends_its_step_and_starts_none() -> None:
    bench = Bench()
    a = bench.send("a", 10, 5)
    b = bench.send("b", 10, 1, at_s=4.0)
    bench.at(1.5, bench.engine.pause)
    bench.at(5.5, bench.engine.resume)
    bench.at(6.0, bench.engine.resume)  # a second one changes nothing
    engine = bench.run()
    assert bench.tokens(a) == [1.0, 2.0, 6.5, 7.5, 8.5]
    assert b.first_token_s == 6.5
    assert engine.busy_s == 5.0


def test_SE_15_reports_at_most_each_interval_and_zeros_when_idle() -> None:
    reports: list[Any] = []
    bench = Bench(EngineConfig(max_num_seqs=1), AFFINE, on_report=reports.append, fpm_interval_s=0.1)
    bench.send("a", 100, 100)
    bench.send("b", 70, 1, at_s=0.05)
    bench.agenda.run(until=3.0)
    busy = [r for r in reports if r.step_s]
    gaps = [y.at_s - x.at_s for x, y in pairwise(busy)]
    assert len(busy) >= 5
    assert all(0.1 <= gap < 0.107 for gap in gaps)
    assert {(r.decode_seqs, r.prefill_seqs, r.queued_prefill_tokens) for r in busy[1:5]} == {(1, 0, 70)}
    second = busy[1]
    assert second.step_s == pytest.approx(6e-3 + 2e-5 + 2.4e-8 * second.decode_kv, abs=1e-12)
    idle = [r.at_s for r in reports if not r.step_s]
    assert idle[0] > max(r.at_s for r in busy)
    assert np.diff(idle) == pytest.approx(1.0)
    plain = Bench(EngineConfig(max_num_seqs=1), AFFINE)
    a = plain.send("a", 100, 100)
    plain.run()
    assert a.finished_s == pytest.approx(next(at for what, id, at in bench.told if (what, id) == ("finish", "a")), abs=1e-9)


def test_SF_10_noise_has_mean_1_and_comes_from_the_engines_own_generator() -> None:
    def fly(seed: int) -> list[float]:
        bench = Bench(EngineConfig(noise_cv=0.2), rng=np.random.Generator(np.random.PCG64(seed)))
        sent = [bench.send(f"q{i}", 10, 2, at_s=10.0 * i) for i in range(400)]
        bench.run()
        return [a.first_token_s - a.started_s for a in sent]

    one = fly(1)
    assert one == fly(1) != fly(2)
    assert np.mean(one) == pytest.approx(1.0, abs=0.04)
    assert np.std(one) == pytest.approx(0.2, abs=0.03)
    with pytest.raises(ConfigValueError, match="generator"):
        Bench(EngineConfig(noise_cv=0.2))


def test_SF_10_a_model_that_allows_no_runs_is_stepped_and_told() -> None:
    class Forest:
        provenance = SECOND.provenance

        def seconds(self, b: Any) -> float:
            return 1.0

        def run(self, b: Any, k: int) -> tuple[float, float, int]:
            return 1.0, 0.0, 1

    bench = Bench(model=Forest())
    a = bench.send("a", 10, 11)
    engine = bench.run()
    assert a.finished_s == 11.0
    assert engine.events >= 11
    assert engine.per_step_share == pytest.approx(9 / 11)  # the prefill and the last decode are single anyway
