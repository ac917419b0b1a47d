"""Faults as data: what breaks, when, where and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import count
from math import inf
from typing import Annotated, Literal, get_args

import numpy as np

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number
from windtunnel.sources.seeding import generator
from windtunnel.sources.surge import Surge

Kind = Literal["crash", "spot", "slow", "pause", "boot_slow", "boot_fail", "errors", "metrics_delay", "metrics_drop", "metrics_freeze", "clock",
               "load", "link"]
KINDS: tuple[str, ...] = get_args(Kind)
_TARGET = ("pool", "replicas", "fraction", "count")
_MEANS: dict[str, tuple[str, ...]] = {  # what a fault of each kind reads, beside when it happens
    "crash": (*_TARGET, "restart"), "spot": (*_TARGET, "notice_s", "unavailable_s"), "slow": (*_TARGET, "for_s", "factor"),
    "pause": (*_TARGET, "for_s"), "boot_slow": ("pool", "for_s", "factor"), "boot_fail": ("pool", "for_s", "p"),
    "errors": (*_TARGET, "for_s", "p", "status", "after"), "metrics_delay": (*_TARGET, "for_s", "delay_s"),
    "metrics_drop": (*_TARGET, "for_s", "p"), "metrics_freeze": (*_TARGET, "for_s"), "clock": (*_TARGET, "for_s", "step_s"),
    "load": ("for_s", "factor", "tenant"), "link": (*_TARGET, "for_s", "factor", "down", "timeout_s"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. When: `at_s`, or again and again `every_s`, or at random `rate_per_h`; it lasts `for_s` (None: for good).

    Where: `pool` ("": all) and, of its ready replicas, ordinals in `replicas`, a `fraction`, or `count` at random; none given: all of them.
    """

    kind: Annotated[Kind, Param(choices=KINDS, label="kind", help="what breaks")]
    at_s: Annotated[float | None, Param(0, 86400, 1, "s", "at", "when it happens")] = None
    every_s: Annotated[float | None, Param(1, 86400, 1, "s", "every", "it comes back after so long")] = None
    rate_per_h: Annotated[float | None, Param(0, 3600, 0.1, "1/h", "rate", "it comes at random, so often")] = None
    for_s: Annotated[float | None, Param(0, 86400, 1, "s", "for", "how long it lasts; left out: for good")] = None
    pool: Annotated[str, Param(label="pool", help="where; left out: every pool")] = ""
    replicas: tuple[int, ...] = ()
    fraction: Annotated[float | None, Param(0, 1, 0.05, label="fraction", help="share of the ready replicas")] = None
    count: Annotated[int | None, Param(1, 1000, 1, label="count", help="so many ready replicas at random")] = None
    factor: Annotated[float, Param(0.1, 20, 0.1, label="factor", help="slow: steps; boot_slow: boots; load: arrivals; link: bandwidth")] = 2.0
    p: Annotated[float, Param(0, 1, 0.01, label="p", help="errors, boot_fail, metrics_drop: how often")] = 1.0
    status: Annotated[int, Param(400, 599, 1, label="status", help="errors: the HTTP status of the reply")] = 503
    after: Annotated[Literal["accept", "first_token"], Param(choices=("accept", "first_token"), label="after", help="errors: when")] = "accept"
    step_s: Annotated[float, Param(-60, 60, 1, "s", "clock step", "clock: by how much the replica's timestamps are off")] = 5.0
    tenant: Annotated[str, Param(label="tenant", help="load: whose arrivals; left out: all")] = ""
    notice_s: Annotated[float, Param(0, 600, 1, "s", "notice", "spot: warning before the replica is taken")] = 120.0
    unavailable_s: Annotated[float, Param(0, 86400, 1, "s", "unavailable", "spot: how long until another one can be had")] = 180.0
    delay_s: Annotated[float, Param(0, 600, 0.5, "s", "delay", "metrics_delay: how late scrapes arrive")] = 5.0
    down: Annotated[bool, Param(label="down", help="link: nothing passes, whatever the factor")] = False
    timeout_s: Annotated[float, Param(0, 600, 1, "s", "timeout", "link: transfers that stand still so long have failed")] = 30.0
    restart: Annotated[bool, Param(label="restart", help="crash: the pool boots another one")] = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigValueError("kind", f"expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.at_s is None and self.every_s is None and self.rate_per_h is None:
            raise ConfigValueError("at_s", "a fault needs at_s, every_s or rate_per_h")
        for name in ("at_s", "notice_s", "unavailable_s", "delay_s", "timeout_s"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), lo=0.0)
        for name in ("every_s", "rate_per_h", "for_s", "factor"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0)
        check_number("p", self.p, lo=0.0, hi=1.0)
        check_number("step_s", self.step_s)
        if self.after not in ("accept", "first_token"):
            raise ConfigValueError("after", f"expected accept or first_token, got {self.after!r}")
        check_number("status", self.status, lo=400, hi=599, whole=True)
        if self.fraction is not None:
            check_number("fraction", self.fraction, lo=0.0, hi=1.0)
        if self.count is not None:
            check_number("count", self.count, lo=1, whole=True)
        for ordinal in self.replicas:
            check_number("replicas", ordinal, lo=0, whole=True)
        self._refuse_ignored()

    def _refuse_ignored(self) -> None:
        """What this fault would not read must not be given: nobody would see that it does nothing."""
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        for name in given:
            if name not in ("kind", "at_s", "every_s", "rate_per_h", *_MEANS[self.kind]):
                raise ConfigValueError(name, f"means nothing for a fault of kind {self.kind}; it reads {', '.join(_MEANS[self.kind])}")
        for names in (("every_s", "rate_per_h"), ("replicas", "fraction", "count")):
            both = [name for name in names if name in given]
            if len(both) > 1:
                raise ConfigValueError(both[1], f"stands beside {both[0]}; write one of them")
        if self.kind == "link" and not self.down and self.factor >= 1.0:
            raise ConfigValueError("factor", f"expected the share of the bandwidth that is left, below 1, or down: true, got {self.factor:g}")

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        """Run seconds at which it happens, ascending; endless for faults that come back."""
        if self.every_s is None and self.rate_per_h is None:
            yield float(self.at_s or 0.0)
            return
        at = float(self.at_s or 0.0) if self.every_s is not None else float(self.at_s or 0.0) + rng.exponential(3600.0 / (self.rate_per_h or 1.0))
        while True:
            yield at
            at += self.every_s if self.every_s is not None else float(rng.exponential(3600.0 / (self.rate_per_h or 1.0)))


def surges_of(faults: Sequence[Fault], *, seed: int, replication: int, until_s: float | None) -> list[Surge]:
    """The windows of the `load` faults, at the times at which `Faults` notes them. until_s None: of a fault that comes back, the first 1000."""
    out = []
    for n, fault in enumerate(faults):
        if fault.kind != "load":
            continue
        for at, _ in zip(fault.times(generator(seed, f"fault/{n}", replication)), range(1000) if until_s is None else count()):
            if until_s is not None and at >= until_s:
                break
            out.append(Surge(at, inf if fault.for_s is None else at + fault.for_s, fault.factor, fault.tenant))
    return out
