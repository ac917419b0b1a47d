"""Queueing models with known answers, flown through the real control and driver.

Expected values are closed forms or numerical solutions of the models (mean service time 1 s); each case flies alone, so that they can be
spread over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from windtunnel.lab.stats import batch_means
from windtunnel.lab.validation.check import Check, exact, statistical, within
from windtunnel.lab.validation.laws import ERLANG2, EXP, H2, LAWS, LOGNORMAL, PARETO, D, U
from windtunnel.lab.validation.pathwise import kiefer_wolfowitz, lindley, processor_sharing
from windtunnel.lab.validation.station import Floats, Flown, fly
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.routing.roundrobin import RoundRobin
from windtunnel.sim.service import MANY, ServiceConfig
from windtunnel.sources.arrivals import ArrivalSource
from windtunnel.sources.closed import ThinkingClients
from windtunnel.sources.dist import Const, Dist, Exponential
from windtunnel.sources.source import Source

PATHWISE, STEADY = "Queueing, request by request", "Queueing, steady state"
CUT = 0.05  # share of the run, from its start, that is left out as warm-up
ONE = Const(1.0)


@dataclass(frozen=True, slots=True)
class Case:
    """A model: Poisson arrivals at `rate`, `law` of service, an engine (or several behind a router), and what theory says.

    n: departures; limit: in flight at most, the rest waits in the control; clients, think_s: a closed loop instead of Poisson arrivals.
    expected: by metric, see `METRICS`; fast: in the short selection.
    """

    name: str
    rate: float
    law: Dist
    engine: ServiceConfig
    expected: Mapping[str, float]
    n: int = 400_000
    limit: int | None = None
    replicas: int = 1
    router: str = "least"
    priorities: Mapping[str, float] | None = None
    patience_s: Dist | None = None
    clients: int | None = None
    think_s: Dist | None = None
    fast: bool = False
    slow: bool = False
    seed: int = 11

    def source(self) -> Source:
        if self.clients is not None:
            assert self.think_s is not None
            return ThinkingClients(self.clients, self.think_s, count=self.n, input_tokens=ONE, output_tokens=ONE, service_s=self.law, rng=self.seed)
        return ArrivalSource(self.rate, input_tokens=1, output_tokens=1, service_s=self.law, patience_s=self.patience_s, count=self.n,
                             priorities=self.priorities or {"interactive": 1.0}, rng=self.seed)


def _s(servers: int = 1, **more: object) -> ServiceConfig:
    return ServiceConfig(servers, **more)  # type: ignore[arg-type]


CASES = (
    Case("M/M/1 ρ .5", 0.5, EXP, _s(), {"W": 2, "Wq": 1, "W p95": 5.99146, "W p99": 9.21034, "Wq p95": 4.60517}, fast=True),
    Case("M/M/1 ρ .8", 0.8, EXP, _s(), {"W": 5, "Wq": 4, "W p95": 14.97866, "W p99": 23.02585, "Wq p95": 13.86294}, 1_000_000),
    Case("M/M/1 ρ .8, waiting in the control", 0.8, EXP, _s(), {"W": 5, "Wq": 4}, 1_000_000, limit=1, seed=12),
    Case("M/M/1 ρ .9", 0.9, EXP, _s(), {"W": 10, "W p99": 46.0517}, 4_000_000, slow=True),
    Case("M/M/4 λ 3.2", 3.2, EXP, _s(4), {"P(wait)": 0.5964325, "Wq": 0.7455406, "Wq p99": 5.110476}, 1_000_000),
    Case("M/M/8 λ 7.2", 7.2, EXP, _s(8), {"P(wait)": 0.7015330, "Wq": 0.8769162, "Wq p99": 5.313354}, 4_000_000, slow=True),
    Case("M/M/64 λ 60", 60, EXP, _s(64), {"W": 1.1267166}, 600_000),
    Case("M/D/1 ρ .8", 0.8, D, _s(), {"Wq": 2, "Wq p95": 6.62032}, 400_000),
    Case("M/D/4 λ 3.2", 3.2, D, _s(4), {"Wq": 0.3860949}, 300_000, limit=4),
    Case("M/E2/1 ρ .8", 0.8, ERLANG2, _s(), {"Wq": 3}, 300_000),
    Case("M/U/1 ρ .8", 0.8, U, _s(), {"Wq": 2.666667}, 250_000),
    Case("M/H2/1 ρ .8", 0.8, H2, _s(), {"Wq": 10}, 4_000_000, slow=True),
    Case("M/LN/1 ρ .7", 0.7, LOGNORMAL, _s(), {"Wq": 3.5}, 4_000_000, slow=True),
    Case("M/Pareto/1 ρ .7", 0.7, PARETO, _s(), {"Wq": 12.698933}, 10_000_000, slow=True),
    *(Case(f"loss M/{law}/{c}/{c} a {a:g}", a, LAWS[law], _s(c, capacity=c), {"P(refused)": p}, n, fast=fast) for law, c, a, p, n, fast in (
        ("Exp", 1, 0.8, 0.4444444, 100_000, False), ("H2 cv² 4", 4, 3.0, 0.2061069, 300_000, False),
        ("D", 10, 8.0, 0.1216611, 300_000, True), ("lognormal cv² 2", 64, 60.0, 0.0603627, 2_000_000, False))),
    Case("M/M/1/5 λ .8", 0.8, EXP, _s(1, capacity=5), {"P(refused)": 0.0888195, "Wq": 1.563065}, 400_000),
    Case("M/M/1/10 λ 2", 2, EXP, _s(1, capacity=10), {"P(refused)": 0.5002443, "Wq": 8.009775}, 200_000),
    Case("M/M/4/10 λ 5", 5, EXP, _s(4, capacity=10), {"P(refused)": 0.2300243, "Wq": 0.910739}, 300_000),
    Case("M/M/8/32 λ 8", 8, EXP, _s(8, capacity=32), {"P(refused)": 0.0354045, "Wq": 1.376398}, 2_500_000, slow=True),
    Case("M/M/100+M λ 110 θ 1", 110, EXP, _s(100), {"P(abandon)": 0.0991916, "Lq": 10.91107}, 1_300_000, limit=100, patience_s=EXP),
    Case("M/M/10+M λ 12 θ .1", 12, EXP, _s(10), {"P(abandon)": 0.1697523, "Lq": 20.37028}, 700_000, limit=10, patience_s=Exponential(10.0)),
    Case("M/M/4+M λ 8 θ .5", 8, EXP, _s(4), {"P(abandon)": 0.5015587, "Lq": 8.024940}, 200_000, limit=4, patience_s=Exponential(2.0)),
    *(Case(f"M/{name}/1-PS ρ .7", 0.7, law, _s(discipline="ps"), {"W": 3.333333}, n, fast=name == "D")
      for name, law, n in (("D", D, 400_000), ("Exp", EXP, 500_000), ("H2 cv² 4", H2, 900_000), ("lognormal cv² 2", LOGNORMAL, 900_000))),
    Case("M/M/∞ λ 2, S 10", 2, Exponential(10.0), _s(MANY), {"mean N": 20, "var N": 20, "P(N > 30)": 0.0134747}, 1_000_000),
    *(Case(f"closed loop {c} clients, think {z:g}", 0.0, EXP, _s(), {"1/X": 1 / x, "W": r}, n, clients=c, think_s=Exponential(z), fast=c == 5)
      for c, z, x, r, n in ((5, 4.0, 0.8009331, 2.242718, 200_000), (20, 10.0, 0.9981310, 10.037451, 200_000), (50, 20.0, 1.0, 30.0, 200_000))),
    Case("priority λ (.3, .5)", 0.8, EXP, _s(discipline="priority"), {"Wq interactive": 1.142857, "Wq batch": 5.714286}, 500_000,
         priorities={"interactive": 0.375, "batch": 0.625}),
    Case("preemptive priority λ (.3, .5)", 0.8, EXP, _s(discipline="preemptive"), {"W interactive": 1.428571, "W batch": 7.142857}, 1_000_000,
         priorities={"interactive": 0.375, "batch": 0.625}),
    Case("SJF ρ .8", 0.8, EXP, _s(discipline="sjf"), {"W": 2.882219}, 300_000),
    Case("SRPT ρ .8", 0.8, EXP, _s(discipline="srpt"), {"W": 2.352773}, 300_000),
    *(Case(f"bulk D, λ {lam:g}, K {k}", lam, D, _s(batch=k), {"Wq": wq, "mean batch": b}, 300_000, fast=lam == 4)
      for lam, k, wq, b in ((4.0, 8, 0.507053, 4.0179), (6.4, 8, 0.651838, 6.4011), (12.8, 16, 0.552548, 12.8))),
    Case("start after empty 5 s, λ .5", 0.5, EXP, _s(setup_s=5.0), {"W": 5.214286, "P(cold)": 0.142857}, 300_000, fast=True),
    Case("start after empty Exp(5), λ .5", 0.5, EXP, _s(setup_s=Exponential(5.0)), {"W": 7.0, "P(cold)": 0.142857}, 500_000),
    Case("round robin over 2, ρ .9", 1.8, EXP, _s(), {"W": 7.588284}, 4_000_000, replicas=2, router="round", slow=True),
    Case("shortest queue of 2, ρ .9", 1.8, EXP, _s(), {"W": 5.474913}, 4_000_000, replicas=2, slow=True),
)

Series = tuple[Floats, float | None]  # observations in order, and the quantile if it is one
LOOSE = ("Wq", "p95", "p99", "Lq", "var", "P(N")


def _series(f: Flown, metric: str, case: Case) -> Series:
    done, of = f.done, {"interactive": 0, "batch": 1}
    name, _, rest = metric.partition(" ")
    if rest in of and name in ("W", "Wq"):
        chosen = done & (f.priority == of[rest])
        return (f.wait_s if name == "Wq" else f.sojourn_s)[chosen], None
    if name in ("W", "Wq"):
        return (f.wait_s if name == "Wq" else f.sojourn_s)[done], float(rest[1:]) / 100 if rest else None
    if metric in ("P(refused)", "P(abandon)"):
        return (~done).astype(float), None
    if metric == "P(wait)":
        return (f.wait_s[done] > 1e-12).astype(float), None
    return OTHER[metric](f, case), None


def _in_queue(f: Flown, case: Case) -> Floats:
    """Lq = arrivals per second × mean seconds in the queue, abandoned ones included."""
    waited: Floats = np.where(f.done, f.wait_s, f.sojourn_s) * case.rate
    return waited


def _between(f: Flown, case: Case) -> Floats:
    """Seconds between one completion and the next: the reciprocal of the throughput."""
    gaps: Floats = np.diff(f.ended_s)
    return gaps


def _present(f: Flown) -> Floats:
    """How many are there, looked at every 5 s."""
    at = np.arange(f.arrived_s.min(), f.arrived_s.max(), 5.0)
    there: Floats = (np.searchsorted(np.sort(f.arrived_s), at) - np.searchsorted(np.sort(f.ended_s), at)).astype(float)
    return there


def _batches(f: Flown, case: Case) -> Floats:
    """Members of each batch: requests that ended at the same instant."""
    _, members = np.unique(f.ended_s, return_counts=True)
    return members.astype(float)


def _cold(f: Flown, case: Case) -> Floats:
    """Did a request find the server empty, so that it had to be started?"""
    f = f.in_order_of_arrival()
    before = np.concatenate(([-1.0], np.maximum.accumulate(f.ended_s)[:-1]))
    cold: Floats = (f.arrived_s > before).astype(float)
    return cold


OTHER: dict[str, Callable[[Flown, Case], Floats]] = {
    "Lq": _in_queue, "1/X": _between, "mean N": lambda f, c: _present(f), "var N": lambda f, c: (_present(f) - _present(f).mean()) ** 2,
    "P(N > 30)": lambda f, c: (_present(f) > 30).astype(float), "mean batch": _batches, "P(cold)": _cold,
}


def run_case(case: Case, n: int | None = None) -> list[Check]:
    """Fly it (with n departures instead of its own number) and hold every metric against theory, Little's law and utilisation too."""
    if n is not None:
        case = replace(case, n=n)
    router = RoundRobin(pools=("p",)) if case.router == "round" else LeastOutstanding(pools=("p",))
    f = fly(case.source(), case.engine, replicas=case.replicas, limit=case.limit, router=router)
    cut = int(len(f.ids) * CUT)
    steady = Flown(*(getattr(f, name)[cut:] for name in ("ids", "arrived_s", "ended_s", "wait_s", "sojourn_s", "service_s", "priority", "done")))
    checks = []
    for metric, value in case.expected.items():
        values, quantile = _series(steady, metric, case)
        found = batch_means(values, quantile=quantile)
        checks.append(statistical(STEADY, case.name, metric, float(value), found, len(values), loose=any(w in metric for w in LOOSE)))
    return [*checks, *conservation(f, case)]


