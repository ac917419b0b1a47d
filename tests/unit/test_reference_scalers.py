"""Autoscalers to compare with: HPA, KPA, KEDA, and the perfect fleet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from windtunnel.policy.planning.contract import (
    ForwardPass,
    FpmData,
    ObservationData,
    Override,
    PipelineContext,
    PoolState,
    Stage,
    StageRequest,
    StageResponse,
    StepLoad,
    TrafficMetrics,
    WorkerState,
)
from windtunnel.policy.planning.reference import KedaLike, ReferenceHpa, ReferenceKpa, hpa_replicas, perfect_fleet
from windtunnel.policy.planning.reference_threshold import ReferenceThreshold
from windtunnel.policy.planning.throughput import replicas_needed


def ask(at: float, n: int | None, loads: list[tuple[int, int]] | None = None, *, expected: int | None = None,
        traffic: TrafficMetrics | None = None) -> StageRequest:
    """loads: (running, queued) per engine."""
    reports = None if loads is None else {
        f"e{i}/0": ForwardPass(f"e{i}", 0, 1, at, 0.1, StepLoad(num_decode=run, decode_kv_tokens=run * 100), StepLoad(num_prefill=wait))
        for i, (run, wait) in enumerate(loads)
    }
    fpm = None if reports is None else FpmData({"agg": reports})
    workers = WorkerState({"agg": PoolState(n, expected if expected is not None else n)})
    return StageRequest(PipelineContext("t", "d", ObservationData(traffic, fpm, workers)), Stage.PROPOSE, at, at)


def target(response: StageResponse) -> int | None:
    return response.answer.targets[0].replicas if isinstance(response.answer, Override) else None


@pytest.mark.parametrize(("ratio", "want"), [(1.1, 4), (1.11, 5), (0.91, 4), (0.9, 4), (0.5, 2), (2.0, 8)])
def test_PL_612_hpa_ratio(ratio: float, want: int) -> None:
    assert hpa_replicas(4, 100.0, [100.0 * ratio] * 4) == want


def test_PL_612_hpa_missing_metrics_count_against_the_move() -> None:
    assert hpa_replicas(4, 100.0, [200.0, 200.0, 200.0, None]) == 6
    assert hpa_replicas(4, 100.0, [20.0, 20.0, 20.0, None]) == 2
    assert hpa_replicas(4, 100.0, [120.0, None, None, None]) == 4  # the direction would flip
    assert hpa_replicas(4, 100.0, [None] * 4) == 4
    assert hpa_replicas(4, 100.0, []) == 4
    assert hpa_replicas(4, 100.0, [200.0, 200.0], unready=2) == 4  # unready ones count as 0: in tolerance


def test_PL_612_hpa_ramp() -> None:
    hpa, n, seen = ReferenceHpa("agg", "in_flight", 1.0), 1, []
    for i in range(1, 7):
        n = target(hpa.propose(ask(15.0 * i, n, [(1000, 0)] * n))) or 0
        seen.append(n)
    assert seen == [5, 10, 20, 40, 80, 160]


def test_PL_612_hpa_down_waits_for_the_largest_wish_of_the_window() -> None:
    hpa = ReferenceHpa("agg", "in_flight", 10.0)
    for i in range(1, 5):
        assert target(hpa.propose(ask(15.0 * i, 4, [(10, 0)] * 4))) == 4
    at = 60.0
    while at < 345.0:
        at += 15.0
        assert target(hpa.propose(ask(at, 4, [(1, 0)] * 4))) == 4
    assert target(hpa.propose(ask(360.0, 4, [(1, 0)] * 4))) == 1


@pytest.mark.parametrize(("metric", "limit", "want"), [("queue", 2.0, 4), ("in_flight", 6.0, 2), ("in_flight", 3.0, 4), ("kv", 0.1, 4)])
def test_PL_612_hpa_metrics(metric: str, limit: float, want: int) -> None:
    hpa = ReferenceHpa("agg", metric, limit, kv_tokens=1000)  # type: ignore[arg-type]
    assert target(hpa.propose(ask(15.0, 2, [(2, 4), (2, 4)]))) == want


def test_PL_612_hpa_rates_and_what_is_unknown() -> None:
    hpa = ReferenceHpa("agg", "rps", 2.0)
    assert target(hpa.propose(ask(15.0, 4, traffic=TrafficMetrics(10.0, 160.0)))) == 8
    assert target(hpa.propose(ask(30.0, 8))) == 8  # nothing collected
    assert hpa.propose(StageRequest(PipelineContext("t", "d"), Stage.PROPOSE, 45.0, 45.0)).kind == "accept"
    assert target(ReferenceHpa("agg", "rps", 2.0, most=5).propose(ask(15.0, 4, traffic=TrafficMetrics(10.0, 160.0)))) == 5


def test_PL_612_kpa_worked_numbers() -> None:
    kpa = ReferenceKpa("agg")
    assert kpa.desired(5, 350.0, 1500.0, 0.0) == 22
    assert kpa.desired(5, 350.0, 300.0, 10.0) == 22
    assert kpa.desired(22, 350.0, 300.0, 59.0) == 22
    assert kpa.desired(22, 350.0, 300.0, 60.0) == 11  # at most halved
    assert ReferenceKpa("agg").desired(10, 70.0, 70.0, 0.0) == 5
    assert ReferenceKpa("agg").desired(0, 0.0, 0.0, 0.0) == 0


def test_PL_612_kpa_averages_its_own_samples() -> None:
    kpa = ReferenceKpa("agg", target=10.0)
    for i in range(1, 31):
        assert target(kpa.propose(ask(2.0 * i, 2, [(10, 0), (10, 0)]))) == 2
    assert target(kpa.propose(ask(62.0, 2, [(100, 50), (100, 50)]))) == 12  # mean of 20, 20 and 300 over 6 s
    silent = ReferenceKpa("agg")
    assert silent.propose(ask(2.0, 2)).kind == "accept"


def test_PL_612_keda_total_over_target_and_the_way_to_zero() -> None:
    queue = [0]
    keda = KedaLike("agg", 5.0, cooldown_s=30.0, waiting=lambda: queue[0])
    assert target(keda.propose(ask(5.0, 0))) == 0
    queue[0] = 3
    assert target(keda.propose(ask(10.0, 0))) == 1
    queue[0] = 40
    assert target(keda.propose(ask(15.0, 1))) == 5  # 8 wished, 4 more at most
    queue[0] = 27
    assert target(keda.propose(ask(30.0, 5))) == 5  # 5.4 is within tolerance
    queue[0] = 0
    assert target(keda.propose(ask(40.0, 5))) == 5  # the largest wish of the last 300 s
    assert target(keda.propose(ask(60.0, 5))) == 0


def fluid(wish: Callable[[float, int, int], int], seconds: float = 900.0) -> list[int]:
    """Orders of a scaler that is asked every 15 s with (queue, ready, ordered): 10 rps arrive at 5 replicas of 1 rps; a boot takes 120 s."""
    queue, ordered, seen, boots = 0.0, 5, [], []
    for i in range(int(seconds / 15)):
        at = 15.0 * (i + 1)
        ready = 5 + sum(n for t, n in boots if t <= at)
        queue = max(0.0, queue + (10 - ready) * 15.0)
        wanted = max(ordered, wish(queue, ready, ordered))
        boots.append((at + 120.0, wanted - ordered))
        ordered = wanted
        seen.append(ordered)
    return seen


def test_PL_1001_pending_blind_scaling_on_a_queue_runs_to_its_cap() -> None:
    """The queue counts in full for replicas that are still starting, so that each look orders more."""
    level = [0.0]
    keda, times = KedaLike("agg", 5.0, most=200, waiting=lambda: int(level[0])), iter(range(15, 10_000, 15))

    def wish(queue: float, ready: int, ordered: int) -> int:
        level[0] = queue
        return target(keda.propose(ask(float(next(times)), ready, expected=ordered))) or ordered

    assert max(fluid(wish)) > 100


def test_PL_1001_the_queue_as_an_added_rate_stays_bounded() -> None:
    """Drained in twice the boot time at 0.8 load: at most (10 + 600/240)/0.8 = 16 replicas, and enough of them."""
    orders = fluid(lambda queue, ready, ordered: replicas_needed(10.0, queue, 2.5, 240.0, 0.8, 1.0))
    assert 13 <= max(orders) <= 16


def test_PL_612_perfect_fleet() -> None:
    assert perfect_fleet([0.0, 0.5, 1.0, 1.0000001, 7.2], 1.0) == [0, 1, 1, 2, 8]


def test_PL_612_hpa_does_not_shrink_on_one_look() -> None:
    hpa = ReferenceHpa("agg", "queue", 5.0)
    assert target(hpa.propose(ask(15.0, 5, [(0, 0)] * 5))) == 5
    assert [target(hpa.propose(ask(15.0 * i, 5, [(0, 0)] * 5))) for i in (2, 20)] == [5, 5]
    assert target(hpa.propose(ask(315.0, 5, [(0, 0)] * 5))) == 1


@pytest.mark.parametrize(("blind", "want"), [(False, 10), (True, 20)])
def test_PL_1001_pending_blind_takes_starting_replicas_for_serving_ones(blind: bool, want: int) -> None:
    """5 serve, 5 start, the queue asks for twice what serves."""
    hpa = ReferenceHpa("agg", "queue", 5.0, pending_blind=blind)
    hpa.propose(ask(0.0, 10, None, expected=10))
    assert target(hpa.propose(ask(15.0, 5, [(0, 10)] * 5, expected=10))) == want


def test_PL_612_the_controls_own_queue_counts() -> None:
    hpa, kpa, keda = ReferenceHpa("agg", "queue", 5.0), ReferenceKpa("agg", 1.0), KedaLike("agg", 5.0)
    for one in (hpa, kpa):
        one.waiting, one.running = (lambda: 30), (lambda component: {"agg": 4}[component])
    keda.waiting = lambda: 30
    assert target(hpa.propose(ask(15.0, 3, None))) == 6  # silent engines: what waits in the control is all that is known
    assert target(kpa.propose(ask(15.0, 3, None))) == 34
    assert target(keda.propose(ask(15.0, 3, None))) == 6
    loaded = ReferenceHpa("agg", "queue", 5.0)
    loaded.waiting = lambda: 30
    assert target(loaded.propose(ask(15.0, 3, [(1, 5)] * 3))) == 7  # 45 wait: 9, by at most four more
    unknown = ReferenceHpa("agg", "queue", 5.0)
    unknown.waiting = lambda: None
    assert target(unknown.propose(ask(15.0, 3, None))) == 3
    rps = ReferenceHpa("agg", "kv", 0.5, kv_tokens=1000)
    rps.waiting = lambda: 30
    assert target(rps.propose(ask(15.0, 3, None))) == 3


@pytest.mark.parametrize(("running", "n", "want"), [(9, 1, 2), (8, 1, 2), (7, 1, 1), (5, 2, 1), (6, 2, 2), (0, 2, 1), (0, 1, 1), (9, 4, 4)])
def test_threshold_goes_by_its_two_bounds_alone(running: int, n: int, want: int) -> None:
    alarms = ReferenceThreshold("agg", "kv", 0.8, 0.5, kv_tokens=1000, most=4)
    assert target(alarms.propose(ask(1.0, n, [(running, 0)] * n))) == want
    assert f"kv {running / 10:.4g} per replica, up at 0.8, down at 0.5" in alarms.reasons["agg"]


def test_threshold_waits_while_something_moves_or_is_unknown() -> None:
    alarms = ReferenceThreshold("agg", "kv", 0.8, 0.5, kv_tokens=1000)
    assert target(alarms.propose(ask(1.0, None, [(9, 0)]))) is None
    assert target(alarms.propose(ask(1.0, 1, None))) is None
    assert target(alarms.propose(ask(1.0, 2, [(9, 0)]))) is None  # one gave no metric
    assert target(alarms.propose(ask(1.0, 1, [(9, 0)], expected=2))) is None  # one starts
    assert target(alarms.propose(ask(1.0, 0, []))) is None


def test_threshold_flaps_where_two_are_under_and_one_is_over() -> None:
    alarms, n, seen = ReferenceThreshold("agg", "kv", 0.8, 0.5, kv_tokens=1000), 2, []
    for i in range(6):
        n = target(alarms.propose(ask(15.0 * i, n, [(9 // n, 0)] * n))) or 0
        seen.append(n)
    assert seen == [1, 2, 1, 2, 1, 2]
