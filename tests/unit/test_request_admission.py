"""Leases: granted while admissible, given back once; denials in order; snapshots and notes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from windtunnel.errors import ConfigValueError, PolicyClockError
from windtunnel.policy.admission import request as request_module
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import Breaker, BreakerGate
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.limit import Fixed, Limit, Unlimited
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.param import BuildContext

CONTEXT = BuildContext()


def admission(limit: Fixed | Aimd | Unlimited | None = None, cap: int = 2, **more: object) -> RequestAdmission:
    made = RequestAdmission((limit or Aimd()).build(CONTEXT), **more)  # type: ignore[arg-type]
    made.register("r", cap, 0.0)
    return made


def lease_of(a: RequestAdmission, now: float = 0.0) -> RequestLease:
    lease = a.try_acquire("r", now)
    assert isinstance(lease, RequestLease)
    return lease


def reason_of(a: RequestAdmission, now: float = 0.0, resource: str = "r") -> str:
    denied = a.try_acquire(resource, now)
    assert isinstance(denied, Denial) and denied.stage == "request" and denied.resource == resource
    assert not a.admissible(resource, now)
    return str(denied.reason)


def test_GN_2_lease_ids_are_counted() -> None:
    a = admission(cap=8, generation="g7")
    a.register("s", 8, 0.0)
    leases = [lease_of(a), a.try_acquire("s", 0.5), lease_of(a, 0.5)]
    assert [lease.lease_id for lease in leases if isinstance(lease, RequestLease)] == ["g7-1", "g7-2", "g7-3"]
    assert leases[0] == RequestLease("g7-1", "r", 0.0, 8, 8, 0, "g7")


def test_RA_4_denial_order() -> None:
    a = admission(Aimd(cooldown_s=5.0), breaker=Breaker(BreakerGate(window=4, min_outcomes=1)))
    first, second = lease_of(a), lease_of(a)
    assert reason_of(a) == "no_capacity"
    a.release(first, "provider_failure", 1.0)
    assert reason_of(a, 1.0) == "breaker_open"
    a.release(second, "rate_limited", 2.0)
    assert reason_of(a, 2.0) == "cooldown", "before the breaker, which is open too"
    assert a.breaker_denial("r", 2.0).reason == "breaker_open"
    assert reason_of(a, 2.0, "unknown") == "hard_policy_denial"
    a.shutdown(2.0)
    assert [reason_of(a, 2.0), reason_of(a, 2.0, "unknown")] == ["shutdown", "shutdown"]


def test_RA_4_the_ceiling_binds_whatever_the_limit_says() -> None:
    for limit in (Fixed(64), Unlimited(), Aimd(initial_limit=64)):
        a = admission(limit, cap=2)
        lease_of(a), lease_of(a)
        assert reason_of(a) == "no_capacity"
        assert a.snapshot("r", 0.0).limit == 2


def test_DN_1_no_capacity_says_when_the_next_completion_is_due() -> None:
    a, now = admission(cap=1), 0.0
    assert a.completion_rate("r", 0.0) is None
    for _ in range(200):
        a.release(lease_of(a, now), "success", now)
        now += 0.5
    lease_of(a, now)
    denied = a.try_acquire("r", now)
    assert isinstance(denied, Denial) and denied.retry_after_s == pytest.approx(0.5, rel=0.1)
    assert a.completion_rate("r", now) == pytest.approx(2.0, rel=0.1)


def test_RA_2_caps() -> None:
    a = admission(cap=8)
    leases = [lease_of(a) for _ in range(6)]
    a.set_cap("r", 4, 1.0)
    assert (a.snapshot("r", 1.0).limit, a.in_flight("r"), reason_of(a, 1.0)) == (4, 6, "no_capacity")
    for lease in leases[:3]:
        a.release(lease, "success", 1.0)
    assert a.admissible("r", 1.0)
    a.register("r", 5, 2.0)
    assert a.snapshot("r", 2.0).effective_max == 5
    for bad in (0, -1, True, 1.5):
        with pytest.raises(ConfigValueError, match="cap"):
            a.set_cap("r", bad, 2.0)  # type: ignore[arg-type]


def test_RA_11_release_reasons() -> None:
    a = admission()
    lease = lease_of(a)
    stranger = RequestLease("g0-99", "r", 0.0, 2, 2, 0, "g0")
    assert a.release(replace(lease, resource="s"), "success", 0.0) == "stale_lease"
    assert a.release(replace(lease, generation="g1"), "success", 0.0) == "wrong_controller_generation"
    assert a.release(stranger, "success", 0.0) == "unknown_lease"
    assert a.in_flight("r") == 1
    assert a.release(replace(lease), "success", 0.0) == "released", "equal is the same"
    assert a.release(lease, "success", 0.0) == "duplicate"
    assert a.in_flight("r") == 0
    assert a.snapshot("r", 0.0).release_diagnostics == {
        "stale_lease": 1, "wrong_controller_generation": 1, "unknown_lease": 1, "duplicate": 1,
    }


def test_RA_11_the_last_8192_released_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "RELEASED_KEPT", 4)
    a = admission()
    leases = []
    for _ in range(11):
        leases.append(lease_of(a))
        a.release(leases[-1], "success", 0.0)
    said = [a.release(lease, "success", 0.0) for lease in leases]
    assert said == ["unknown_lease"] * 7 + ["duplicate"] * 4
    assert len(a._released) == 4


@pytest.mark.parametrize("outcome", [
    "success", "rate_limited", "provider_failure", "provider_timeout", "local_cancelled", "local_timeout", "unexpected_exception",
])
def test_RA_11_every_outcome_returns_the_capacity(outcome: str) -> None:
    a = admission()
    assert a.release(lease_of(a), outcome, 1.0) == "released"
    assert (a.in_flight("r"), a.snapshot("r", 1.0).last_outcome) == (0, outcome)


def test_RA_9_next_open_names_the_time_that_alone_opens_it() -> None:
    a = admission(Aimd(startup_ramp_s=8.0), cap=5)
    assert a.next_open("r", 0.0) is None, "it is open"
    first = lease_of(a)
    assert (a.admissible("r", 1.9), a.next_open("r", 0.0)) == (False, 2.0)
    second = lease_of(a, 2.0)
    a.release(first, "rate_limited", 3.0)
    assert a.next_open("r", 3.0) is None, "one runs and the limit is 1: no time alone opens that"
    a.release(second, "local_cancelled", 3.0)
    assert (a.next_open("r", 3.0), a.admissible("r", 4.99), a.admissible("r", 5.0)) == (5.0, False, True)
    b = admission(cap=1)
    lease_of(b)
    assert b.next_open("r", 0.0) is None


def test_RA_17_snapshots_are_frozen_and_change_nothing() -> None:
    a = admission(Aimd(startup_ramp_s=8.0), cap=8)
    first = a.snapshot("r", 0.0)
    assert (first.limit, first.effective_max, first.in_flight, first.blocked_until, first.cooldown_remaining_s) == (1, 8, 0, None, 0.0)
    assert a.snapshot("r", 100.0).limit == 1, "looking does not start the ramp"
    lease = lease_of(a, 100.0)
    assert a.snapshot("r", 104.0).limit == 4
    a.release(lease, "rate_limited", 104.0, retry_after_s=6.0)
    last = a.snapshot("r", 105.0)
    assert (last.limit, last.ceiling, last.cooldown_remaining_s, last.consecutive_rate_limits, last.starved) == (3, 4, 5.0, 1, False)
    assert first.sequence < last.sequence == a.snapshot("r", 106.0).sequence
    with pytest.raises(AttributeError):
        last.limit = 9  # type: ignore[misc]


def test_GN_1_time_must_not_run_backwards() -> None:
    a = admission()
    lease = lease_of(a, 5.0)
    for call in (lambda: a.try_acquire("r", 4.0), lambda: a.release(lease, "success", 4.0), lambda: a.set_cap("r", 3, 4.0)):
        with pytest.raises(PolicyClockError, match=r"now=4\.0 after 5\.0"):
            call()
    assert a.release(lease, "success", 5.0) == "released"


def test_GN_8_notes_are_built_only_when_wanted() -> None:
    quiet, loud = admission(cap=4), admission(Aimd(successes_until_increase=1), cap=4, wants=frozenset({"request"}))
    for a in (quiet, loud):
        a.release(lease_of(a), "rate_limited", 0.0)
        a.try_acquire("r", 1.0)
        a.release(lease_of(a, 3.0), "success", 3.0)
        a.release(RequestLease("g0-9", "r", 0.0, 1, 1, 0, "g0"), "success", 3.0)
    notes = loud.drain_notes()
    assert quiet.drain_notes() == [] and loud.drain_notes() == []
    assert [n.kind for n in notes] == [
        "request_resource_registered", "request_lease_acquired", "request_rate_limited", "request_limit_decreased", "request_lease_released",
        "request_acquire_denied", "request_lease_acquired", "request_limit_increased", "request_fully_recovered", "request_lease_released",
        "request_release_diagnostic",
    ]
    assert [n.sequence for n in notes] == list(range(1, 12)) and {n.stream for n in notes} == {"request"}
    assert (notes[3].data or {})["diagnostics"] == {"before": 4, "after": 3} and notes[5].reason == "cooldown"


def test_a_limit_of_ones_own_needs_only_the_protocol() -> None:
    class Two:
        limit, blocked_until, epoch, needs = 2, float("-inf"), 0, frozenset[str]()

        def on_sample(self, sample: object, now: float) -> None:
            self.limit = 1

        def set_max(self, effective_max: int, now: float) -> None:
            pass

    def factory(effective_max: int) -> Limit:
        return Two()

    a = RequestAdmission(factory)
    a.register("r", 8, 0.0)
    first, _ = lease_of(a), lease_of(a)
    a.release(first, "success", 0.0)
    assert (reason_of(a), a.next_open("r", 0.0), a.snapshot("r", 0.0).limit) == ("no_capacity", None, 1)
