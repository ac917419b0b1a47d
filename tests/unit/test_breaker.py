"""The breaker: when it opens, how it probes, what it ignores."""

from __future__ import annotations

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import Breaker, BreakerGate
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.param import BuildContext


def fed(outcomes: str, config: BreakerGate | None = None) -> tuple[Breaker, list[str | None]]:
    breaker = Breaker(config)
    kinds = {"s": "success", "f": "provider_failure", "t": "provider_timeout", "x": "unexpected_exception",
             "r": "rate_limited", "l": "local_cancelled"}
    return breaker, [breaker.on_outcome(kinds[c], float(n)) for n, c in enumerate(outcomes)]


@pytest.mark.parametrize(("outcomes", "opens_at"), [
    ("fffffffff", None), ("ffffffffff", 9), ("ftxftxftxf", 9), ("fffffsssss", 9), ("ssssssfffff", None), ("ssssssffffff", 11),
    ("s" * 20 + "f" * 9, None), ("s" * 20 + "f" * 10, 29), ("r" * 50, None), ("l" * 50, None), ("fl" * 9 + "f", 18),
])
def test_LM_12_opens_at_half_of_the_last_twenty(outcomes: str, opens_at: int | None) -> None:
    breaker, said = fed(outcomes)
    assert (said.index("opened") if "opened" in said else None) == opens_at
    assert breaker.closed == (opens_at is None)


def test_LM_12_open_half_open_and_back() -> None:
    breaker, _ = fed("f" * 10)
    assert [breaker.state(t) for t in (9.0, 38.9, 39.0)] == ["open", "open", "half_open"]
    assert (breaker.admissible(38.9), breaker.opens_at(10.0), breaker.admissible(39.0)) == (False, 39.0, True)
    assert breaker.took(39.0) and not breaker.admissible(39.0) and breaker.opens_at(39.0) is None
    assert breaker.on_outcome("success", 40.0) == "closed"
    assert breaker.admissible(40.0) and not breaker.took(40.0)
    assert [breaker.on_outcome("provider_failure", 41.0) for _ in range(10)][-1] == "opened", "the window began anew"
    assert breaker.opens_at(41.0) == 71.0


def test_LM_12_each_failed_probe_doubles_the_pause() -> None:
    breaker, _ = fed("f" * 10)
    pauses, now = [], 9.0
    for _ in range(6):
        at = breaker.opens_at(now)
        assert at is not None
        pauses.append(at - now)
        breaker.took(at)
        assert breaker.on_outcome("provider_timeout", at) == "reopened"
        now = at
    assert pauses == [30, 60, 120, 240, 300, 300]


def test_LM_12_a_probe_that_says_nothing_makes_room_for_the_next() -> None:
    breaker, _ = fed("f" * 10)
    breaker.took(39.0)
    assert breaker.on_outcome("local_cancelled", 41.0) is None
    assert breaker.state(41.0) == "half_open" and breaker.admissible(41.0)


def test_LM_12_in_admission_only_the_probe_speaks_after_it_opened() -> None:
    admission = RequestAdmission(Fixed(64).build(BuildContext()), breaker=Breaker(BreakerGate(min_outcomes=5, window=5)))
    admission.register("r", 64, 0.0)
    leases = [admission.try_acquire("r", 0.0) for _ in range(9)]
    for lease in leases[:5]:
        admission.release(lease, "provider_failure", 1.0)
    denied = admission.try_acquire("r", 2.0)
    assert isinstance(denied, Denial) and (denied.reason, denied.code, denied.retry_after_s) == ("breaker_open", "POOL_UNAVAILABLE", 29.0)
    assert (admission.next_open("r", 2.0), admission.snapshot("r", 2.0).breaker) == (31.0, "open")
    admission.release(leases[5], "success", 3.0)
    assert admission.snapshot("r", 3.0).breaker == "open", "a straggler proves nothing"
    probe = admission.try_acquire("r", 31.0)
    assert isinstance(probe, RequestLease) and isinstance(admission.try_acquire("r", 31.0), Denial)
    assert admission.next_open("r", 31.0) is None, "only the probe's end can open it"
    admission.release(leases[6], "provider_failure", 32.0)
    admission.release(leases[7], "success", 32.0)
    assert admission.snapshot("r", 32.0).breaker == "half_open"
    admission.release(probe, "success", 33.0)
    assert admission.snapshot("r", 33.0).breaker == "closed" and isinstance(admission.try_acquire("r", 33.0), RequestLease)


def test_RA_16_open_trips_the_breaker_of_a_starved_endpoint() -> None:
    admission = RequestAdmission(Aimd(on_starved="open", initial_limit=1).build(BuildContext()), breaker=Breaker())
    admission.register("r", 8, 0.0)
    now, states = 0.0, []
    for _ in range(5):
        admission.release(admission.try_acquire("r", now), "rate_limited", now)
        states.append(admission.snapshot("r", now).breaker)
        now += 2.0
    assert states == ["closed"] * 4 + ["open"]
    assert admission.next_open("r", 8.0) == 38.0
    admission.release(admission.try_acquire("r", 38.0), "rate_limited", 38.0)
    assert admission.next_open("r", 38.0) == 98.0, "still starved: twice as long"
    with pytest.raises(ConfigValueError, match="no breaker to open"):
        RequestAdmission(Aimd(on_starved="open").build(BuildContext())).register("r", 8, 0.0)


@pytest.mark.parametrize("bad", [{"window": 0}, {"min_outcomes": 21}, {"failure_ratio": 0.0}, {"open_s": 0}, {"max_open_s": 29.0}])
def test_GN_4_breaker_config(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(bad))):
        BreakerGate(**bad)  # type: ignore[arg-type]
    assert isinstance(BreakerGate().build(BuildContext()), Breaker)
