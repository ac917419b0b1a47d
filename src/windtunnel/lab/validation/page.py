"""The validation page, as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import html
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from windtunnel.lab.validation.check import Check
from windtunnel.lab.validation.sections import NOT_VALIDATED, Section

HEAD = ("", "what", "metric", "expected", "got", "error", "± 95 %", "allowed", "n", "note")
LEAD = "What the simulator was held against, what was expected, and what came out."
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1b1f;background:#fff}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .5rem;text-align:left;border-bottom:1px solid #ddd}td.n{text-align:right}tr.miss{background:#fde7e7}
.scroll{overflow-x:auto}@media(prefers-color-scheme:dark){body{color:#e6e6ea;background:#16161a}th,td{border-color:#3a3a40}tr.miss{background:#4a1f1f}}"""


@dataclass(frozen=True, slots=True)
class Page:
    """All checks of a validation. seconds: wall time; processes: how many flew at once."""

    sections: tuple[Section, ...]
    checks: tuple[Check, ...]
    seconds: float
    processes: int
    made_at: datetime

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if not c.passed)

    @property
    def verdict(self) -> str:
        judged = sum(c.judged for c in self.checks)
        return f"{judged - len(self.failed)} of {judged} checks passed" + (f", {len(self.failed)} failed" if self.failed else "")

    def facts(self) -> list[str]:
        """Date, versions, machine, seeds."""
        names = ("windtunnel", "numpy", "simpy", "pandas", "scipy")
        return [
            f"Made {self.made_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC in {self.seconds:.0f} s with {self.processes} processes",
            f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in names),
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical CPUs",
            "Seeds: 5 (request by request), 11 (steady state), 3 (continuous batching), 0 (cross-validation folds); "
            "the same seeds give the same numbers",
        ]

    def markdown(self) -> str:
        out = ["# Validation", "", f"**{self.verdict}.** {LEAD}", ""]
        out += [f"- {fact}" for fact in self.facts()]
        out += ["", "Tolerances: a steady-state estimate passes within the larger of two half-widths of its 95 % interval and 1 % (waits and "
                "quantiles 2 %), and only if the half-width is at most 2.5 % (10 %). Exact checks allow 1e-9 s.", ""]
        for section in self.sections:
            mine = self._of(section)
            out += [f"## {section.title}", "", section.about, "", f"{_count(mine)}", ""]
            out += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
            out += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _row(c)) + " |" for c in mine]
            out.append("")
        out += ["## What is not validated", "", *(f"- {line}" for line in NOT_VALIDATED), ""]
        return "\n".join(out)

    def html(self) -> str:
        e = html.escape
        out = ["<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
               f"<title>Validation: {e(self.verdict)}</title><style>{STYLE}</style><h1>Validation</h1><p><b>{e(self.verdict)}.</b> "
               f"{LEAD}</p><ul>", *(f"<li>{e(fact)}" for fact in self.facts()), "</ul>"]
        for section in self.sections:
            mine = self._of(section)
            out.append(f"<h2>{e(section.title)}</h2><p>{e(section.about)}</p><p>{_count(mine)}</p>"
                       "<div class=scroll><table><tr>" + "".join(f"<th>{e(h)}" for h in HEAD))
            for c in mine:
                out.append(f"<tr{'' if c.passed else ' class=miss'}>" + "".join(f"<td>{e(cell)}" for cell in _row(c)))
            out.append("</table></div>")
        out += ["<h2>What is not validated</h2><ul>", *(f"<li>{e(line)}" for line in NOT_VALIDATED), "</ul></html>"]
        return "\n".join(out)

    def _of(self, section: Section) -> Sequence[Check]:
        return [c for c in self.checks if c.section == section.title]


def _row(c: Check) -> tuple[str, ...]:
    unit = f" {c.unit}" if c.unit else ""
    half = "" if c.half_width is None else (f"{c.half_width / abs(c.expected):.2%}" if math.isfinite(c.half_width) and c.expected else "unknown")
    bound = not c.expected or c.tolerance[:1] in "≤>"
    error = "" if bound else f"{c.error:+.2%}" if abs(c.error) >= 5e-5 else (f"{c.error:.1e}" if c.error else "0")
    verdict = "–" if not c.judged else "pass" if c.passed else "FAIL"
    return (verdict, c.what, c.metric, "" if bound else f"{c.expected:.7g}{unit}", f"{c.got:.7g}{unit}", error,
            half, c.tolerance, f"{c.n:,}", c.note)


def _count(checks: Sequence[Check]) -> str:
    judged = [c for c in checks if c.judged]
    more = len(checks) - len(judged)
    return f"{sum(c.passed for c in judged)} of {len(judged)} passed" + (f"; {more} more rows without a target, for comparison." if more else ".")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
