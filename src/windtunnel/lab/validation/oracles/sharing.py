"""Token fairness on a batch server: throughput, waits, the bound on the gap of service, and what a line and counted requests do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from statistics import median

from windtunnel.lab.validation.check import Check, between, shown, within
from windtunnel.lab.validation.oracles.batch_server import POOL, W_OUT, BatchServer, Sent, Served, evenly
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.vtc import Vtc, VtcQueue

TWO, FOUR, LIGHT, UNEQUAL = ("Token fairness, two clients of 1.5 and 3 rps", "Token fairness by weight", "A light client beside a heavy one",
                             "Token fairness, long requests beside short ones")
MEMBERS = 8
BOUND = 2 * W_OUT * POOL  # twice what the pool can hold, in service
Make = Callable[[], Queue]


def vtc() -> VtcQueue:
    """The queue under test, output tokens weighted by W_OUT."""
    return VtcQueue(Vtc(w_out=W_OUT))


def fly(queue: Queue, rates: Mapping[str, float], until_s: float, member: int, *, stop_s: float | None = None,
        weights: Mapping[str, float] | None = None, look_at_s: Sequence[float] = ()) -> Served:
    """One member: phases and jitter of its own."""
    rng = Random(member)
    return BatchServer(queue, evenly(rates, until_s, rng), rng, weights=weights, look_at_s=look_at_s).serve(stop_s)


def two(members: int = MEMBERS) -> list[Check]:
    """Medians over members: phases that lock in with the steps give a member far from the others now and then."""
    flown = [fly(vtc(), {"modest": 1.5, "greedy": 3.0}, 360.0, m) for m in range(members)]
    rows = (("throughput, tokens in and out", 897.0, [x.tokens / x.end_s for x in flown], 0.02, "tok/s"),
            ("mean TTFT, modest client", 123.5, [x.mean_ttft_s("modest") for x in flown], 0.03, "s"),
            ("mean TTFT, greedy client", 351.0, [x.mean_ttft_s("greedy") for x in flown], 0.03, "s"))
    name = "virtual token counter"
    out = [within(TWO, name, metric, want, median(got), rel, members, unit, "median of the members") for metric, want, got, rel, unit in rows]
    return [*out, _gap(TWO, name, max(x.gap for x in flown), members)]


def two_in_line(members: int = MEMBERS) -> list[Check]:
    """The gap of a line grows by a third of all service, for ever."""
    flown = [fly(FifoQueue(), {"modest": 1.5, "greedy": 3.0}, 600.0, m, stop_s=601.0, look_at_s=(300.0, 600.0)) for m in range(members)]
    return [_gap(TWO, "first come, first served", min(x.gap for x in flown), members)]


def line_grows(members: int = MEMBERS) -> list[Check]:
    """What the gap of a line must be: the greedy client sends two of three requests, so it gets two thirds."""
    flown = [fly(FifoQueue(), {"modest": 1.5, "greedy": 3.0}, 600.0, m, stop_s=601.0, look_at_s=(300.0, 600.0)) for m in range(members)]
    share = [sum(x.service.values()) / 3 for x in flown]
    gap, half = median(x.gap_at[600.0] for x in flown), median(x.gap_at[300.0] for x in flown)
    name = "first come, first served"
    return [within(TWO, name, "gap after 600 s, a third of the service", median(share), gap, 0.05, members, "tokens"),
            between(TWO, name, "gap after 600 s over that after 300 s", 1.9, 2.1, gap / half, members),
            shown(TWO, name, "gap after 600 s, as published", 243_000.0, gap, members, "tokens", "its share of 600 s is not stated")]


def four(members: int = 2) -> list[Check]:
    """Weights 1 to 4, everybody backlogged."""
    weights = {c: float(n) for n, c in enumerate("abcd", 1)}
    flown = [fly(vtc(), dict.fromkeys("abcd", 4.0), 300.0, m, stop_s=300.0, weights=weights) for m in range(members)]
    out = []
    for client, weight in weights.items():
        share = [x.backlogged[client] / sum(x.backlogged.values()) for x in flown]
        out.append(within(FOUR, f"client of weight {weight:g} of 10", "share of the service", weight / 10, median(share), 0.07, members))
    return out


def light(make: Make = vtc, want: float = 4.8, name: str = "virtual token counter", members: int = 3,
          stop_s: float | None = 630.0) -> list[Check]:
    """0.2 beside 10 requests per second for 600 s; stop_s None: until all are served (the light client's are long before that)."""
    got = median(fly(make(), {"light": 0.2, "heavy": 10.0}, 600.0, m, stop_s=stop_s).mean_ttft_s("light") for m in range(members))
    return [within(LIGHT, name, "mean TTFT of the light client", want, got, 0.10, members, "s", "median of the members")]


def light_elsewhere(members: int = 3) -> list[Check]:
    """The two ends of the scale."""
    alone = median(fly(vtc(), {"light": 0.2}, 600.0, m).mean_ttft_s("light") for m in range(members))
    return [*light(FifoQueue, 1460.0, "first come, first served: as a line does", members, None),
            within(LIGHT, "alone", "mean TTFT of the light client", 0.08, alone, 0.10, members, "s")]


def light_in_line(members: int = 2) -> list[Check]:
    """The naive variant: one line for all tenants."""
    return light(FifoQueue, 4.8, "first come, first served", members)


def unequal(make: Make = vtc, name: str = "virtual token counter", members: int = 4) -> list[Check]:
    """Both always wait; one sends 512 in and 512 out, the other 64 and 32."""
    gaps = []
    for m in range(members):
        rng = Random(m)
        sends = sorted([Sent(rng.random() + 0.5 * n, "long", 512, 512) for n in range(600)] + [Sent(0.05 * n, "short", 64, 32) for n in range(6000)],
                       key=lambda s: s.at_s)
        gaps.append(BatchServer(make(), sends, rng).serve(300.0).gap)
    worst = max(gaps) if name == "virtual token counter" else min(gaps)
    return [_gap(UNEQUAL, name, worst, members)]


def unequal_counted() -> list[Check]:
    """Start-time fair queueing that counts each request as one."""
    return unequal(FairTaskQueue, "requests counted, not tokens", 2)


def _gap(section: str, what: str, gap: float, members: int) -> Check:
    return between(section, what, "largest gap of service while all wait", -math.inf, BOUND, gap, members, "tokens")
