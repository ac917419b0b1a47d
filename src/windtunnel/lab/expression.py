"""Metric expressions: `name[.stat][filters]`, e.g. `ttft_s.p99[tenant=acme,t=120..300]`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from windtunnel.errors import ConfigMetricError
from windtunnel.events import PRIORITIES
from windtunnel.lab.metrics import ADJUSTED, NUMERIC, STATS, Mask, Requests

FILTERS = ("tenant", "priority", "pool", "replica", "session", "phase", "outcome")
_EXPRESSION = re.compile(r"\s*([a-z][a-z0-9_]*)((?:\.[a-z][a-z0-9_]*)?)\s*(?:\[([^\[\]]*)\])?\s*", re.IGNORECASE)
_RANGE = re.compile(r"(-?[0-9.eE+]+)\.\.(-?[0-9.eE+]+)")


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression. stat: "" for a scalar; t: arrivals in [from, to) run seconds."""

    name: str
    stat: str
    filters: tuple[tuple[str, str], ...] = ()
    t: tuple[float, float] | None = None

    @classmethod
    def parse(cls, text: str, scalars: Sequence[str]) -> Expression:
        """Read an expression; scalars: the names that need no statistic. Raises ConfigMetricError with what is wrong, what to write."""
        match = _EXPRESSION.fullmatch(text)
        if match is None:
            raise ConfigMetricError(f'metric "{text}" is not name[.stat][filters]', hint="for example ttft_s.p99[tenant=acme,t=120..300]")
        name, stat = match[1], match[2][1:]
        if stat and f"{name}.{stat}" in scalars:
            name, stat = f"{name}.{stat}", ""
        elif (name in NUMERIC or name == "itl_s") and (stat or name not in scalars):
            _check_stat(text, name, stat)
        elif name.startswith("slo_attainment"):
            name, stat = f"{name}.{stat}" if stat else name, ""
        elif name not in scalars or stat:
            full = f"{name}.{stat}" if stat else name
            raise ConfigMetricError(f'metric "{text}": unknown name "{full}"', hint=_close(name, (*NUMERIC, *scalars)))
        filters, t = _filters(text, match[3])
        return cls(name, stat, filters, t)

    def keep(self, rows: Requests) -> Mask:
        """The rows that pass the filters."""
        out = np.ones(len(rows.keep), dtype=bool)
        for key, word in self.filters:
            out &= rows.is_word(key, word)
        if self.t is not None:
            arrived = rows.number("arrived_s")
            out &= (arrived >= self.t[0]) & (arrived < self.t[1])
        return out


def _check_stat(text: str, name: str, stat: str) -> None:
    if not stat:
        raise ConfigMetricError(f'metric "{text}" needs a statistic', hint=f"for example {name}.p99")
    if stat not in STATS and stat not in ADJUSTED:
        raise ConfigMetricError(f'metric "{text}": unknown statistic "{stat}"', hint=f"one of {', '.join((*STATS, *ADJUSTED))}")


def _filters(text: str, inside: str | None) -> tuple[tuple[tuple[str, str], ...], tuple[float, float] | None]:
    filters, t = [], None
    for part in (inside or "").split(","):
        if not part.strip():
            if inside is not None and inside.strip():
                raise ConfigMetricError(f'metric "{text}": an empty filter')
            continue
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not value:
            raise ConfigMetricError(f'metric "{text}": filter "{part.strip()}" is not key=value')
        if key == "t":
            t = _times(text, value)
        elif key in FILTERS:
            if key == "priority" and value not in PRIORITIES and not value.isdecimal():
                raise ConfigMetricError(f'metric "{text}": unknown priority "{value}"', hint=f"one of {', '.join(PRIORITIES)}")
            filters.append((key, value))
        else:
            raise ConfigMetricError(f'metric "{text}": unknown filter "{key}"', hint=f"one of {', '.join((*FILTERS, 't'))}")
    return tuple(filters), t


def _times(text: str, value: str) -> tuple[float, float]:
    match = _RANGE.fullmatch(value)
    try:
        a, b = (float(match[1]), float(match[2])) if match else (math.nan, math.nan)
    except ValueError:
        a = b = math.nan
    if not a < b:
        raise ConfigMetricError(f'metric "{text}": t={value} is not a range', hint="write t=120..300 (run seconds, from and up to)")
    return a, b


def _close(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return "did you mean " + " or ".join(f'"{c}"' for c in close) + "?" if close else ""
