"""What is known of one pool: replicas by event, the accepted target, what an orchestrator says, and whether a scale-up is stuck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from windtunnel.policy.planning.contract import PoolState

BOOT_ALPHA = 0.3  # weight of the newest boot time
LEAST_STUCK_S, STUCK_BOOTS = 600.0, 3.0


@dataclass(frozen=True, slots=True)
class PoolFrame:
    """The fixed facts of a pool. name: the fleet's word for it; component: the planner's; expected: replicas at the start, None: unknown."""

    component: str
    name: str
    role: str = "agg"
    gpus: int = 1
    boot_s: float | None = None
    expected: int | None = None


class Pool:
    """Follows one pool. Dicts hold replica -> since when, in order of events; `ours`: those that we drain."""

    def __init__(self, frame: PoolFrame, scale_up_timeout_s: float | None = None) -> None:
        self.frame, self._timeout_s = frame, scale_up_timeout_s
        self.starting: dict[str, float] = {}
        self.ready: dict[str, float] = {}
        self.draining: dict[str, float] = {}
        self.ours: set[str] = set()
        self.expected = frame.expected
        self.boot_s = frame.boot_s
        self.measured_boot_s: float | None = None
        self.outstanding: tuple[int, float] | None = None  # (plan, since): a ScaleTo without an answer
        self.asked = 0  # of the world, by the last ScaleTo; ordered replicas hold GPUs before they are heard of
        self.progress_s = 0.0
        self.stuck_until = float("-inf")
        self.gpu_seconds, self._metered_s = 0.0, 0.0
        self._seen = frame.expected == 0
        self._observed: Mapping[str, Any] = {}

    # -- events -------------------------------------------------------------------------------------------------------------------

    def booting(self, replica: str, now: float) -> None:
        self._seen = True
        self.ready.pop(replica, None)
        if replica not in self.draining:
            self.starting.setdefault(replica, now)

    def serves(self, replica: str, boot_s: float | None, now: float) -> None:
        """Progress: a stuck scale-up is not stuck any more."""
        self._seen, self.progress_s, self.stuck_until = True, now, float("-inf")
        self._drop(replica)
        self.ready[replica] = now
        if boot_s is not None and boot_s >= 0:
            known = self.measured_boot_s
            self.measured_boot_s = self.boot_s = boot_s if known is None else known + BOOT_ALPHA * (boot_s - known)

    def leaves(self, replica: str, now: float) -> bool:
        """It drains; True if that is news to us."""
        if replica not in self.ready and replica not in self.starting:
            return False
        self._drop(replica)
        self.draining[replica] = now
        return self._lost()

    def drain(self, replica: str, now: float) -> None:
        """We drain it."""
        self.starting.pop(replica, None)
        self.ready.pop(replica, None)
        self.draining[replica] = now
        self.ours.add(replica)

    def undrain(self, replica: str, now: float) -> None:
        """We want it back; until it says so it counts as starting."""
        self._drop(replica)
        self.starting[replica] = now

    def gone(self, replica: str) -> bool:
        """True if it was lost: neither drained nor planned away. From then on it is missing, so that the next plan orders another."""
        known = replica in self.ready or replica in self.starting
        self._drop(replica)
        return known and self._lost()

    def observed(self, seen: Mapping[str, Any]) -> int | None:
        """An orchestrator's view; its count counts. Returns our former target if somebody else changed it."""
        self._observed = {k: v for k, v in seen.items() if v is not None}
        self._seen = self._seen or bool(self._observed)
        theirs = self._observed.get("expected")
        if theirs is None or self.outstanding is not None or theirs == self.expected:
            return None
        former, self.expected = self.expected, theirs
        return former

    def _lost(self) -> bool:
        alive = len(self.ready) + len(self.starting)
        self.asked = max(0, self.asked - 1)
        if self.expected is None or alive >= self.expected:
            return False
        self.expected = max(alive, self.expected - 1)
        return True

    def _drop(self, replica: str) -> None:
        for known in (self.starting, self.ready, self.draining):
            known.pop(replica, None)
        self.ours.discard(replica)

    # -- counts -------------------------------------------------------------------------------------------------------------------

    def _count(self, name: str, known: Mapping[str, float]) -> int | None:
        if self.starting or self.ready or self.draining:
            return len(known)
        seen: int | None = self._observed.get(name, len(known) if self._seen else None)
        return seen

    @property
    def baseline(self) -> int | None:
        """The accepted target, else what is ready, else unknown: pending replicas are not cancelled for not being ready yet."""
        return self.expected if self.expected is not None else self._count("ready", self.ready)

    @property
    def live(self) -> int:
        """Replicas that serve or will."""
        return len(self.ready) + len(self.starting)

    @property
    def coming(self) -> int:
        """Replicas that serve, will, or were ordered and have not been heard of yet."""
        return max(self.live, self.asked)

    @property
    def occupied(self) -> int:
        """Replicas that hold GPUs, or will at any moment."""
        return self.coming + len(self.draining)

    def meter(self, now: float) -> None:
        """Count the GPU-seconds since the last call; call it before the count of replicas changes."""
        self.gpu_seconds += self.occupied * self.frame.gpus * max(0.0, now - self._metered_s)
        self._metered_s = now

    def state(self) -> PoolState:
        """For plugins."""
        ready = self._count("ready", self.ready)
        scaling = None if ready is None else self.expected is not None and self.expected != ready
        return PoolState(ready, self.expected, self._count("starting", self.starting), self._count("draining", self.draining), scaling, self.boot_s)

    def ordered(self, target: int, now: float) -> None:
        """A plan was made for this pool. The clock of a stuck scale-up runs from the first order that nothing came of: a growing backlog
        that orders more at every tick must not start it anew."""
        if self.expected is None or (target > self.expected and len(self.ready) >= self.expected):
            self.progress_s = now
        self.expected = target

    def stuck(self, now: float, retry_s: float) -> bool:
        """Replicas were ordered long ago and do not come: stop counting on them. True once per case."""
        ready = self._count("ready", self.ready)
        if ready is None or self.expected is None or ready >= self.expected or now < self.stuck_until:
            return False
        after_s = self._timeout_s if self._timeout_s is not None else max(LEAST_STUCK_S, STUCK_BOOTS * (self.boot_s or 0.0))
        if now - self.progress_s < after_s:
            return False
        self.expected, self.stuck_until, self.progress_s = ready, now + retry_s, now
        self.asked = 0
        return True


def victims(pool: Pool, n: int, in_flight: Callable[[str], int]) -> list[str]:
    """`n` replicas to give up: those that do not serve yet, newest first, then the least busy (newest on a tie)."""
    starting = list(reversed(pool.starting))
    newest = {replica: i for i, replica in enumerate(reversed(pool.ready))}
    return (starting + sorted(pool.ready, key=lambda r: (in_flight(r), newest[r])))[: max(0, n)]
