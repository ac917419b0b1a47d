"""May a ready task start? Capacity per resource, shared between groups by a policy; a lease is released exactly once."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from windtunnel.errors import ConfigValueError
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.param import check_number
from windtunnel.policy.queueing.item import QueueItem, QueueView, went_backwards
from windtunnel.policy.tasks.bounded_borrow import BoundedBorrow
from windtunnel.policy.tasks.decision import PolicyDecision, PolicyStateDelta, TaskAdmissionPolicy, TaskAdmissionView
from windtunnel.policy.tasks.resources import BlockSummary, ReleaseReason, ReleaseResult, TaskLease
from windtunnel.policy.tasks.task import SUBMISSION, check_amounts

RELEASED_KEPT = 8192


@dataclass(frozen=True, slots=True)
class TaskAdmissionConfig:
    """submission_capacity: tasks that may run at once; resource_limits: amounts by name, `submission` is merged in."""

    submission_capacity: int = 1024
    resource_limits: Mapping[str, int] = field(default_factory=dict)
    policy: TaskAdmissionPolicy = field(default_factory=BoundedBorrow)

    def __post_init__(self) -> None:
        check_number("submission_capacity", self.submission_capacity, lo=1, whole=True)
        check_amounts("resource_limits", self.resource_limits)
        if self.resource_limits.get(SUBMISSION, self.submission_capacity) != self.submission_capacity:
            raise ConfigValueError("resource_limits.submission", "expected the same as submission_capacity, or nothing")

    @property
    def limits(self) -> dict[str, int]:
        return {SUBMISSION: self.submission_capacity, **self.resource_limits}


class TaskAdmissionController:
    """Books of what runs. Every call is O(resources of the item + the policy); `view()` is a live, read-only handle.

    generation: prefix of lease ids; a lease of another generation is refused. Raises PolicyClockError when `now` goes back.
    """

    def __init__(self, config: TaskAdmissionConfig | None = None, *, generation: str = "g0") -> None:
        self.config = config or TaskAdmissionConfig()
        self.policy, self.generation = self.config.policy, generation
        self._books = TaskAdmissionView(self.config.limits)
        self._active: dict[str, TaskLease] = {}
        self._released: OrderedDict[str, None] = OrderedDict()
        self._count = 0
        self._now = float("-inf")
        self.acquired = 0
        self.releases: Counter[str] = Counter()  # by reason

    @property
    def active(self) -> Mapping[str, TaskLease]:
        """Leases not yet released, by id."""
        return self._active

    def is_eligible(self, item: QueueItem, view: QueueView) -> bool:
        """Would `try_acquire` say yes? Pure."""
        return self.decide(item, view).allowed

    def decide(self, item: QueueItem, view: QueueView) -> PolicyDecision:
        """The answer with its reason. Pure."""
        available = self._books.available
        for name, amount in item.resources:
            if amount > available.get(name, 0):
                return PolicyDecision(False, "no_capacity", name)
        return self.policy.evaluate(item, view, self._books)

    def try_acquire(self, item: QueueItem, view: QueueView, now: float) -> TaskLease | Denial:
        """A lease, or why not. Judged afresh: whatever `is_eligible` said before does not count."""
        if now < self._now:
            raise went_backwards(now, self._now)
        self._now = now
        decision = self.decide(item, view)
        if not decision.allowed:
            return make_denial("task", decision.reason, now=now, available_at=decision.available_at, resource=decision.resource)
        self._count += 1
        lease = TaskLease(f"{self.generation}-{self._count}", item, item.resources, now, self.generation)
        self._active[lease.lease_id] = lease
        self.acquired += 1
        books, key = self._books, item.group.key
        books.running[key] = books.running.get(key, 0) + 1
        leased = books.leased.get(key)
        if leased is None:
            leased = books.leased[key] = {}
        available = books.available
        for name, amount in item.resources:
            available[name] -= amount
            leased[name] = leased.get(name, 0) + amount
        self._apply(key, self.policy.on_acquire(lease, decision))
        return lease

    def _apply(self, key: str, delta: PolicyStateDelta) -> None:
        """Debt stays between nothing and what the group holds."""
        for name, by in delta.debt:
            debts = self._books.debt.setdefault(key, {})
            debts[name] = max(0, debts.get(name, 0) + by)

    def release(self, lease: TaskLease, now: float) -> ReleaseResult:
        """Give the lease back. Never raises for a lease that is unknown, forged or released before: the reason says so."""
        reason = self._judge(lease)
        self.releases[reason] += 1
        lease_id = getattr(lease, "lease_id", "")
        if reason != "released":
            return ReleaseResult(reason, lease_id if isinstance(lease_id, str) else "")
        if now > self._now:
            self._now = now
        kept = self._active.pop(lease_id)
        self._released[lease_id] = None
        if len(self._released) > RELEASED_KEPT:
            self._released.popitem(last=False)
        self._give_back(kept)
        return ReleaseResult("released", lease_id)

    def _judge(self, lease: TaskLease) -> ReleaseReason:
        if not isinstance(lease, TaskLease):
            return "unknown_lease"
        if lease.generation != self.generation:
            return "wrong_controller_generation"
        try:
            active = self._active.get(lease.lease_id)
            if active is not None:
                return "released" if active is lease or active == lease else "stale_lease"
            return "duplicate" if lease.lease_id in self._released else "unknown_lease"
        except TypeError:  # a forged id that cannot even be looked up
            return "unknown_lease"

    def _give_back(self, lease: TaskLease) -> None:
        books, key = self._books, lease.item.group.key
        leased = books.leased[key]
        for name, amount in lease.resources:
            books.available[name] += amount
            leased[name] -= amount
        self._apply(key, self.policy.on_release(lease))
        debts = books.debt.get(key)
        if debts:
            for name in debts:
                debts[name] = min(debts[name], leased.get(name, 0))
        books.running[key] -= 1
        if not books.running[key]:
            del books.running[key], books.leased[key]
            books.debt.pop(key, None)

    def may_admit_any(self) -> bool:
        """Is a unit of `submission` free? O(1)."""
        return self._books.available[SUBMISSION] > 0

    def view(self) -> TaskAdmissionView:
        return self._books

    def explain_blocked(self, queue_view: QueueView) -> BlockSummary:
        """One judgement per group's head. O(groups)."""
        reasons: Counter[str] = Counter()
        times: list[float] = []
        for head in queue_view.head_by_group.values():
            decision = self.decide(head, queue_view)
            if decision.allowed:
                continue
            reasons[decision.reason] += 1
            if decision.available_at is not None:
                times.append(decision.available_at)
        return BlockSummary(queue_view.queued_total, dict(reasons), min(times, default=None), {"available": dict(self._books.available)})