def conservation(f: Flown, case: Case) -> list[Check]:
    """Little's law and utilisation over the whole run. L and the busy servers are what gauges of control and engines showed, not sums of waits."""
    n, span = len(f.ids), float(f.ended_s.max())
    rate = n / span
    present = f.gauges["waiting"] + f.gauges["in_flight"]
    checks = [within(STEADY, case.name, "L = λW", rate * float(f.sojourn_s.mean()), present, 0.01, n, note="gauges against waits")]
    engine = case.engine
    if engine.discipline != "ps" and engine.batch is None and engine.setup_s is None and engine.servers != MANY:
        servers = engine.servers * case.replicas
        offered = rate * float(f.service_s[f.done].sum()) / n / servers
        checks.append(within(STEADY, case.name, "U = λE[S]/c", offered, f.gauges["running"] / servers, 0.01, n, note="gauges against work"))
    return checks


@dataclass(frozen=True, slots=True)
class Path:
    """A queue whose every wait is calculated a second time by a recursion."""

    law: str
    rho: float
    servers: int = 1
    discipline: str = "fcfs"
    in_control: bool = False

    @property
    def name(self) -> str:
        where = ", waiting in the control" if self.in_control else ""
        return f"M/{self.law}/{self.servers} {self.discipline} ρ {self.rho:g}{where}"


