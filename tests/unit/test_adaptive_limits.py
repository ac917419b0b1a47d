"""Limits that learn from latency, one rule at a time: steps, bounds, windows, probes, and what they ignore."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.policy.admission.adaptive import AdaptiveLimit
from windtunnel.policy.admission.aimd_netflix import AimdNetflix, AimdNetflixLimit
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.envoy_gradient import EnvoyGradient, EnvoyGradientLimit
from windtunnel.policy.admission.gradient2 import Gradient2, Gradient2Limit
from windtunnel.policy.admission.limit import LimitChange, Sample
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.admission.vegas import Vegas, VegasLimit
from windtunnel.policy.admission.windowed import Window, WindowedLimit
from windtunnel.policy.param import BuildContext

CONFIGS: tuple[Any, ...] = (AimdNetflix(), Vegas(window=None), Gradient2(window=None), EnvoyGradient(), Vegas(), Gradient2())


def sample(rtt_s: float | None = 1.0, in_flight: int = 100, kind: str = "success", epoch: int = 0, retry_after_s: float | None = None) -> Sample:
    return Sample(kind, rtt_s, in_flight, 1, epoch, retry_after_s)


def built(config: Any, effective_max: int = 10_000) -> Any:
    return config.build(BuildContext(rng=Random(3)))(effective_max)


# -- what all of them share -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_LM_1_local_ends_and_unknown_latencies_say_nothing(config: Any) -> None:
    limit = built(config)
    for n in range(50):
        limit.on_sample(sample(1.0, 1000), float(n))
    before = (limit.limit, limit.epoch, limit.blocked_until)
    for n, (kind, rtt_s) in enumerate([("local_cancelled", 9.0), ("local_timeout", 9.0), ("success", None), ("success", 0.0), ("success", -1.0),
                                       ("success", math.nan), ("success", math.inf), ("provider_failure", None)]):
        for _ in range(30):
            assert limit.on_sample(sample(rtt_s, 1000, kind), 100.0 + 2 * n) is None
    assert (limit.limit, limit.epoch, limit.blocked_until) == before


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_RA_2_the_ceiling_of_the_resource_binds(config: Any) -> None:
    limit = built(config, 2)
    assert limit.limit == 2
    for n in range(300):
        limit.on_sample(sample(1.0, 1000, epoch=limit.epoch), 2.0 * n)
        assert limit.limit == 2
    limit.set_max(1, 700.0)
    assert limit.limit == 1
    limit.set_max(50, 700.0)
    assert limit.limit == getattr(config, "min_limit", 1), "a raised ceiling changes no limit that has learned, but for its least"
    for n in range(300):
        limit.on_sample(sample(1.0, 1000, epoch=limit.epoch), 1000.0 + 2 * n)
        assert 1 <= limit.limit <= 50
    assert limit.limit > 1


def test_RA_2_before_the_first_sample_the_initial_limit_comes_back_with_the_ceiling() -> None:
    limit = built(Vegas(initial_limit=30), 64)
    seen = [limit.limit]
    for cap in (4, 16, 40):
        limit.set_max(cap, 0.0)
        seen.append(limit.limit)
    assert seen == [30, 4, 16, 30]


@pytest.mark.parametrize("config", [AimdNetflix(min_limit=1, initial_limit=10), Vegas(initial_limit=10, window=None), Vegas(initial_limit=10)],
                         ids=["netflix", "vegas", "windowed vegas"])
def test_LM_1_a_refusal_that_names_a_time_pauses_and_none_shortens_it(config: Any) -> None:
    limit = built(config)
    assert limit.blocked_until == -math.inf
    for at, wait_s, until in ((0.0, 30.0, 30.0), (1.0, 2.0, 30.0), (2.0, None, 30.0), (3.0, -1.0, 30.0), (4.0, math.inf, 30.0), (5.0, 40.0, 45.0)):
        limit.on_sample(sample(None, 1, "rate_limited", retry_after_s=wait_s), at)
        assert limit.blocked_until == until


def test_GN_4_bad_values_are_refused() -> None:
    bad: list[tuple[Any, dict[str, Any]]] = [
        (AimdNetflix, {"backoff_ratio": 0.4}), (AimdNetflix, {"backoff_ratio": 1.0}), (AimdNetflix, {"initial_limit": 5}),
        (AimdNetflix, {"max_limit": 10}), (AimdNetflix, {"timeout_s": 0.0}), (AimdNetflix, {"min_limit": True}),
        (Vegas, {"initial_limit": 0}), (Vegas, {"max_limit": 10}), (Gradient2, {"smoothing": 0.0}), (Gradient2, {"tolerance": 0.9}),
        (Gradient2, {"initial_limit": 500}), (Gradient2, {"queue_size": -1}), (Gradient2, {"warmup": 0}), (Gradient2, {"long_window": 2.5}),
        (EnvoyGradient, {"buffer": -0.1}), (EnvoyGradient, {"min_limit": 0}), (EnvoyGradient, {"window_s": math.nan}),
        (EnvoyGradient, {"jitter": 1.0}), (EnvoyGradient, {"min_rtt_interval_s": 0.0}), (EnvoyGradient, {"min_rtt_samples": 0}),
        (Window, {"min_window_s": 0.0}), (Window, {"max_window_s": 0.5}), (Window, {"min_samples": 0}), (Window, {"min_rtt_s": -1.0}),
    ]
    for cls, given in bad:
        with pytest.raises(ConfigValueError):
            cls(**given)


# -- AIMD as Netflix has it -----------------------------------------------------------------------------------------------------


def test_LM_3_aimd_netflix_steps() -> None:
    limit = AimdNetflixLimit(AimdNetflix(initial_limit=30), 1000)
    assert limit.on_sample(sample(1.0, 15), 0.0) == LimitChange(30, 31, "increase")
    assert limit.on_sample(sample(1.0, 15), 0.0) is None, "less than half of 31 is used"
    assert limit.on_sample(sample(5.0, 15), 0.0) is None, "just in time"
    assert limit.on_sample(sample(5.01, 1), 0.0) == LimitChange(31, 27, "decrease")
    assert limit.on_sample(sample(None, 1, "provider_timeout"), 0.0) == LimitChange(27, 24, "decrease")
    for _ in range(9):
        limit.on_sample(sample(None, 1, "rate_limited"), 0.0)
    assert (limit.limit, limit.epoch) == (20, 4)
    for _ in range(300):
        limit.on_sample(sample(1.0, 200), 0.0)
    assert limit.limit == 200


# -- Vegas ----------------------------------------------------------------------------------------------------------------------


def vegas(value: int, **more: Any) -> VegasLimit:
    limit = VegasLimit(Vegas(initial_limit=value, probe=False, window=None, **more), 10_000)
    limit.on_sample(sample(1.0), 0.0)
    assert (limit.rtt0_s, limit.limit) == (1.0, value)
    return limit


@pytest.mark.parametrize(("value", "rtt_s", "after"), [
    (20, 1.05, 26),  # queue 1
    (20, 1.1, 21),  # 2
    (20, 1.2, 20),  # 4: within the band
    (20, 1.43, 19),  # 7
    (100, 1.0, 112), (100, 1.02, 112), (100, 1.03, 102), (100, 1.06, 100), (100, 1.13, 100), (100, 1.15, 98),
    (1, 1.0, 7), (1, 3.0, 7), (1000, 1.0, 1000),
])
def test_LM_3_vegas_steps(value: int, rtt_s: float, after: int) -> None:
    limit = vegas(value)
    limit.on_sample(sample(rtt_s, value), 1.0)
    assert limit.limit == after


def test_LM_3_vegas_a_smaller_latency_is_the_new_base_and_an_idle_limit_stays() -> None:
    limit = vegas(20)
    assert limit.on_sample(sample(0.5, 20), 0.0) is None and limit.rtt0_s == 0.5
    assert limit.on_sample(sample(0.5, 9), 0.0) is None, "2 x 9 < 20"
    assert limit.on_sample(sample(0.5, 10), 0.0) == LimitChange(20, 26, "increase")


def test_LM_3_vegas_drops_come_first() -> None:
    limit = vegas(100)
    assert limit.on_sample(sample(0.1, 0, "provider_timeout"), 0.0) == LimitChange(100, 98, "decrease")
    assert limit.rtt0_s == 1.0, "a drop is no base"
    for _ in range(500):
        limit.on_sample(sample(None, 0, "rate_limited"), 0.0)
    assert limit.limit == 1


def test_LM_3_vegas_probes_after_its_share_of_samples() -> None:
    limit = VegasLimit(Vegas(initial_limit=4, window=None), 4, Random(1))
    due = 30 * 4 * (0.5 + 0.5 * Random(1).random())
    n = 0
    while limit.rtt0_s != 2.0:
        limit.on_sample(sample(1.0 if n == 0 else 2.0, 1), 0.0)
        n += 1
    assert n == math.ceil(due) and 60 <= n <= 120
    again = VegasLimit(Vegas(initial_limit=4, window=None), 4, Random(1))
    for _ in range(n - 1):
        again.on_sample(sample(1.0, 1), 0.0)
    again.on_sample(sample(2.0, 1, "rate_limited"), 0.0)
    assert (again.rtt0_s, again.limit) == (1.0, 3), "the drop is heard on a probe sample, too"
    never = VegasLimit(Vegas(initial_limit=4, probe=False, window=None), 4, Random(1))
    for n in range(1000):
        never.on_sample(sample(1.0 if n == 0 else 2.0, 1), 0.0)
    assert never.rtt0_s == 1.0


# -- Gradient2 ------------------------------------------------------------------------------------------------------------------


def test_LM_3_gradient2_steps() -> None:
    limit = Gradient2Limit(Gradient2(initial_limit=100, window=None), 10_000)
    for _ in range(10):
        limit.on_sample(sample(1.0, 0), 0.0)
    assert (limit.long_s, limit.value) == (1.0, 100.0)
    limit.on_sample(sample(1.0, 49), 0.0)
    assert limit.value == 100.0, "less than half is used"
    limit.on_sample(sample(1.0, 50), 0.0)
    assert limit.value == pytest.approx(0.8 * 100 + 0.2 * 104)
    limit.on_sample(sample(1.6, 101), 0.0)
    assert limit.gradient == pytest.approx(1.5 * (1.0 + 2 / 601 * 0.6) / 1.6)
    limit.on_sample(sample(100.0, 101), 0.0)
    assert limit.gradient == 0.5
    drop = limit.value
    limit.on_sample(sample(None, 101, "rate_limited"), 0.0)
    assert limit.value == drop, "drops say nothing to it"


def test_LM_3_gradient2_a_long_mean_of_more_than_twice_the_last_decays_for_the_next_sample() -> None:
    limit = Gradient2Limit(Gradient2(initial_limit=100, window=None), 10_000)
    for _ in range(10):
        limit.on_sample(sample(1.0, 0), 0.0)
    limit.on_sample(sample(0.4, 0), 0.0)
    old = 1.0 - 2.0 / 601 * 0.6
    assert limit.long_s == pytest.approx(0.95 * old)


# -- Envoy ----------------------------------------------------------------------------------------------------------------------


def test_LM_3_envoy_measures_the_minimum_with_the_limit_pinned() -> None:
    config = EnvoyGradient(min_rtt_samples=5)
    limit = EnvoyGradientLimit(config, 1000, Random(5))
    assert (limit.limit, limit.measuring) == (3, True)
    for rtt_s in (3.0, 1.0, 2.0, 9.0, 0.5):
        limit.on_sample(sample(rtt_s), 0.0)
    assert (limit.min_rtt_s, limit.measuring) == (2.0, False)
    now, steps = 0.0, []
    for _ in range(6):
        now += 0.2
        limit.on_sample(sample(2.0), now)
        steps.append(limit.value)
    assert steps[1] == pytest.approx(1.25 * 3 + math.sqrt(3)), "one step per window that is over"
    due = 60.0 * (1 + 0.15 * (2 * Random(5).random() - 1))
    high, epoch = limit.limit, limit.epoch
    limit.on_sample(sample(2.0), due - 1e-6)
    assert limit.limit >= high
    before = limit.value
    change = limit.on_sample(sample(2.0), due + 1e-6)
    assert change is not None and (change.after, limit.measuring, limit.epoch) == (3, True, epoch + 1)
    for _ in range(20):
        limit.on_sample(sample(0.1, epoch=epoch), due + 1)
    assert limit.measuring, "answers to what was granted before do not count"
    for _ in range(5):
        limit.on_sample(sample(4.0, epoch=epoch + 1), due + 2)
    assert (limit.min_rtt_s, limit.value) == (4.0, before)


def test_LM_3_envoy_measures_again_after_five_windows_at_the_minimum() -> None:
    limit = EnvoyGradientLimit(EnvoyGradient(min_rtt_samples=2), 1000)
    for _ in range(2):
        limit.on_sample(sample(1.0), 0.0)
    now, windows = 0.0, 0
    while not limit.measuring:
        now += 0.2
        limit.on_sample(sample(1e6), now)
        windows += 1
    assert windows == 6, "the first sample opens a window, the next five close one each"
    assert limit.epoch == 1


# -- windows --------------------------------------------------------------------------------------------------------------------


class Heard(AdaptiveLimit):
    """Keeps what it was told; no more than that."""

    def __init__(self) -> None:
        super().__init__(10, 1, 100, 100)
        self.samples: list[Sample] = []

    def on_sample(self, sample: Sample, now: float) -> LimitChange | None:
        self.samples.append(sample)
        return self.move(self.value + 1)


def test_LM_3_a_window_gives_one_mean() -> None:
    inner = Heard()
    limit = WindowedLimit(inner, Window(min_samples=3))
    for now, rtt_s, in_flight in ((0.0, 1.0, 4), (0.5, 2.0, 9), (0.9, 3.0, 2)):
        assert limit.on_sample(sample(rtt_s, in_flight), now) is None
    change = limit.on_sample(sample(6.0, 1), 1.0)
    assert change == LimitChange(10, 11, "increase") and limit.limit == 11
    assert [(s.kind, s.rtt_s, s.in_flight) for s in inner.samples] == [("success", 3.0, 9)]


def test_LM_3_too_few_samples_keep_the_window_open() -> None:
    inner = Heard()
    limit = WindowedLimit(inner, Window(min_samples=3))
    for now in (0.0, 50.0):
        assert limit.on_sample(sample(2.0), now) is None
    limit.on_sample(sample(5.0), 100.0)
    assert [s.rtt_s for s in inner.samples] == [3.0]


def test_LM_3_any_drop_marks_the_window_and_counts_as_a_sample() -> None:
    inner = Heard()
    limit = WindowedLimit(inner, Window(min_samples=3))
    limit.on_sample(sample(1.0), 0.0)
    limit.on_sample(sample(None, 1, "provider_timeout"), 0.1)
    limit.on_sample(sample(3.0), 2.0)
    for n in range(3):
        limit.on_sample(sample(None, 1, "rate_limited"), 2.0 + 2 * n)
    assert [(s.kind, s.rtt_s) for s in inner.samples] == [("rate_limited", 2.0), ("rate_limited", None)]


def test_LM_3_a_window_lasts_twice_its_smallest_latency_within_its_bounds() -> None:
    inner = Heard()
    limit = WindowedLimit(inner, Window(min_window_s=0.5, max_window_s=4.0, min_samples=1))
    ends = []
    for rtt_s in (1.0, 0.01, 100.0):
        start, now = (ends[-1] if ends else 0.0), (ends[-1] if ends else 0.0)
        before = len(inner.samples)
        while len(inner.samples) == before:
            limit.on_sample(sample(rtt_s), now)
            now += 0.25
        ends.append(now - 0.25)
        assert ends[-1] - start == {1.0: 2.0, 0.01: 0.5, 100.0: 4.0}[rtt_s]


def test_LM_3_latencies_below_the_smallest_are_no_samples() -> None:
    inner = Heard()
    limit = WindowedLimit(inner, Window(min_samples=1))
    for now in range(9):
        limit.on_sample(sample(1e-5), 2.0 * now)
    assert inner.samples == []


# -- in the admission -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_RA_4_every_limit_serves_the_admission(config: Any) -> None:
    a = RequestAdmission(config.build(BuildContext(rng=Random(1))), wants=frozenset({"request"}))
    a.register("r", 6, 0.0)
    now = 0.0
    for n in range(400):
        now += 0.05
        lease = a.try_acquire("r", now)
        if isinstance(lease, Denial):
            assert lease.reason in ("cooldown", "no_capacity")
            continue
        a.release(lease, ("success", "rate_limited", "provider_timeout")[n % 5 % 3], now, rtt_s=0.1 + n % 7 / 50)
        snapshot = a.snapshot("r", now)
        assert 1 <= snapshot.limit <= 6 and snapshot.in_flight == 0
    assert {note.kind for note in a.drain_notes()} >= {"request_lease_acquired", "request_lease_released"}
