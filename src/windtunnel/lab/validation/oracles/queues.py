"""Order of service with known sizes or classes, through the real control and driver: shortest first, classes, and a plain line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from windtunnel.lab.stats import batch_means
from windtunnel.lab.validation.check import Check, near, statistical
from windtunnel.lab.validation.laws import EXP
from windtunnel.lab.validation.queueing import CUT, Case
from windtunnel.lab.validation.station import Flown, fly
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.sim.service import ServiceConfig

SIZES, CLASSES = "Sizes known beforehand, M/M/1", "Two classes, exponential service of mean 1 s"
MEAN_S = {0.8: {"fcfs": 5.0, "sjf": 2.882219, "srpt": 2.352773}, 0.9: {"fcfs": 10.0, "sjf": 4.196866, "srpt": 3.552066}}
NAMES = {"fcfs": "first come, first served", "sjf": "shortest first", "srpt": "shortest remaining first", "priority": "classes, not preemptive"}
WAITS_S = {0: 1.142857, 1: 5.714286}
SHARES = {"interactive": 0.375, "batch": 0.625}
SERIES = ("ids", "arrived_s", "ended_s", "wait_s", "sojourn_s", "service_s", "priority", "done")
TOTAL_S = 3.2  # Σ ρ·Wq of any order that never idles


def steady(discipline: str, rate: float, n: int, priorities: Mapping[str, float] | None = None, seed: int = 11) -> Flown:
    """A flight without its first twentieth."""
    case = Case("", rate, EXP, ServiceConfig(1, discipline), {}, n, priorities=priorities, seed=seed)  # type: ignore[arg-type]
    f = fly(case.source(), case.engine, router=LeastOutstanding(pools=("p",)))
    cut = int(len(f.ids) * CUT)
    return replace(f, **{name: getattr(f, name)[cut:] for name in SERIES})


def sizes(rho: float = 0.8, n: int = 1_000_000, disciplines: tuple[str, ...] = ("fcfs", "sjf", "srpt")) -> list[Check]:
    """Mean sojourn of M/G/1 by discipline."""
    return [_sojourn(discipline, MEAN_S[rho][discipline], rho, n) for discipline in disciplines]


def sizes_ignored(n: int = 400_000) -> list[Check]:
    """A plain line, held against what shortest first gives."""
    return [_sojourn("fcfs", MEAN_S[0.8]["sjf"], 0.8, n)]


def _sojourn(discipline: str, want: float, rho: float, n: int) -> Check:
    f = steady(discipline, rho, n)
    return statistical(SIZES, f"{NAMES[discipline]}, ρ {rho:g}", "mean sojourn", want, batch_means(f.sojourn_s), len(f.ids), loose=True, unit="s")


def classes(discipline: str = "priority", n: int = 500_000) -> list[Check]:
    """Mean waits of two priority classes, and the conservation of Σ ρ·wait."""
    f = steady(discipline, 0.8, n, SHARES)
    out = []
    for name, of in (("interactive", 0), ("batch", 1)):
        waits = f.wait_s[f.priority == of]
        out.append(statistical(CLASSES, NAMES[discipline], f"mean wait, {name}", WAITS_S[of], batch_means(waits), len(waits), loose=True, unit="s"))
    total = sum(rate * float(f.wait_s[f.priority == of].mean()) for of, rate in ((0, 0.3), (1, 0.5)))
    return [*out, near(CLASSES, NAMES[discipline], "Σ ρ·wait, the same for any order", TOTAL_S, total, 0.03 * TOTAL_S * (1e6 / n) ** 0.5, n, "s")]


def classes_ignored(n: int = 400_000) -> list[Check]:
    """The naive variant: first come, first served."""
    return classes("fcfs", n)[:2]
