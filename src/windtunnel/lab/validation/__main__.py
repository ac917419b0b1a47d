"""`python -m windtunnel.lab.validation --out data/VALIDATION.md --html out/validation.html`: fly everything, write the page, 1 if a check failed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from joblib import Parallel, delayed

from windtunnel.lab.validation.check import Check
from windtunnel.lab.validation.page import Page
from windtunnel.lab.validation.sections import SECTIONS, Section


def validate(*, full: bool = False, processes: int | None = None, sections: Sequence[Section] = SECTIONS) -> Page:
    """Fly all jobs of the sections, in as many processes (default: one a CPU, at most 8); full: the ones that take tens of minutes too."""
    began = time.perf_counter()
    count = processes or min(8, os.cpu_count() or 1)
    jobs = [job for section in sections for job in (*section.jobs, *(section.slow if full else ()))]
    found: list[Sequence[Check]] = Parallel(n_jobs=count, batch_size=1)(delayed(_run)(job) for job in jobs)
    checks = tuple(check for some in found for check in some)
    return Page(tuple(sections), checks, time.perf_counter() - began, count, datetime.now(UTC))


def _run(job: Callable[[], Sequence[Check]]) -> Sequence[Check]:
    return job()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m windtunnel.lab.validation", description="Hold the simulator against theory and measurements.")
    parser.add_argument("--out", type=Path, default=Path("data/VALIDATION.md"), help="the page as Markdown")
    parser.add_argument("--html", type=Path, default=Path("out/validation.html"), help="the page as one HTML file")
    parser.add_argument("--full", action="store_true", help="also the runs of up to ten million requests")
    parser.add_argument("--processes", type=int, default=None)
    given = parser.parse_args(arguments)
    page = validate(full=given.full, processes=given.processes)
    for path, text in ((given.out, page.markdown()), (given.html, page.html())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{page.verdict} in {page.seconds:.0f} s: {given.out}, {given.html}")
    for c in page.failed:
        print(f"  {c.section}: {c.what}, {c.metric}: expected {c.expected:.7g}, got {c.got:.7g} {c.note}")
    return 1 if page.failed else 0


if __name__ == "__main__":
    sys.exit(main())
