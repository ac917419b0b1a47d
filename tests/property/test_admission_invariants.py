"""Request admission under random interleavings: conservation of leases, release exactly once, bounds of the limit, determinism."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import Breaker, BreakerGate
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.param import BuildContext

OUTCOMES = ("success", "rate_limited", "provider_failure", "provider_timeout", "local_cancelled", "local_timeout", "unexpected_exception")
RESOURCES = ("r", "s")
CONFIGS = st.builds(
    Aimd, initial_limit=st.none() | st.integers(1, 12), cooldown_s=st.sampled_from([0.5, 2.0]), decrease_factor=st.sampled_from([0.5, 0.75, 0.9]),
    increase_step=st.integers(1, 2), successes_until_increase=st.integers(1, 3), startup_ramp_s=st.sampled_from([0.0, 0.0, 5.0]),
    burst_rule=st.sampled_from(["limit", "epoch"]), cooldown_scale=st.none() | st.just(0.5), on_starved=st.sampled_from(["keep", "pace", "open"]),
)
GATES = BreakerGate(window=4, min_outcomes=3, open_s=3.0, max_open_s=6.0)


class AdmissionMachine(RuleBasedStateMachine):
    """INV-1, INV-3, INV-6, INV-7 (the part of time alone)."""

    @initialize(config=CONFIGS, cap=st.integers(1, 10))
    def begin(self, config: Aimd, cap: int) -> None:
        self.config, self.now, self.acquired, self.released = config, 0.0, 0, 0
        self.a = RequestAdmission(config.build(BuildContext()), breaker=Breaker(GATES), wants=frozenset({"request"}))
        self.held: list[RequestLease] = []
        self.past: list[RequestLease] = []
        self.in_flight = dict.fromkeys(RESOURCES, 0)
        self.blocked = dict.fromkeys(RESOURCES, float("-inf"))
        self.cuts: dict[tuple[str, int], int] = {}
        for resource in RESOURCES:
            self.a.register(resource, cap, 0.0)

    @rule(by=st.sampled_from([0.0, 0.1, 1.0, 7.0]))
    def wait(self, by: float) -> None:
        self.now += by

    @rule(resource=st.sampled_from(RESOURCES))
    def acquire(self, resource: str) -> None:
        admissible = self.a.admissible(resource, self.now)
        got = self.a.try_acquire(resource, self.now)
        assert isinstance(got, RequestLease) == admissible
        if isinstance(got, RequestLease):
            self.acquired += 1
            assert got.lease_id == f"g0-{self.acquired}"
            self.held.append(got)
            self.in_flight[resource] += 1
        else:
            assert got.retry_after_s is None or got.retry_after_s >= 0.0

    @precondition(lambda self: bool(self.held))
    @rule(n=st.integers(0, 99), outcome=st.sampled_from(OUTCOMES), retry_after_s=st.none() | st.sampled_from([0.0, 0.2, 4.0]))
    def release(self, n: int, outcome: str, retry_after_s: float | None) -> None:
        lease = self.held.pop(n % len(self.held))
        assert self.a.release(lease, outcome, self.now, retry_after_s=retry_after_s, rtt_s=0.3) == "released"
        self.released += 1
        self.in_flight[lease.resource] -= 1
        self.past.append(lease)
        for note in self.a.drain_notes():
            if note.kind == "request_limit_decreased":
                key = (lease.resource, lease.epoch)
                self.cuts[key] = self.cuts.get(key, 0) + 1

    @precondition(lambda self: bool(self.held or self.past))
    @rule(n=st.integers(0, 99), how=st.sampled_from(["duplicate", "stale", "generation", "unknown"]), outcome=st.sampled_from(OUTCOMES))
    def release_wrongly(self, n: int, how: str, outcome: str) -> None:
        pool = self.held if how == "stale" else self.past if how == "duplicate" else self.held + self.past
        if not pool:
            return
        lease = pool[n % len(pool)]
        forged, expected = {
            "duplicate": (lease, "duplicate"), "stale": (replace(lease, epoch=lease.epoch + 1), "stale_lease"),
            "generation": (replace(lease, generation="g1"), "wrong_controller_generation"),
            "unknown": (replace(lease, lease_id="g0-0"), "unknown_lease"),
        }[how]
        before = [replace(self.a.snapshot(r, self.now), release_diagnostics=None) for r in RESOURCES]
        assert self.a.release(forged, outcome, self.now) == expected
        assert [replace(self.a.snapshot(r, self.now), release_diagnostics=None) for r in RESOURCES] == before

    @rule(resource=st.sampled_from(RESOURCES), cap=st.integers(1, 12))
    def set_cap(self, resource: str, cap: int) -> None:
        self.a.set_cap(resource, cap, self.now)

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "a"):
            return
        assert self.acquired == self.released + len(self.held)
        for resource in RESOURCES:
            s = self.a.snapshot(resource, self.now)
            assert s.in_flight == self.in_flight[resource] >= 0
            assert 1 <= s.limit <= s.effective_max
            blocked = float("-inf") if s.blocked_until is None else s.blocked_until
            assert blocked >= self.blocked[resource]
            self.blocked[resource] = blocked
            assert s == self.a.snapshot(resource, self.now)
            self.time_alone(resource)
        if self.config.burst_rule == "epoch":
            assert all(n == 1 for n in self.cuts.values())

    def time_alone(self, resource: str) -> None:
        """A wake is named iff one would help, and nothing opens before it."""
        if self.a.admissible(resource, self.now):
            return
        at = self.a.next_open(resource, self.now)
        if at is None:
            assert not self.a.admissible(resource, self.now + 1e6)
            return
        assert at > self.now
        between = self.now + 0.999 * (at - self.now)
        assert between == at or not self.a.admissible(resource, between), "two floats next to each other have nothing between them"
        later = self.a.next_open(resource, at)
        assert self.a.admissible(resource, at) or (later is not None and later > at)


class TestINV1INV3INV6Admission(AdmissionMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


STEPS = st.lists(st.tuples(st.sampled_from(["acquire", "release", "cap", "wait"]), st.integers(0, 99)), max_size=60)


def play(steps: list[tuple[str, int]], *, look: bool) -> list[Any]:
    a = RequestAdmission(Aimd(successes_until_increase=2, startup_ramp_s=3.0).build(BuildContext()), breaker=Breaker(GATES),
                         wants=frozenset({"request"}))
    a.register("r", 6, 0.0)
    now, held, said = 0.0, [], []
    for what, n in steps:
        if look:
            a.snapshot("r", now), a.admissible("r", now), a.next_open("r", now)
        if what == "acquire":
            got = a.try_acquire("r", now)
            said.append(got)
            if not isinstance(got, Denial):
                held.append(got)
        elif what == "release" and held:
            said.append(a.release(held.pop(n % len(held)), OUTCOMES[n % 7], now))
        elif what == "cap":
            a.set_cap("r", 1 + n % 8, now)
        elif what == "wait":
            now += n / 20
    return said + a.drain_notes()


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_INV_9_the_same_calls_give_the_same_answers_whoever_looks_on(steps: list[tuple[str, int]]) -> None:
    assert play(steps, look=True) == play(steps, look=False)
