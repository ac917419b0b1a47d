"""Request admission with waiters under random interleavings, beside a naive model of who waits where since when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import Breaker, BreakerGate
from windtunnel.policy.admission.denial import Denial
from windtunnel.policy.admission.endpoints import RequestAdmissionConfig
from windtunnel.policy.admission.lease import RequestLease
from windtunnel.policy.admission.resource import RequestResourceKey, ResourceKey
from windtunnel.policy.admission.waiters import AlreadyGranted, Expired, Granted, RequestItem, UnknownWaiter, WaiterCancelled, Waiting
from windtunnel.policy.admission.waiting import WaitingAdmission

OUTCOMES = ("success", "success", "rate_limited", "provider_failure", "provider_timeout", "local_cancelled", "local_timeout", "unexpected_exception")
CHAT, EMBED = RequestResourceKey("p", "m", "chat"), RequestResourceKey("p", "m", "embedding")
KEYS: tuple[ResourceKey, ...] = ("r", CHAT, EMBED)
BREAKER = BreakerGate(window=6, min_outcomes=4, open_s=3.0, max_open_s=6.0)


def endpoint_of(key: ResourceKey) -> object:
    return key[:2] if isinstance(key, RequestResourceKey) else key


class WaitingMachine(RuleBasedStateMachine):
    """INV-1, INV-3, INV-4, INV-5, INV-6, INV-7, INV-9."""

    @initialize(burst=st.sampled_from(["limit", "epoch"]), ramp_s=st.sampled_from([0.0, 0.0, 4.0]), breaker=st.booleans(),
                default_s=st.sampled_from([None, 3.0]), cap=st.sampled_from([1, 1, 2]))
    def begin(self, burst: Any, ramp_s: float, breaker: bool, default_s: float | None, cap: int) -> None:
        limit = Aimd(cooldown_s=1.0, successes_until_increase=2, startup_ramp_s=ramp_s, burst_rule=burst)
        self.config = RequestAdmissionConfig(limit, max_limit_clamps={EMBED: 2}, default_queue_wait_timeout_s=default_s)
        self.breaker, self.default_s, self.now = breaker, default_s, 0.0
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.said: list[Any] = []
        self.a = self.fresh()
        self.lines: dict[ResourceKey, list[Waiting]] = {key: [] for key in KEYS}
        self.active: list[RequestLease] = []
        self.past: list[RequestLease] = []
        self.of_waiter: dict[str, RequestLease] = {}
        self.every_id: list[str] = []
        self.acquired = self.released = 0
        self.blocked = dict.fromkeys(KEYS, float("-inf"))
        self.burst = burst
        self.call("register", "r", cap, 0.0)
        self.call("register_alias", "p", "m", "x", cap + 1, 0.0)

    def fresh(self) -> WaitingAdmission:
        breaker = Breaker(BREAKER) if self.breaker else None
        return WaitingAdmission(self.config, breaker=breaker, wants=frozenset({"request"}))

    def call(self, name: str, *args: Any, **named: Any) -> Any:
        self.calls.append((name, (args, named)))
        said = getattr(self.a, name)(*args, **named)
        self.said.append(said)
        return said

    # -- the model ----------------------------------------------------------------------------------------------------------------

    def live(self, key: ResourceKey) -> list[Waiting]:
        return [w for w in self.lines[key] if w.deadline is None or w.deadline > self.now]

    def held_up(self, key: ResourceKey) -> bool:
        """Does somebody wait at the same endpoint who could be granted now?"""
        mates = [k for k in KEYS if endpoint_of(k) == endpoint_of(key)]
        return any(self.live(k) and self.a.admissible(k, self.now) for k in mates)

    def took(self, lease: RequestLease) -> None:
        self.acquired += 1
        assert lease.lease_id == f"g0-{self.acquired}" and lease.acquired_at == self.now
        self.active.append(lease)

    # -- what may happen ----------------------------------------------------------------------------------------------------------

    @rule(by_s=st.sampled_from([0.0, 0.1, 0.5, 1.0, 4.0]))
    def time_passes(self, by_s: float) -> None:
        self.now += by_s

    @rule(key=st.sampled_from(KEYS))
    def try_acquire(self, key: ResourceKey) -> None:
        elders, known = self.held_up(key), key in self.a._resources
        room = self.a.admissible(key, self.now)
        got = self.call("try_acquire", key, self.now)
        if isinstance(got, RequestLease):
            assert not elders and (room or not known)
            self.took(got)
        else:
            assert elders or not room
            assert got.retry_after_s is None or got.retry_after_s >= 0.0
            assert (got.reason == "queued_waiters_ahead") == elders

    @rule(key=st.sampled_from(KEYS), weight=st.sampled_from([1.0, 2.0, 0.25]), timeout_s=st.sampled_from([None, 0.0, 0.1, 1.0, 5.0]))
    def enqueue(self, key: ResourceKey, weight: float, timeout_s: float | None) -> None:
        elders = self.held_up(key)
        got = self.call("enqueue", RequestItem(key, weight, timeout_s), self.now)
        if isinstance(got, RequestLease):
            assert not elders
            self.took(got)
        elif isinstance(got, Waiting):
            effective_s = self.default_s if timeout_s is None else timeout_s
            assert got.deadline == (None if effective_s is None else self.now + effective_s) and effective_s != 0.0
            self.lines[key].append(got)
            self.every_id.append(got.waiter_id)
        else:
            assert isinstance(got, Denial) and got.reason == "queue_timeout" and timeout_s == 0.0

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=3, max_size=6), timeout_s=st.sampled_from([None, 1.0]))
    def a_crowd_comes(self, keys: list[ResourceKey], timeout_s: float | None) -> None:
        for key in keys:
            self.enqueue(key, 1.0, timeout_s)

    @precondition(lambda self: self.active)
    @rule(n=st.integers(0, 99), outcome=st.sampled_from(OUTCOMES), key=st.sampled_from(KEYS))
    def a_newcomer_comes_between_release_and_drain(self, n: int, outcome: str, key: ResourceKey) -> None:
        self.release(n, outcome, None)
        self.try_acquire(key)

    @precondition(lambda self: self.every_id)
    @rule(n=st.integers(0, 99))
    def cancel(self, n: int) -> None:
        waiter_id = self.every_id[-1 - n % len(self.every_id)]
        waits = [k for k in KEYS if any(w.waiter_id == waiter_id for w in self.lines[k])]
        said = self.call("cancel", waiter_id, self.now)
        if waits:
            assert said == WaiterCancelled(waiter_id)
            self.lines[waits[0]] = [w for w in self.lines[waits[0]] if w.waiter_id != waiter_id]
        elif waiter_id in self.of_waiter:
            assert isinstance(said, AlreadyGranted) and said.lease is self.of_waiter[waiter_id]
        else:
            assert said == UnknownWaiter(waiter_id)

    @rule()
    def drain(self) -> None:
        for out in self.call("drain", self.now):
            line = next(ws for ws in self.lines.values() if any(w.waiter_id == out.waiter_id for w in ws))
            waiter = next(w for w in line if w.waiter_id == out.waiter_id)
            if isinstance(out, Expired):
                assert waiter.deadline is not None and waiter.deadline <= self.now and out.denial.reason == "queue_timeout"
            else:
                assert isinstance(out, Granted)
                assert line[0] is waiter, "the first of its line"
                assert waiter.deadline is None or waiter.deadline > self.now
                self.took(out.lease)
                self.of_waiter[out.waiter_id] = out.lease
            line.remove(waiter)
        for key in KEYS:
            assert not any(w.deadline is not None and w.deadline <= self.now for w in self.lines[key])
            assert not self.lines[key] or not self.a.admissible(key, self.now), "who could go has gone"

    @precondition(lambda self: self.active)
    @rule(n=st.integers(0, 99), outcome=st.sampled_from(OUTCOMES), retry_after_s=st.sampled_from([None, None, 0.0, 0.3, 4.0]))
    def release(self, n: int, outcome: str, retry_after_s: float | None) -> None:
        lease = self.active.pop(n % len(self.active))
        assert self.call("release", lease, outcome, self.now, retry_after_s=retry_after_s) == "released"
        self.released += 1
        self.past.append(lease)
        self.of_waiter = {w: held for w, held in self.of_waiter.items() if held is not lease}

    @precondition(lambda self: self.active or self.past)
    @rule(n=st.integers(0, 99), how=st.sampled_from(["duplicate", "stale", "generation", "unknown"]))
    def release_wrongly(self, n: int, how: str) -> None:
        pool = self.active if how == "stale" else self.past if how == "duplicate" else self.active + self.past
        if not pool:
            return
        lease = pool[n % len(pool)]
        forged, expected = {
            "duplicate": (lease, "duplicate"), "stale": (replace(lease, acquired_at=-1.0), "stale_lease"),
            "generation": (replace(lease, generation="g1"), "wrong_controller_generation"),
            "unknown": (replace(lease, lease_id="g0-0"), "unknown_lease"),
        }[how]
        before = self.picture()
        assert self.call("release", forged, "rate_limited", self.now) == expected
        assert self.picture() == before

    @rule(key=st.sampled_from(["r", "endpoint", "none", "none"]), cap=st.integers(1, 3))
    def set_cap(self, key: str, cap: int) -> None:
        if key == "none":
            return
        if key == "r":
            self.call("register", "r", cap, self.now)
        else:
            self.call("register_alias", "p", "m", "x", cap, self.now)

    # -- what must hold -----------------------------------------------------------------------------------------------------------

    def picture(self) -> list[Any]:
        known = [k for k in KEYS if k in self.a._resources]
        return [replace(self.a.snapshot(k, self.now), release_diagnostics=None) for k in known] + [self.a.endpoint("p", "m", self.now)]

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "a"):
            return
        a = self.a
        assert self.acquired == self.released + len(self.active)
        assert a.waiting == sum(len(line) for line in self.lines.values())
        for key in KEYS:
            if key not in a._resources:
                continue
            s = a.snapshot(key, self.now)
            assert s.in_flight == sum(lease.resource == key for lease in self.active)
            assert s.waiters == len(self.lines[key])
            assert 1 <= s.limit <= s.effective_max
            blocked = float("-inf") if s.blocked_until is None else s.blocked_until
            assert blocked >= self.blocked[key]
            self.blocked[key] = blocked
        endpoint = a.endpoint("p", "m", self.now)
        assert endpoint.aggregate_in_flight == sum(lease.resource in (CHAT, EMBED) for lease in self.active)
        assert self.picture() == self.picture()

    @rule()
    def time_alone(self) -> None:
        """INV-7. Asked right after a drain, as the owner does it."""
        self.drain()
        at = self.a.next_deadline()
        if at is None:
            self.nothing_happens_until(1e6)
            return
        assert at > self.now
        self.nothing_happens_until(at - 1e-3 if at - self.now > 1e-3 else self.now)

    def nothing_happens_until(self, then: float) -> None:
        assert not any(w.deadline is not None and w.deadline <= then for line in self.lines.values() for w in line)
        assert not any(self.lines[k] and self.a.admissible(k, max(then, self.now)) for k in KEYS)

    @precondition(lambda self: self.a.next_deadline() is not None)
    @rule()
    def wake(self) -> None:
        """Exactly at the deadline something expires, is granted, or the deadline moves on."""
        at = self.a.next_deadline()
        assert at is not None
        self.now, waiting = max(self.now, at), self.a.waiting
        self.drain()
        later = self.a.next_deadline()
        assert self.a.waiting < waiting or later is None or later > at

    def teardown(self) -> None:
        """Everything ends; and the same calls give the same answers again."""
        if not hasattr(self, "a"):
            return
        gone = self.call("shutdown", self.now)
        assert len(gone) == sum(len(line) for line in self.lines.values()) and all(e.denial.reason == "shutdown" for e in gone)
        for lease in self.active:
            assert self.call("release", lease, "local_cancelled", self.now) == "released"
        assert (self.a.waiting, self.a.endpoint("p", "m", self.now).aggregate_in_flight, self.a.next_deadline()) == (0, 0, None)
        assert not self.a._given and not self.a._waiter_of
        notes, again = self.a.drain_notes(), self.fresh()
        assert [getattr(again, name)(*args, **named) for name, (args, named) in self.calls] == self.said
        assert again.drain_notes() == notes
        cuts: dict[tuple[Any, ...], int] = {}
        for note in notes:
            if note.kind == "request_limit_decreased" and note.data is not None:
                lease = next(held for held in self.past + self.active if held.lease_id == note.ids[0])
                key = (note.data["request_resource_key"], lease.epoch)
                cuts[key] = cuts.get(key, 0) + 1
        if self.burst == "epoch":
            assert all(n == 1 for n in cuts.values())


WaitingMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


class TestINV1INV3INV4INV5INV7INV9Waiting(WaitingMachine.TestCase):  # type: ignore[name-defined, misc]
    """Leases and waiters are conserved, nobody is passed, nobody is forgotten."""
