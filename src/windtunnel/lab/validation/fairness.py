"""Token fairness as published (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): two clients, one of them greedy.

The engine of the paper's artifact: whole prompts first (at most 3072 tokens a batch, ten decode steps between admissions), a KV pool of 10 000
tokens of which a request is admitted only if everybody can finish, decode steps of 23.5 ms + 2.2 µs per resident token, prefills of
10 ms + 0.21 ms per token. Each request is 256 tokens in and 256 out; clients send at even distances, each with a phase of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from windtunnel import effects as fx
from windtunnel import events as ev
from windtunnel.events import Request, Truth
from windtunnel.lab.stats import mean_interval
from windtunnel.lab.validation.check import Check, shown
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.fair import Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.vtc import Vtc, VtcQueue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.sim.driver import SimDriver
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.stepmodels.model import Batch, Provenance
from windtunnel.sources.source import Loop

SECTION = "Token fairness as published (VTC)"
TOKENS, POOL, PER_BATCH = 256, 10_000, 3072
W_OUT = 2.0
MEMBERS = 16
TWO = {"modest": 1.5, "greedy": 3.0}
THREE = {"a": 0.25, "b": 0.5, "c": 1.5}
GAP_BOUND = 40_000.0  # 2 · max(w_in · input, w_out · tokens in the pool)
JITTER = 0.0087  # of step times, as ± 1.5 % drawn evenly has
RESIDENT = POOL // (TOKENS + TOKENS // 2)  # held by the pool on average: so many go on to the engine


@dataclass(frozen=True)
class Steps:
    """Step seconds of the paper's engine: prefill-only and decode-only steps have laws of their own."""

    provenance: Provenance = field(default_factory=lambda: Provenance("VTC engine", "A10G", "step times of the artifact"))

    def seconds(self, b: Batch) -> float:
        return self.run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        if b.prefill:
            return 0.010 + 2.1e-4 * sum(chunk for chunk, _ in b.prefill), 0.0, 1
        return 0.0235 + 2.2e-6 * b.decode_kv, 2.2e-6 * b.decode_seqs, k


class Clients:
    """Evenly spaced requests of named clients until `until_s`: an open loop."""

    name = "clients"
    loop: Loop = "open"
    needs: frozenset[str] = frozenset()

    def __init__(self, rates: Mapping[str, float], until_s: float, rng: np.random.Generator) -> None:
        self._sends = sorted((t, who) for who, rate in rates.items() for t in np.arange(rng.random(), rate * until_s) / rate)
        self._sent = False

    def stream(self) -> Any:
        for n, (t, who) in enumerate(self._sends):
            yield Request(f"q-{n}", who, "", 0, float(t), TOKENS, TOKENS, truth=Truth(TOKENS))
        self._sent = True

    def start(self, now: float) -> Sequence[Any]:
        return ()

    def handle(self, what: Any, now: float) -> Sequence[Any]:
        return ()

    def done(self) -> bool:
        return self._sent


class Ledger:
    """Who was served what, and when first tokens came; the gap of service while both clients wait.

    Service: input tokens at the first token, W_OUT per output token as progress tells; clients that do not both wait are not compared.
    """

    def __init__(self) -> None:
        self.arrived: dict[str, tuple[str, float]] = {}
        self.ttft_s: dict[str, list[float]] = {}
        self.served: dict[str, float] = {}
        self.gap = 0.0
        self.end_s = 0.0
        self.tokens = 0
        self._waiting: dict[str, int] = {}
        self._count: dict[str, int] = {}
        self._start: float | None = None

    def step(self, seq: int, now: float, event: ev.Event, effects: Sequence[fx.Effect], verdicts: Any = None) -> None:
        if type(event) is ev.Arrived:
            r = event.request
            self.arrived[r.id] = (r.tenant, now)
            self._waiting[r.tenant] = self._waiting.get(r.tenant, 0) + 1
            self.served.setdefault(r.tenant, 0.0)
        elif type(event) is ev.Progressed:
            for id_, tokens in event.counts:
                self._serve(id_, tokens)
        elif type(event) is ev.Finished:
            who, at = self.arrived[event.request_id]
            self._serve(event.request_id, TOKENS)
            self.ttft_s.setdefault(who, []).append((event.first_token_s or now) - at)
            self.tokens += 2 * TOKENS
            self.end_s = now
        for effect in effects:
            if type(effect) is fx.Dispatch:
                self._waiting[self.arrived[effect.request.id][0]] -= 1
        self._compare()

    def _serve(self, id_: str, tokens: int) -> None:
        before = self._count.get(id_, 0)
        if tokens > before:
            self.served[self.arrived[id_][0]] += W_OUT * (tokens - before) + (TOKENS if not before else 0)
            self._count[id_] = tokens

    def _compare(self) -> None:
        """The difference of what two clients got since both began to wait."""
        if len(self.served) != 2:
            return
        a, b = self.served.values()
        if all(n > 0 for n in self._waiting.values()):
            if self._start is None:
                self._start = a - b
            self.gap = max(self.gap, abs(a - b - self._start))
        else:
            self._start = None

    def error(self, seq: int, now: float, event: ev.Event, error: BaseException) -> None:
        """The driver raises it."""

    def sample(self, now: float, name: str, key: str, value: float) -> None:
        """Not wanted."""

    def note(self, now: float, note: Any) -> None:
        """Not kept."""

    def replica_row(self, row: Mapping[str, Any], /) -> None:
        """Not wanted."""