PATHS = (
    *(Path(law, rho) for law, rho in zip(LAWS, (0.8, 0.95, 0.9, 0.7, 0.8, 0.7, 0.5))),
    *(Path(law, rho, servers) for law, rho, servers in (("Exp", 0.95, 4), ("D", 0.9, 16), ("H2 cv² 4", 0.8, 8), ("bounded Pareto 1.5", 0.7, 64))),
    Path("Exp", 0.9, 1, in_control=True), Path("lognormal cv² 2", 0.8, 4, in_control=True),
    *(Path(law, 0.8, 1, "ps") for law in ("Exp", "D", "H2 cv² 4")),
)


def run_path(path: Path, n: int = 50_000, seed: int = 5) -> list[Check]:
    """The largest difference between the simulator's waits (ends, if the server is shared) and the recursion's, over all requests."""
    source = ArrivalSource(path.rho * path.servers, input_tokens=1, output_tokens=1, service_s=LAWS[path.law], count=n, rng=seed)
    engine = ServiceConfig(path.servers, path.discipline)
    f = fly(source, engine, limit=path.servers if path.in_control else None).in_order_of_arrival()
    if path.discipline == "ps":
        worst = np.abs(f.ended_s - processor_sharing(f.arrived_s, f.service_s)).max()
    elif path.servers == 1:
        worst = np.abs(f.wait_s - lindley(f.arrived_s, f.service_s)).max()
    else:
        worst = np.abs(f.wait_s - kiefer_wolfowitz(f.arrived_s, f.service_s, path.servers)).max()
    whole = len(f.ids) == n and bool(f.done.all())
    allowed_s = max(1e-9, 64 * float(np.spacing(f.ended_s.max())))  # late ends are floats of coarser steps
    return [exact(PATHWISE, path.name, "wait" if path.discipline == "fcfs" else "end", float(worst) if whole else float("inf"), allowed_s, n)]
