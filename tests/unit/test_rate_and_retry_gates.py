"""Rates with bursts, retry budgets, the client throttle and bands: the numbers of their rules, and their edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.events import Request
from windtunnel.policy.admission import gcra as gcra_module
from windtunnel.policy.admission.bands import Bands, BandsGate
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.gates import Gate, Used
from windtunnel.policy.admission.gcra import Gcra, GcraGate, RateGate
from windtunnel.policy.admission.retry_budget import RetryBudget, RetryBudgetGate
from windtunnel.policy.admission.throttle import Throttle, ThrottleGate
from windtunnel.policy.param import BuildContext


def request(n: int = 1, tenant: str = "a", *, tokens: int = 10, most: int = 10, attempt: int = 1, priority: int = 0) -> Request:
    return Request(f"r{n}", tenant, "m", priority, 0.0, tokens, most, attempt=attempt)


def admit(gate: Gate, r: Request, now: float) -> Denial | None:
    denial = gate.refusal(r, now)
    if denial is None:
        gate.take(r, now)
    return denial


# -- GCRA -----------------------------------------------------------------------------------------------------------------------


def test_OR_7_gcra() -> None:
    gate = GcraGate(rate_per_s=10.0, burst=5.0).build(BuildContext())
    assert [admit(gate, request(), 0.0) for _ in range(5)] == [None] * 5
    denial = admit(gate, request(), 0.0)
    assert denial is not None
    assert (denial.reason, denial.retriable, denial.retry_after_s) == ("rate_limit", True, pytest.approx(0.1))
    assert denial.available_at == pytest.approx(0.1)
    saturated, admitted, now = GcraGate(rate_per_s=10.0, burst=5.0).build(BuildContext()), 0, 0.0
    while now < 60.0 - 1e-6:
        denial = admit(saturated, request(), now)
        if denial is None:
            admitted += 1
        else:
            assert denial.retry_after_s is not None
            now += denial.retry_after_s
    assert admitted == 604


def test_LM_6_admissions_in_a_window_stay_below_burst_plus_rate() -> None:
    bucket, rng, times, now = Gcra(7.0, 3.0), Random(4), list[float](), 0.0
    for _ in range(20_000):
        now += rng.expovariate(20.0)
        if bucket.wait_s(1.0, now) == 0.0:
            bucket.take(1.0, now)
            times.append(now)
    for i in range(0, len(times) - 60, 37):
        for j in (i + 1, i + 5, i + 60):
            assert j - i + 1 <= 3 + math.floor((times[j] - times[i]) * 7.0 + 1e-6)


def test_LM_6_more_than_the_burst_never_conforms() -> None:
    gate = RateGate(GcraGate(rate_per_s=100.0, burst=50.0, unit="tokens"))
    denial = admit(gate, request(tokens=41, most=10), 0.0)
    assert denial is not None and (denial.reason, denial.retriable, denial.retry_after_s) == ("exceeds_burst", False, None)
    assert admit(gate, request(tokens=40, most=10), 0.0) is None


def test_LM_6_tokens_are_settled_at_the_end() -> None:
    gate = RateGate(GcraGate(rate_per_s=10.0, burst=100.0, unit="tokens"))
    first, second = request(1, tokens=40, most=60), request(2, tokens=10, most=10)
    assert admit(gate, first, 0.0) is None
    denied = admit(gate, second, 0.0)
    assert denied is not None and denied.retry_after_s == pytest.approx(2.0)
    gate.settle(first, Used("success", 0.0, 40, 30), 0.0)
    assert admit(gate, second, 0.0) is None
    gate.give_back(second, 0.0)
    wait = gate._bucket(second, 0.0).wait_s(100.0, 0.0)
    assert wait == pytest.approx(7.0), "70 tokens are used"
    gate.settle(request(3, tokens=1, most=1), Used("success", 0.0, 1, 101), 0.0)
    assert gate._bucket(second, 0.0).wait_s(100.0, 0.0) == pytest.approx(17.0), "more used than reserved is charged, too"


def test_LM_6_never_dispatched_tokens_come_back_and_unknown_ones_do_not() -> None:
    gate = RateGate(GcraGate(rate_per_s=10.0, burst=100.0, unit="tokens"))
    for used, left_s in ((Used("", 3.0), 0.0), (Used("provider_failure", 0.0), 10.0)):
        r = request(tokens=50, most=50)
        assert admit(gate, r, 0.0) is None
        gate.settle(r, used, 0.0)
        assert gate._bucket(r, 0.0).wait_s(100.0, 0.0) == pytest.approx(left_s)


def test_LM_6_a_bucket_per_tenant_and_forgotten_when_full_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcra_module, "KEYS_KEPT", 3)
    gate = RateGate(GcraGate(rate_per_s=1.0, burst=1.0, per="tenant"))
    for n in range(3):
        assert admit(gate, request(n, f"t{n}"), 0.0) is None
        assert admit(gate, request(n, f"t{n}"), 0.0) is not None
    admit(gate, request(9, "t9"), 0.5)
    assert admit(gate, request(0, "t0"), 0.5) is not None, "still owing, so not forgotten"
    for n in range(20, 40):
        admit(gate, request(n, f"t{n}"), 100.0 + n)
    assert len(gate._buckets) <= 5
    everybody = RateGate(GcraGate(rate_per_s=1.0, burst=1.0))
    assert admit(everybody, request(1, "x"), 0.0) is None and admit(everybody, request(2, "y"), 0.0) is not None


# -- retry budget ---------------------------------------------------------------------------------------------------------------


def test_LM_9_retries_are_a_share_of_originals_in_the_window() -> None:
    budget = RetryBudget()
    assert not budget.may_retry(0.0), "no traffic, no retries"
    for n in range(30):
        assert admit(budget, request(n), 0.1 * n) is None
    assert [budget.may_retry(3.0) for _ in range(4)] == [True, True, True, False]
    denied = admit(budget, request(99, attempt=2), 3.0)
    assert denied is not None and (denied.reason, denied.retriable) == ("retry_budget", False)
    assert not budget.allows(10.0), "the originals of 0.0 leave at 10.0, the retries stay until 13.0"
    assert [budget.allows(t) for t in (12.9, 13.0)] == [False, False]
    for _ in range(10):
        budget.original(14.0)
    assert budget.may_retry(14.0) and not budget.may_retry(14.0)


def test_LM_9_a_minimum_without_traffic() -> None:
    budget = RetryBudget(RetryBudgetGate(ratio=0.0, min_per_s=0.2))
    assert [budget.may_retry(0.0) for _ in range(3)] == [True, True, False]
    assert budget.may_retry(10.0)


def test_LM_9_what_is_given_back_can_be_used() -> None:
    budget, retry = RetryBudget(RetryBudgetGate(ratio=0.0, min_per_s=0.1)), request(attempt=3)
    assert admit(budget, retry, 0.0) is None
    assert admit(budget, retry, 0.0) is not None
    budget.give_back(retry, 0.0)
    assert admit(budget, retry, 0.0) is None


# -- throttle -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("good", "chance"), [(100, 0.0), (95, 0.0), (90, 0.05211), (50, 0.46899), (0, 0.99010)])
def test_LM_11_the_chance_of_a_refusal(good: int, chance: float) -> None:
    throttle = Throttle()
    for n in range(100):
        throttle.saw(n < good, 1.0)
    assert throttle.chance(1.0) == pytest.approx(chance, abs=1e-5)
    assert throttle.chance(31.0) == 0.0, "the window is 30 s"


def test_LM_11_aggression_and_cap() -> None:
    for config, expected in ((ThrottleGate(aggression=2.0), math.sqrt(0.4689943)), (ThrottleGate(aggression=0.5), 0.4689943**2)):
        throttle = Throttle(config)
        for n in range(100):
            throttle.saw(n < 50, 0.0)
        assert throttle.chance(0.0) == pytest.approx(expected, abs=1e-6)
    rng = Random(8)
    throttle, refused = Throttle(ThrottleGate(), rng), 0
    for _ in range(4000):
        denial = throttle.refusal(request(), 0.0)
        refused += denial is not None
        if denial is None:
            throttle.settle(request(), Used("provider_failure", 0.0), 0.0)
    assert refused / 4000 == pytest.approx(0.8, abs=0.03), "one in five still probes"


def test_LM_11_requests_on_their_way_and_ends_of_the_clients_are_no_failures() -> None:
    throttle = Throttle(ThrottleGate(), Random(1))
    for n in range(1000):
        assert admit(throttle, request(n), 0.0) is None, "nothing has ended yet"
    for n in range(1000):
        throttle.settle(request(n), Used(("local_cancelled", "success", "")[n % 3], 0.0), 1.0)
    assert throttle.chance(1.0) == 0.0
    blind = Throttle()
    for _ in range(100):
        blind.saw(False, 0.0)
    assert blind.refusal(request(), 0.0) is None, "without a generator it cannot draw"


# -- bands ----------------------------------------------------------------------------------------------------------------------


def bands_of_ten() -> Bands:
    return Bands(BandsGate(window_s=1.0, user_levels=1))


def window(bands: Bands, start_s: float, delay_s: float | None) -> list[int]:
    """One window with ten arrivals on each of ten levels; the levels that passed."""
    passed = set()
    for n in range(100):
        r = request(n, priority=n % 10)
        if bands.refusal(r, start_s + n * 0.005) is None:
            passed.add(n % 10)
    if delay_s is not None:
        bands.waited(delay_s)
    return sorted(passed)


def test_LM_10_one_overloaded_window_cuts_the_last_level_and_five_calm_ones_bring_it_back() -> None:
    bands = bands_of_ten()
    assert window(bands, 0.0, 0.05) == list(range(10))
    assert window(bands, 1.0, 0.0) == list(range(9))
    assert bands.fraction == pytest.approx(0.95)
    for n in range(2, 6):
        assert window(bands, float(n), 0.0) == list(range(9)), "0.96 to 0.99"
    assert window(bands, 6.0, 0.0) == list(range(10)) and bands.fraction == 1.0


def test_LM_10_the_most_important_level_always_passes() -> None:
    bands = bands_of_ten()
    for n in range(200):
        passed = window(bands, float(n), 10.0)
        assert 0 in passed
    assert passed == [0] and bands.fraction < 0.001
    denial = bands.refusal(request(priority=1), 200.0)
    assert denial is not None and (denial.reason, denial.retriable) == ("band", True)


def test_LM_10_silence_is_calm_and_a_window_without_dispatches_is_not() -> None:
    bands = bands_of_ten()
    window(bands, 0.0, 0.05)
    window(bands, 1.0, None)
    window(bands, 2.0, 0.0)
    assert bands.fraction == pytest.approx(0.95), "nothing was dispatched in the second window: unknown"
    window(bands, 5.0, None)
    assert bands.fraction == pytest.approx(0.98), "one calm window and two silent ones"


def test_LM_10_what_waits_in_vain_counts_as_delay() -> None:
    bands = bands_of_ten()
    window(bands, 0.0, None)
    bands.settle(request(), Used("", 30.0), 0.9)
    bands.settle(request(), Used("success", 30.0), 0.9)
    window(bands, 1.0, None)
    assert bands.fraction == pytest.approx(0.95)


def test_LM_10_a_full_window_ends_early() -> None:
    bands = Bands(BandsGate(window_s=1e6, window_requests=10, user_levels=1))
    for n in range(10):
        bands.refusal(request(n, priority=n % 2), 0.0)
    bands.waited(1.0)
    assert bands.cut == math.inf
    bands.refusal(request(10), 0.0)
    assert (bands.cut, bands.fraction) == (0, pytest.approx(0.95))


def test_LM_10_users_are_drawn_anew_every_hour_and_by_session() -> None:
    bands, again = (Bands(BandsGate(user_levels=128), Random(2)) for _ in range(2))
    at = [[b.level(request(n, f"tenant-{n}"), t) for n in range(64)] for b in (bands, again) for t in (0.0, 3599.0, 3600.0)]
    assert at[0] == at[1] != at[2] and at[:3] == at[3:]
    assert all(0 <= level < 128 for level in at[0]) and len(set(at[0])) > 30
    assert 128 <= bands.level(request(1, "é\ud800", priority=1), 0.0) < 256, "any text is a tenant"


BAD: list[tuple[Callable[..., object], dict[str, object]]] = [
    (GcraGate, {"rate_per_s": 0.0}), (GcraGate, {"burst": math.nan}), (GcraGate, {"unit": "bytes"}), (GcraGate, {"per": "session"}),
    (RetryBudgetGate, {"ratio": -0.1}), (RetryBudgetGate, {"window_s": 0.0}), (RetryBudgetGate, {"min_per_s": math.inf}),
    (ThrottleGate, {"healthy": 0.0}), (ThrottleGate, {"aggression": 0.0}), (ThrottleGate, {"cap": 1.1}), (ThrottleGate, {"window_s": True}),
    (BandsGate, {"overload_s": 0.0}), (BandsGate, {"window_requests": 0}), (BandsGate, {"user_levels": 0.5}), (BandsGate, {"window_s": -1}),
]


@pytest.mark.parametrize(("make", "given"), BAD)
def test_GN_4_bad_values_are_refused(make: Callable[..., object], given: dict[str, object]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(given))):
        make(**given)
