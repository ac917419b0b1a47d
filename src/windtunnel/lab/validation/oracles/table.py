"""The oracles of scheduling as one table: expected, got, tolerance; and naive variants that must fail where the real ones pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from joblib import Parallel, delayed

from windtunnel.lab.validation.check import Check
from windtunnel.lab.validation.oracles import gates, limits, queues, sharing

Job = Callable[[], Sequence[Check]]


@dataclass(frozen=True, slots=True)
class Oracle:
    """jobs: must pass; naive: the same measurement of something simpler, which must fail; quick: instead of jobs and naive, in seconds."""

    title: str
    jobs: tuple[Job, ...]
    naive: tuple[Job, ...] = ()
    quick: tuple[tuple[Job, ...], tuple[Job, ...]] | None = None

    def chosen(self, *, short: bool) -> tuple[tuple[Job, ...], tuple[Job, ...]]:
        return self.quick if short and self.quick is not None else (self.jobs, self.naive)


ORACLES: tuple[Oracle, ...] = (
    Oracle(limits.EQUAL, (limits.equal,), (limits.equal_mimd, limits.equal_aiad)),
    Oracle(limits.SAW, (limits.saws,)),
    Oracle(limits.PAUSE, (limits.pauses,)),
    Oracle(limits.REST, (limits.rests,)),
    Oracle(limits.DRIFT, (limits.drifts,)),
    Oracle(limits.LOSS, (limits.losses,)),
    Oracle(gates.RATE, (gates.rate,), (gates.rate_by_windows,)),
    Oracle(gates.DELAY, (gates.delay,)),
    Oracle(gates.AGAIN, (gates.again,)),
    Oracle(gates.SHARDS, (gates.shards,)),
    Oracle(sharing.TWO, (sharing.two, sharing.line_grows), (sharing.two_in_line,),
           ((partial(sharing.two, 3), partial(sharing.line_grows, 1)), (partial(sharing.two_in_line, 1),))),
    Oracle(sharing.FOUR, (sharing.four,)),
    Oracle(sharing.UNEQUAL, (sharing.unequal,), (sharing.unequal_counted,),
           ((partial(sharing.unequal, members=1),), (sharing.unequal_counted,))),
    Oracle(sharing.LIGHT, (sharing.light, sharing.light_elsewhere), (sharing.light_in_line,),
           ((partial(sharing.light, members=1), partial(sharing.light_elsewhere, 1)), (partial(sharing.light_in_line, 1),))),
    Oracle(queues.SIZES, (*(partial(queues.sizes, rho, 1_000_000, (d,)) for rho in (0.8, 0.9) for d in ("fcfs", "sjf", "srpt")),),
           (queues.sizes_ignored,), ((partial(queues.sizes, 0.8, 60_000, ("sjf",)),), (partial(queues.sizes_ignored, 10_000),))),
    Oracle(queues.CLASSES, (queues.classes,), (queues.classes_ignored,),
           ((partial(queues.classes, "priority", 60_000),), (partial(queues.classes_ignored, 10_000),))),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A check, and whether it is a naive variant's."""

    check: Check
    naive: bool

    @property
    def right(self) -> bool:
        """Does it pass if it should, and fail if it should?"""
        return self.check.passed != self.naive

    @property
    def verdict(self) -> str:
        if not self.check.judged:
            return "–"
        return ("fails, as it must" if self.right else "PASSES") if self.naive else ("pass" if self.right else "FAIL")


def measure(*, short: bool = False, processes: int = 1, oracles: Sequence[Oracle] = ORACLES) -> list[Row]:
    """Run them all, in order of the table."""
    todo = [(job, naive) for oracle in oracles for naive, jobs in zip((False, True), oracle.chosen(short=short)) for job in jobs]
    found: list[Sequence[Check]] = Parallel(n_jobs=processes, batch_size=1)(delayed(_run)(job) for job, _ in todo)
    return [Row(check, naive) for (_, naive), checks in zip(todo, found) for check in checks]


def _run(job: Job) -> Sequence[Check]:
    return job()


def text(rows: Sequence[Row]) -> str:
    """The table as it is printed, by title."""
    out: list[str] = []
    title = ""
    for row in rows:
        check = row.check
        if check.section != title:
            title = check.section
            out += ["", title, f"  {'what':<46}{'metric':<46}{'expected':>12}{'got':>12}  {'tolerance':<28}verdict"]
        expected = "" if check.tolerance[:1] in "≤≥" else f"{check.expected:.6g}"
        what = f"[naive] {check.what}" if row.naive else check.what
        out.append(f"  {what:<46}{check.metric:<46}{expected:>12}{check.got:>12.6g}  {check.tolerance:<28}{row.verdict}"
                   + (f" ({check.note})" if check.note else ""))
    return "\n".join(out[1:])


def verdict(rows: Sequence[Row]) -> str:
    """How many checks pass, and how many naive variants fail, in a sentence."""
    judged = [row for row in rows if row.check.judged]
    real, naive = [r for r in judged if not r.naive], [r for r in judged if r.naive]
    return f"{sum(r.right for r in real)} of {len(real)} checks pass, {sum(r.right for r in naive)} of {len(naive)} naive variants fail as they must"
