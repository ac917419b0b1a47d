"""A control under random traffic, losses, cancels, duplicates and late events: its books balance after every event.

The world beside it knows only effects: which attempts run where, and which requests were told how they ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from windtunnel.effects import Cancel, Close, Dispatch, Effect, Reject, WakeAt
from windtunnel.events import (
    Arrived,
    Cancelled,
    Commanded,
    Event,
    Failed,
    Finished,
    FirstToken,
    Progressed,
    ReplicaBooting,
    ReplicaGone,
    ReplicaReady,
    Request,
    Scrape,
    Scraped,
    Woke,
)
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.bands import Bands, BandsGate
from windtunnel.policy.admission.breaker import Breaker, BreakerDoor, BreakerGate
from windtunnel.policy.admission.budget import Budget, BudgetGate
from windtunnel.policy.admission.gates import Gate, Gates
from windtunnel.policy.admission.gcra import GcraGate, RateGate
from windtunnel.policy.admission.quota import QuotaGate, TenantQuota
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.admission.retry_budget import RetryBudget, RetryBudgetGate
from windtunnel.policy.admission.throttle import Throttle
from windtunnel.policy.admission.token_budget import TokenBudget, TokenBudgetGate
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.classes import Classes
from windtunnel.policy.queueing.deadline_drop import DeadlineDropQueue
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.routing.replica import READY
from windtunnel.policy.routing.roundrobin import RoundRobin
from windtunnel.policy.settings import ControlSettings

POOLS = ("x", "y")
REPLICAS = ("x-0", "x-1", "y-0", "y-1")
OUTCOMES = ("rate_limited", "provider_failure", "provider_timeout", "local_cancelled", "local_timeout", "unexpected_exception")
STEPS_S = st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0, 3.0])
LATE_REASONS = ("deadline_passed", "queue_timeout")


def queue_of(kind: str) -> Queue:
    bounds = {0: 4, 1: 3}
    rules = {0: "shed_low_priority", 1: "drop_lru"}
    return {
        "fair": FairTaskQueue, "fifo": FifoQueue, "strict": lambda: Classes("strict").build(BuildContext()),
        "bounded": lambda: BoundedQueue(FairTaskQueue(), 5, bounds, rules),
        "drop": lambda: DeadlineDropQueue(BoundedQueue(FifoQueue(), 5, bounds, rules), 0.5),
    }[kind]()


def shared_gates() -> list[Gate]:
    """One of each for both lanes, tight enough to refuse now and then."""
    return [
        QuotaGate({"a": TenantQuota(concurrent=4), "default": TenantQuota(tokens_per_min=400.0, requests_per_s=3.0, kv_bytes=100.0)}, 1.0),
        BudgetGate({"b": Budget(tokens=300, seconds=60.0), "c": Budget(usd=1.0, usd_per_1k_output=10.0)}),
        RateGate(GcraGate(rate_per_s=30.0, burst=200.0, unit="tokens")), RetryBudget(RetryBudgetGate(ratio=0.5, min_per_s=0.2)),
    ]


def gates_of(shared: Sequence[Gate], admission: RequestAdmission, pool: str) -> Gates:
    return Gates([
        *shared, Bands(BandsGate(overload_s=0.5, user_levels=2), Random(1)), Throttle(rng=Random(2)), BreakerDoor(admission, pool),
        TokenBudget(TokenBudgetGate(prefill_tokens_per_s=20.0, ttft_target_s=4.0)),
    ])


class ControlMachine(RuleBasedStateMachine):
    """Two lanes of one pool each; ids are never used twice."""

    @initialize(queue=st.sampled_from(["fair", "fifo", "bounded", "drop", "strict"]), attempts=st.integers(1, 3), breaker=st.booleans(),
                timeout_s=st.sampled_from([None, 0.0, 2.0]), hold_s=st.sampled_from([None, 0.0, 2.0]), watch=st.booleans(),
                ramp_s=st.sampled_from([0.0, 4.0]), gated=st.booleans(), preemption=st.sampled_from(["disabled", "soft", "hard"]))
    def build(self, queue: str, attempts: int, breaker: bool, timeout_s: float | None, hold_s: float | None, watch: bool,
              ramp_s: float, gated: bool, preemption: Any, per_min: int = 60, slots: int = 2) -> None:
        shared = shared_gates() if gated else []

        def lane(n: int, pool: str) -> Lane:
            gate = Breaker(BreakerGate(window=5, min_outcomes=2, open_s=4.0)) if breaker else None
            limit = Aimd(cooldown_s=1.0, successes_until_increase=2, startup_ramp_s=ramp_s).build(BuildContext())
            router = LeastOutstanding(pools=(pool,)) if n else RoundRobin(pools=(pool,))
            admission = RequestAdmission(limit, breaker=gate, generation=f"g{n}")
            return Lane(pool, queue=queue_of(queue), admission=admission, router=router, models=frozenset({pool}),
                        gates=gates_of(shared, admission, pool) if gated else None)

        lanes = [lane(n, pool) for n, pool in enumerate(POOLS)]
        self.control = Control(lanes=lanes, fleet=Fleet(), tenants={"a": 2.0}, settings=ControlSettings(
            preemption=preemption, max_preemptions_per_min=per_min, attempts=attempts, queue_wait_timeout_s=timeout_s,
            hold_unready_s=hold_s, cancel_late=watch, first_token_s=2.0 if watch else None, wall_s=6.0 if watch else None,
            idle_s=1.5 if watch else None, cancellation_deadline_s=1.0 if watch else None))
        self.settings = self.control.settings
        self.now, self.count, self.stopped = 0.0, 0, False
        self.wakes: dict[str, float] = {}
        self.requests: dict[str, Request] = {}
        self.attempts: dict[str, tuple[int, str]] = {}  # alive ones: request -> (dispatch, replica)
        self.dispatches: dict[str, int] = {}
        self.past: list[tuple[str, int, str]] = []
        self.ended: set[str] = set()
        self.leases: set[str] = set()
        self.arrivals: dict[str, float] = {}
        self.stopped_for_others: dict[str, list[int]] = {}  # dispatches by request
        self.stops_s: list[float] = []
        for replica in REPLICAS[:3]:
            self.do(ReplicaReady(replica, replica[0], slots=slots))

    # -- the world ----------------------------------------------------------------------------------------------------------------

    def do(self, event: Event) -> None:
        effects = self.control.handle(event, self.now)
        for effect in effects:
            self.apply(effect)
        self.control.check()

    def apply(self, effect: Effect) -> None:
        if isinstance(effect, Dispatch):
            self.sent(effect)
        elif isinstance(effect, Reject):
            assert effect.request_id not in self.dispatches, "a dispatched request is closed, not rejected"
            self.end(effect.request_id)
        elif isinstance(effect, Close):
            assert effect.request_id in self.dispatches, "a request that was never dispatched is rejected, not closed"
            self.end(effect.request_id)
        elif isinstance(effect, Cancel):
            assert self.attempts[effect.request_id] == (effect.dispatch, effect.replica)
            if effect.reason == "preempted":
                self.preempted(effect)
        elif isinstance(effect, WakeAt):
            assert effect.at is not None
            assert effect.at < self.wakes.get(effect.key, float("inf")), "only an earlier wake replaces one"
            self.wakes[effect.key] = effect.at

    def preempted(self, effect: Cancel) -> None:
        """QP-12: for somebody who waits and is strictly more urgent; twice per request at most, and so many in a minute."""
        victim, stops = self.requests[effect.request_id], self.stopped_for_others.setdefault(effect.request_id, [])
        assert self.settings.preemption == "hard" and effect.request_id not in self.ended
        assert effect.dispatch not in stops and len(stops) < 2
        stops.append(effect.dispatch)
        waiting = (set(self.requests) - self.ended) - set(self.attempts)
        assert any(self.requests[i].priority < victim.priority and self.requests[i].model == victim.model for i in waiting)
        assert self.control.fleet.replicas[effect.replica].state == READY
        self.stops_s.append(self.now)
        assert sum(self.now < at + 60.0 for at in self.stops_s) <= self.settings.max_preemptions_per_min

    def sent(self, effect: Dispatch) -> None:
        request = effect.request
        assert request.id not in self.ended
        assert request.id not in self.attempts, "one attempt at a time"
        assert effect.dispatch == self.dispatches.get(request.id, 0) + 1 <= self.settings.attempts + len(self.stopped_for_others.get(request.id, ()))
        assert effect.lease_id not in self.leases
        assert self.control.fleet.replicas[effect.replica].state == READY
        assert effect.replica.startswith(request.model)
        assert request.replica in (None, effect.replica)
        assert request.deadline_s is None or self.now < request.deadline_s
        if self.settings.queue_wait_timeout_s and effect.dispatch == 1 and self.now > self.arrivals[request.id]:
            assert self.now < self.arrivals[request.id] + self.settings.queue_wait_timeout_s
        self.dispatches[request.id] = effect.dispatch
        self.leases.add(effect.lease_id)
        self.attempts[request.id] = (effect.dispatch, effect.replica)

    def end(self, request_id: str) -> None:
        assert request_id not in self.ended, "an end is said once"
        self.ended.add(request_id)

    def over(self, request_id: str) -> tuple[int, str]:
        dispatch, replica = self.attempts.pop(request_id)
        self.past.append((request_id, dispatch, replica))
        return dispatch, replica

    def pick(self, n: int) -> str:
        return sorted(self.attempts)[n % len(self.attempts)]

    # -- what may happen ----------------------------------------------------------------------------------------------------------

    @rule(step_s=STEPS_S)
    def time_passes(self, step_s: float) -> None:
        """Wakes come late: nothing says that a world is on time."""
        self.now += step_s

    @rule(model=st.sampled_from(POOLS), tenant=st.sampled_from("abc"), priority=st.integers(0, 2),
          attempt=st.sampled_from([1, 1, 1, 2]),
          deadline_in_s=st.sampled_from([None, None, 0.0, 1.0, 4.0]), replica=st.sampled_from([None, None, None, None, "-0", "-9"]))
    def arrives(self, model: str, tenant: str, priority: int, attempt: int, deadline_in_s: float | None, replica: str | None) -> None:
        self.count += 1
        request = Request(f"r{self.count}", tenant, model, priority, self.now, 10, 10, attempt=attempt,
                          replica=None if replica is None else model + replica,
                          deadline_s=None if deadline_in_s is None else self.now + deadline_in_s)
        self.requests[request.id], self.arrivals[request.id] = request, self.now
        self.do(Arrived(request))
        if self.stopped:
            assert request.id in self.ended

    @precondition(lambda self: self.attempts)
    @rule(n=st.integers(0, 30))
    def finishes(self, n: int) -> None:
        request_id = self.pick(n)
        dispatch, replica = self.over(request_id)
        answered = request_id not in self.ended
        self.do(Finished(request_id, dispatch, replica, 5, 10, 0, self.now, self.now))
        if answered:
            self.end(request_id)

    @precondition(lambda self: self.attempts)
    @rule(n=st.integers(0, 30), outcome=st.sampled_from(OUTCOMES), token=st.booleans())
    def fails(self, n: int, outcome: str, token: bool) -> None:
        request_id = self.pick(n)
        dispatch, replica = self.over(request_id)
        self.do(Failed(request_id, dispatch, replica, outcome, "why", first_token_s=self.now if token else None))

    @precondition(lambda self: self.attempts)
    @rule(n=st.integers(0, 30))
    def first_token(self, n: int) -> None:
        request_id = self.pick(n)
        self.do(FirstToken(request_id, *self.attempts[request_id]))

    @precondition(lambda self: self.attempts)
    @rule(n=st.integers(0, 30), tokens=st.integers(0, 64))
    def tokens_come(self, n: int, tokens: int) -> None:
        request_id = self.pick(n)
        self.do(Progressed(self.attempts[request_id][1], ((request_id, tokens), ("nobody", 3))))

    @rule(replica=st.sampled_from(REPLICAS))
    def scrape_shows_that_stopped_attempts_are_gone(self, replica: str) -> None:
        """The engine has dropped, without a word, what it did not stop in time."""
        self.now += 0.01
        self.forget_quarantined(replica)
        self.do(Scraped(replica, Scrape(self.now, sum(r == replica for _, r in self.attempts.values()), 0)))

    def forget_quarantined(self, replica: str) -> list[str]:
        held = list(self.control.flow.quarantined.get(replica, ()))
        for request_id in held:
            self.over(request_id)
        return held

    @rule(replica=st.sampled_from(REPLICAS), name=st.sampled_from(["drain", "undrain"]))
    def operator(self, replica: str, name: str) -> None:
        self.do(Commanded(name, {"replica": replica}))

    @rule(weight=st.sampled_from([0.5, 3.0]), timeout_s=st.sampled_from([None, 0.5]))
    def reconfigured(self, weight: float, timeout_s: float | None) -> None:
        if not self.settings.queue_wait_timeout_s:  # a promise of before would not bind what came before it
            self.do(Commanded("reconfigure", {"tenants": {"b": weight}, "settings": {"hold_unready_s": timeout_s}}))

    @precondition(lambda self: self.past)
    @rule(n=st.integers(0, 100), kind=st.sampled_from(["finished", "failed", "token"]))
    def an_event_comes_twice_or_too_late(self, n: int, kind: str) -> None:
        request_id, dispatch, replica = self.past[n % len(self.past)]
        late, counts = self.control.late_events, self.control.view().counts
        event: Event = FirstToken(request_id, dispatch, replica)
        if kind == "finished":
            event = Finished(request_id, dispatch, replica, 5)
        elif kind == "failed":
            event = Failed(request_id, dispatch, replica, "provider_failure", "late")
        effects = self.control.handle(event, self.now)
        assert list(effects) == []
        assert (self.control.late_events, self.control.view().counts) == (late + 1, counts)

    @precondition(lambda self: self.requests)
    @rule(n=st.integers(0, 100), outcome=st.sampled_from(["local_cancelled", "local_timeout"]))
    def client_leaves(self, n: int, outcome: str) -> None:
        """In whatever state: waiting, running, closing or long over."""
        request_id = list(self.requests)[-1 - n % len(self.requests)]
        self.do(Cancelled(request_id, outcome=outcome))
        assert request_id in self.ended

    @rule(replica=st.sampled_from(REPLICAS))
    def replica_ready(self, replica: str) -> None:
        self.do(ReplicaReady(replica, replica[0], slots=1 + REPLICAS.index(replica) % 2))

    @rule(replica=st.sampled_from(REPLICAS))
    def replica_boots(self, replica: str) -> None:
        self.forget_quarantined(replica)
        self.do(ReplicaBooting(replica, replica[0]))

    @rule(replica=st.sampled_from(REPLICAS), notice_s=st.sampled_from([None, None, 1.0]))
    def replica_goes(self, replica: str, notice_s: float | None) -> None:
        if notice_s is None:
            for request_id in [i for i, (_, r) in self.attempts.items() if r == replica]:
                self.over(request_id)
        self.do(ReplicaGone(replica, "gone", None if notice_s is None else self.now + notice_s))

    @precondition(lambda self: self.wakes)
    @rule(n=st.integers(0, 10))
    def wake(self, n: int) -> None:
        key = sorted(self.wakes)[n % len(self.wakes)]
        self.now = max(self.now, self.wakes.pop(key))
        self.do(Woke(key))

    @rule(odds=st.integers(0, 30))
    def stop(self, odds: int) -> None:
        if odds == 0:
            self.stopped = True
            self.do(Commanded("stop"))

    @rule()
    def somebody_asks_how_they_stand(self) -> None:
        """From then on places are kept: more urgent classes first, then arrivals; equal times in either order, nobody twice."""
        control, waiting = self.control, dict[str, list[Request]]()
        for request_id in set(self.requests) - self.ended - set(self.attempts):
            waiting.setdefault(self.requests[request_id].model, []).append(self.requests[request_id])
        for others in waiting.values():
            places = []
            for request in others:
                standing = control.standing(request.id, self.now)
                assert standing is not None and standing.state == "waiting" and standing.position is not None
                places.append(standing.position)
                urgent, at = sum(o.priority < request.priority for o in others), self.arrivals[request.id]
                before = sum(o.priority == request.priority and self.arrivals[o.id] < at for o in others)
                equal = sum(o.priority == request.priority and self.arrivals[o.id] == at for o in others)
                assert urgent + before <= standing.position < urgent + before + equal
            assert sorted(places) == list(range(len(others)))
        for request_id in self.attempts:
            standing = control.standing(request_id, self.now)
            assert standing is not None and standing.state == ("closing" if request_id in self.ended else "running")

    # -- what must hold -----------------------------------------------------------------------------------------------------------

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "control"):
            return
        control = self.control
        counts = control.view().counts
        assert counts.arrivals == self.count
        assert counts.completed + counts.failed + counts.cancelled + counts.rejected + counts.timed_out + counts.abandoned == len(self.ended)
        assert set(control.open_ids()) == set(self.requests) - self.ended
        assert control.open_count == len(set(self.attempts) | (set(self.requests) - self.ended))
        for replica in control.fleet.replicas.values():
            assert replica.in_flight == sum(r == replica.id for _, r in self.attempts.values())
        assert dict(control.view().wakes) == self.wakes

    @invariant()
    def nothing_reserved_is_lost(self) -> None:
        """AC-2: what open requests took is held, and reserved - refunded - spent = held."""
        if not hasattr(self, "control") or self.control.lanes[0].gates is None:
            return
        gates: dict[str, Any] = {type(g).__name__: g for g in self.control.lanes[0].gates.gates}
        quota = gates["QuotaGate"]
        assert set(quota.held) == set(self.control.flow.open)
        for tenant, account in quota.quotas.accounts.items():
            mine = [r for i, r in self.requests.items() if i in quota.held and r.tenant == tenant]
            assert account.active == len(mine)
            assert account.held == account.reserved - account.refunded - account.spent == 20 * len(mine)
            assert account.held_kv == 20.0 * len(mine)
            assert account.quota.concurrent is None or account.active <= account.quota.concurrent
        for purse in gates["BudgetGate"].purses.values():
            assert purse.budget.tokens is None or purse.spent + purse.held <= purse.budget.tokens
            assert purse.active >= 0 <= purse.held and purse.spent_s >= 0.0 <= purse.spent_usd
        for lane in self.control.lanes:
            assert lane.gates is not None
            prompts = lane.gates.gates[-1]
            assert isinstance(prompts, TokenBudget) and prompts.queued == 10 * len(prompts.held) and prompts._sent <= set(prompts.held)

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        """Who could go now has gone (unless its own limit in time is over and the wake is still to come)."""
        if not hasattr(self, "control"):
            return
        for lane in self.control.lanes:
            ready = self.control.fleet.ready_count(lane.pools)
            if not len(lane.queue) or not ready or not lane.admission.admissible(lane.resource, self.now):
                continue
            could = lane.queue.select(lambda item, _: item.request is not None and item.request.replica is None, self.now)
            if could is not None:
                assert self.wakes.get("requests", float("inf")) <= self.now, f"{could.item.id} could run and nothing will wake it"

    @invariant()
    def nobody_urgent_waits_unheard(self) -> None:
        """Hard pre-emption: who is more urgent than something that runs in a full lane, and could be next, has a place to come."""
        if not hasattr(self, "control") or self.settings.preemption != "hard" or self.stopped:
            return
        if sum(self.now < at + 60.0 for at in self.stops_s) >= self.settings.max_preemptions_per_min:
            return
        flow: Any = self.control.flow
        for lane in self.control.lanes:
            queued = Counter(i.priority for line in lane.queue.view()._current().lines().values() for i in line.values())
            assert dict(flow._waiting[lane]) == queued, "who waits is counted by class"
        stopping = {i for i, d in self.stopped_for_others.items() if i in self.attempts and self.attempts[i][0] in d}
        for lane in self.control.lanes:
            spare = [self.requests[i].priority for i, (_, r) in self.attempts.items()
                     if self.requests[i].model == lane.name and i not in stopping | self.ended and len(self.stopped_for_others.get(i, ())) < 2
                     and self.control.fleet.replicas[r].state == READY]
            full = lane.admission.full_from(lane.resource, self.now) == self.now
            if not spare or not full or self.wakes.get("requests", float("inf")) <= self.now:
                continue
            next_one = lane.queue.select(lambda item, _: item.id not in flow._promised, self.now)
            if next_one is not None and next_one.item.request is not None and next_one.item.request.replica is None:
                assert next_one.item.priority >= max(spare), f"{next_one.item.id} waits behind less urgent work and nobody was stopped for it"

    def teardown(self) -> None:
        """Everything ends: replicas answer what is left, then all go."""
        if not hasattr(self, "control"):
            return
        self.do(Commanded("stop"))
        for request_id in sorted(self.attempts):
            dispatch, replica = self.over(request_id)
            self.do(Failed(request_id, dispatch, replica, "provider_failure", "over"))
        assert self.ended == set(self.requests)
        assert self.control.open_count == 0
        counts = self.control.view().counts
        assert (counts.waiting, counts.active, counts.arrivals) == (0, 0, self.count)
        assert all(lane.admission.in_flight(lane.resource) == 0 for lane in self.control.lanes)
        assert not any(getattr(gate, "held", None) for lane in self.control.lanes if lane.gates is not None for gate in lane.gates.gates)


ControlMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None,
                                            suppress_health_check=list(HealthCheck))


class PreemptingMachine(ControlMachine):
    """The same, in a fleet that is nearly always full, with much of all classes: running work is stopped for more urgent work."""

    @initialize(queue=st.sampled_from(["fair", "fifo", "bounded", "drop", "strict"]), attempts=st.integers(1, 2), breaker=st.booleans(),
                timeout_s=st.sampled_from([None, 2.0]), watch=st.booleans(), gated=st.booleans(), per_min=st.sampled_from([0, 2, 60]))
    def build(self, queue: str, attempts: int, breaker: bool, timeout_s: float | None, watch: bool,  # type: ignore[override]
              gated: bool, per_min: int) -> None:
        super().build(queue, attempts, breaker, timeout_s, None, watch, 0.0, gated, "hard", per_min, 1)

    @rule(tenant=st.sampled_from("ab"), priorities=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def several_arrive(self, tenant: str, priorities: list[int]) -> None:
        for priority in priorities:
            self.count += 1
            request = Request(f"r{self.count}", tenant, "x", priority, self.now, 10, 10)
            self.requests[request.id], self.arrivals[request.id] = request, self.now
            self.do(Arrived(request))

    @precondition(lambda self: self.being_stopped())
    @rule(n=st.integers(0, 30), late=st.booleans())
    def lets_go(self, n: int, late: bool) -> None:
        """The engine has stopped a victim, or has answered before it could."""
        stopping = self.being_stopped()
        request_id = stopping[n % len(stopping)]
        dispatch, replica = self.over(request_id)
        going = request_id not in self.ended
        if late:
            self.do(Finished(request_id, dispatch, replica, 5, 10, 0, self.now, self.now))
            if going:
                self.end(request_id)
            return
        self.do(Failed(request_id, dispatch, replica, "local_cancelled", "preempted", None, None, 3, self.now, self.now))
        deadline_s = self.requests[request_id].deadline_s
        if going and not self.stopped and (deadline_s is None or self.now < deadline_s) and self.control.fleet.ready_count(("x",)):
            assert request_id not in self.ended, "it waits again, or runs again already"

    def being_stopped(self) -> list[str]:
        return sorted(i for i, (dispatch, _) in self.attempts.items() if dispatch in self.stopped_for_others.get(i, ()))


class TestAC1ControlConservation(ControlMachine.TestCase):  # type: ignore[name-defined, misc]
    """INV-1, AC-3, EE-20: one end per request, one attempt at a time, leases and ledger exact."""


PreemptingMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None,
                                               suppress_health_check=list(HealthCheck))


class TestQP12HardPreemption(PreemptingMachine.TestCase):  # type: ignore[name-defined, misc]
    """QP-12 with AC-1, AC-3, INV-3: a victim ends once, its lease is given back once, and its place goes to who is more urgent."""
