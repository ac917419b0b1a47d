"""Rate limits, controlled delay, retries and shuffle sharding against arithmetic."""

from __future__ import annotations

from random import Random

from windtunnel.effects import Close, Dispatch
from windtunnel.events import Arrived, Failed, Finished, ReplicaReady, Request
from windtunnel.lab.validation.check import Check, near, within
from windtunnel.policy.admission.gcra import Gcra
from windtunnel.policy.admission.shuffle import chance_covered, hand_of
from windtunnel.policy.presets import default_control
from windtunnel.policy.queueing.codel import CoDel, CoDelQueue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.settings import ControlSettings

RATE, DELAY, AGAIN, SHARDS = "Rate of 10/s with a burst of 5", "Controlled delay, always above the target", "Three retries", "Shuffle sharding"
DROPS_S = (0.0, 0.1, 0.17071, 0.22845, 0.27845, 0.32317, 0.36399, 0.40179, 0.43714, 0.47048)
ATTEMPTS = ((0.1, 1.111), (0.5, 1.875), (1.0, 4.0))
COVERED = ((1, 2.259e-10), (4, 4.887e-4), (16, 0.35935))


class WindowCounter:
    """So many per clock second: what a rate limit is often made of. At a boundary two windows' worth come at once."""

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self.rate, self.window, self.seen = rate_per_s, -1, 0

    def wait_s(self, cost: float, now: float) -> float | None:
        if int(now) != self.window:
            self.window, self.seen = int(now), 0
        return 0.0 if self.seen < self.rate else self.window + 1.0 - now

    def take(self, cost: float, now: float) -> None:
        self.seen += 1


def rate(kind: type[Gcra] | type[WindowCounter] = Gcra, name: str = "GCRA") -> list[Check]:
    """A bucket of 5 that fills by 10 per second: burst, wait, and what passes in a saturated minute."""
    at_once, bucket = 0, kind(10.0, 5.0)
    while bucket.wait_s(1.0, 0.0) == 0.0:
        bucket.take(1.0, 0.0)
        at_once += 1
    told_s, admitted, now, saturated = bucket.wait_s(1.0, 0.0), 0, 0.0, kind(10.0, 5.0)
    while now < 60.0 - 1e-6:
        wait_s = saturated.wait_s(1.0, now)
        if wait_s == 0.0:
            saturated.take(1.0, now)
            admitted += 1
        else:
            now += wait_s or 0.0
    return [near(RATE, name, "admitted at once", 5, at_once, 0.0, 5), near(RATE, name, "told to wait", 0.1, told_s or 0.0, 1e-9, 1, "s"),
            near(RATE, name, "admitted in [0, 60) s", 604, admitted, 0.0, 604)]


def rate_by_windows() -> list[Check]:
    """The naive variant: it lets twice as many pass around the turn of a second."""
    return rate(WindowCounter, "a counter per clock second")[:2]


def delay() -> list[Check]:
    """Looked at every 0.1 ms."""
    queue = CoDelQueue(FifoQueue(), CoDel())
    queue.offer([QueueItem(f"r{n}", Group("a"), arrived_at=0.0) for n in range(40)], 0.0)
    drops: list[float] = []
    for tick in range(10_000):
        drops += [tick * 1e-4] * len(queue.shed(tick * 1e-4))
    return [near(DELAY, "CoDel", f"drop {n}, after the first", want, got - drops[0], 2e-4, 1, "s")
            for n, (want, got) in enumerate(zip(DROPS_S, drops), 1)]


def again(requests: int = 6000) -> list[Check]:
    """Attempts per request of a control that tries up to four times, by the share of attempts that fail."""
    out = []
    for failing, want in ATTEMPTS:
        control, rng, attempts = default_control(["x"], settings=ControlSettings(attempts=4)), Random(3), 0
        for replica in "abcd":
            control.handle(ReplicaReady(replica, "x", slots=8), 0.0)
        for i in range(requests):
            effects = list(control.handle(Arrived(Request(f"r{i}", "t", "m", 0, float(i), 1, 1)), float(i)))
            while effects:
                effect = effects.pop()
                if isinstance(effect, Dispatch):
                    attempts += 1
                    key = (effect.request.id, effect.dispatch, effect.replica)
                    fails = rng.random() < failing
                    effects.extend(control.handle(Failed(*key, "provider_failure", "boom") if fails else Finished(*key, 1), float(i)))
                assert not isinstance(effect, Close) or failing > 0
        out.append(within(AGAIN, f"an attempt fails with probability {failing:g}", "mean attempts", want, attempts / requests, 0.02, requests))
    return out


def shards(hands: int = 2000) -> list[Check]:
    """64 queues, hands of 8: is a light flow's hand held by heavy ones as a whole?"""
    what = "64 queues, a hand of 8"
    out = [within(SHARDS, f"{what}, {heavy} heavy", "chance that a light one is covered", want, chance_covered(heavy), 2e-4, 1)
           for heavy, want in COVERED]
    covered = sum({q for k in range(16) for q in hand_of(f"heavy-{i}-{k}")}.issuperset(hand_of(f"light-{i}")) for i in range(hands))
    return [*out, near(SHARDS, f"{what}, 16 heavy", "share of dealt hands that are covered", 0.35935, covered / hands, 0.033, hands)]