def serve(queue: Queue, rates: Mapping[str, float], until_s: float, member: int, *, in_flight: int = RESIDENT) -> Ledger:
    """One member of the ensemble: phases and jitter of step times are its own."""
    rng = np.random.default_rng(1000 + member)
    clients = Clients(rates, until_s, rng)
    config = EngineConfig(policy="prefill_first", max_num_seqs=256, max_num_batched_tokens=PER_BATCH, block_size=1, num_blocks=POOL,
                          prefix_cache=False, min_decode_steps=10, admission="peak", noise_cv=JITTER)
    pool = Pool(name="p", model="", gpu="none", engine=config, step_model=Steps())
    lane = Lane("p", queue=queue, admission=RequestAdmission(Fixed(in_flight).build(BuildContext())), router=LeastOutstanding(pools=("p",)),
                pools=("p",), cap=in_flight)
    ledger = Ledger()
    driver = SimDriver(Control(lanes=(lane,), fleet=Fleet()), clients, FleetConfig({"p": pool}), ledger, seed=member, sample_s=1e9)
    driver.advance()
    if driver.error is not None:
        raise driver.error
    return ledger


def vtc() -> VtcQueue:
    """The queue of the paper: weight 1 for input, 2 for output tokens."""
    return VtcQueue(Vtc(w_out=W_OUT))


def run_two_clients(members: int = MEMBERS) -> list[Check]:
    """1.5 and 3 requests per second for 360 s, then until all are served."""
    ledgers = [serve(vtc(), TWO, 360.0, m) for m in range(members)]
    what = "two clients, 1.5 and 3 rps"
    return [
        _near(what, "throughput, tokens in and out", 897.0, [x.tokens / x.end_s for x in ledgers], 0.02, "tok/s"),
        _near(what, "mean TTFT, modest client", 123.5, [float(np.mean(x.ttft_s["modest"])) for x in ledgers], 0.03, "s"),
        _near(what, "mean TTFT, greedy client", 351.0, [float(np.mean(x.ttft_s["greedy"])) for x in ledgers], 0.03, "s"),
        _below(what, "largest gap of service while both wait", GAP_BOUND, [x.gap for x in ledgers], "tokens"),
    ]


def run_three_clients(members: int = MEMBERS) -> list[Check]:
    """0.25, 0.5 and 1.5 requests per second for 600 s: those who ask for less than their share hardly wait."""
    ledgers = [serve(vtc(), THREE, 600.0, m) for m in range(members)]
    what = "three clients, .25, .5 and 1.5 rps"

    def means(who: str) -> list[float]:
        return [float(np.mean(x.ttft_s[who])) for x in ledgers]

    note = "published 3.3 s, not reproduced: its queue sits inside the engine, ours in front of it"
    return [_near(what, "mean TTFT, 1.5 rps", 109.0, means("c"), 0.15, "s"),
            *(shown(SECTION, what, f"mean TTFT, {rate:g} rps", 3.3, float(np.mean(means(who))), members, "s", note)
              for who, rate in (("a", 0.25), ("b", 0.5)))]


def run_limits(members: int = 4) -> list[Check]:
    """How much hangs on the number of requests that are let through to the engine, which the paper's engine does not have."""
    checks = []
    for limit in (20, 24, 25, 26, 27, 28, 40):
        two = [serve(vtc(), TWO, 360.0, m, in_flight=limit) for m in range(members)]
        three = [serve(vtc(), THREE, 600.0, m, in_flight=limit) for m in range(members)]
        rows = (("two clients: throughput", 897.0, [x.tokens / x.end_s for x in two], "tok/s"),
                ("two clients: mean TTFT, modest", 123.5, [float(np.mean(x.ttft_s["modest"])) for x in two], "s"),
                ("three clients: mean TTFT, 1.5 rps", 109.0, [float(np.mean(x.ttft_s["c"])) for x in three], "s"),
                ("three clients: mean TTFT, .25 rps", 3.3, [float(np.mean(x.ttft_s["a"])) for x in three], "s"))
        checks += [shown(SECTION, f"{limit} let through to the engine", metric, expected, float(np.mean(got)), members, unit)
                   for metric, expected, got, unit in rows]
    return checks


def run_first_come() -> list[Check]:
    """The same two clients in one line: the gap grows with the load, far beyond the bound."""
    gap = min(serve(FifoQueue(), TWO, 360.0, m).gap for m in range(2))
    return [Check(SECTION, "the same, first come first served", "largest gap of service while both wait", GAP_BOUND, gap, f"> {GAP_BOUND:g}",
                  gap > GAP_BOUND, 2, "tokens", note="a line must break the bound")]


def _near(what: str, metric: str, expected: float, got: Sequence[float], rel: float, unit: str) -> Check:
    found = mean_interval(got)
    return Check(SECTION, what, metric, expected, found.value, f"± {rel:.0%}", bool(abs(found.value - expected) <= rel * expected), len(got), unit,
                 found.half_width)


def _below(what: str, metric: str, bound: float, got: Sequence[float], unit: str, note: str = "largest of the ensemble") -> Check:
    return Check(SECTION, what, metric, bound, max(got), f"≤ {bound:g}", max(got) <= bound, len(got), unit, note=note)
