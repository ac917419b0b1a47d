"""Decode step time measured per batch size, or per batch size and context; prefill per token. For engines that follow no formula."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from math import floor, isinf
from typing import Annotated

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number
from windtunnel.sim.stepmodels.model import Batch, Provenance
from windtunnel.sim.stepmodels.outside import ON_EXTRAPOLATION, Outside, check_extrapolation
from windtunnel.sim.stepmodels.pieces import Pieces, between, constant, row

MODES = ("linear", "ceil")


@dataclass(frozen=True)
class Table:
    """decode_s: (batch, seconds) each, or (batch, kv_mean, seconds) each, ascending; batch: sequences of the step, kv_mean: tokens that one of
    its decodes attends, on average. Batches need not be measured at the same kv_mean.

    mode: "linear" between knots, or by the next knot up ("ceil"), as an engine that pads its batches. Beyond the last knots it goes on as
    between the last two, but does not fall with context; below the first batch it is the first one's. Asked beyond, it warns once per
    feature (`on_extrapolation` "error": ConfigValueError), and `outside` says afterwards what was. A step without decodes costs what its
    batch costs at no context.

    prefill_s_per_token: added per prefilled token; prefill_s: ((tokens, seconds), ...) of whole prompts, instead of the rate: a chunk costs
    what the prompt costs with it less what it costs without. kv_s_per_token: added per attended token of a decode, where there is no kv_mean.
    """

    decode_s: Annotated[tuple[tuple[float | int, ...], ...], Param(
        unit="s", help="[batch, seconds] or [batch, kv_mean, seconds] each, ascending", knob=False)]
    prefill_s_per_token: float
    kv_s_per_token: float = 0.0
    prefill_s: tuple[tuple[int, float], ...] = ()
    provenance: Provenance = field(default_factory=lambda: Provenance("table", "", "measured per batch"))
    mode: Annotated[str, Param(choices=MODES, help="linear between knots, or the next knot up (ceil)", knob=False)] = "linear"
    on_extrapolation: Annotated[str, Param(choices=ON_EXTRAPOLATION, help="asked beyond the knots: warn once, or stop", knob=False)] = "warn"
    outside: Outside = field(default_factory=Outside, repr=False, compare=False)
    _rows: tuple[tuple[int, Pieces], ...] = field(init=False, repr=False, compare=False)
    _laws: dict[int, Pieces] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigValueError("mode", f"expected linear or ceil, got {self.mode!r}")
        check_extrapolation(self.on_extrapolation)
        check_rows(self.decode_s)
        for tokens, seconds in self.prefill_s:
            check_number("prefill_s.tokens", tokens, lo=1, whole=True)
            check_number("prefill_s.seconds", seconds, lo=0.0)
        at = [x for x, _ in self.prefill_s]
        if at != sorted(set(at)):
            raise ConfigValueError("prefill_s", f"expected ascending tokens, got {at}")
        seconds_of = [s for _, s in self.prefill_s]
        if seconds_of != sorted(seconds_of):
            raise ConfigValueError("prefill_s", "expected seconds that do not fall with more tokens")
        check_number("prefill_s_per_token", self.prefill_s_per_token, lo=0.0)
        check_number("kv_s_per_token", self.kv_s_per_token, lo=0.0)
        if self.by_context and self.kv_s_per_token:
            raise ConfigValueError("kv_s_per_token", "counts attended tokens twice: decode_s is by kv_mean", hint="leave it out")
        object.__setattr__(self, "_rows", tuple(self._measured()))

    def _measured(self) -> list[tuple[int, Pieces]]:
        """The knots by batch. Raises ConfigValueError where two batches were never measured at a common context."""
        if not self.by_context:
            return [(int(batch), constant(seconds)) for batch, seconds in self.decode_s]
        rows = [(int(batch), row([(kv, s) for _, kv, s in knots], self.mode == "ceil"))
                for batch, knots in groupby(self.decode_s, key=lambda knot: knot[0])]
        for (n, low), (m, high) in pairwise(rows):
            if self.mode == "linear" and max(low.least, high.least) > min(low.most, high.most):
                raise ConfigValueError("decode_s", f"batches {n} and {m} have no kv_mean in common: {low.least:g} to {low.most:g} and "
                                       f"{high.least:g} to {high.most:g}", hint="measure both at one kv_mean, or write mode: ceil")
        return rows

    @property
    def by_context(self) -> bool:
        """Are the knots by (batch, kv_mean)?"""
        return len(self.decode_s[0]) == 3

    def of_batch(self, n: int, kv_mean: float = 0.0) -> float:
        """Seconds of a decode step of n sequences, without the KV term."""
        return self._law(n).at(kv_mean)[0]

    def of_prompt(self, n: int) -> float:
        """Seconds that n prompt tokens add to their steps; below the first knot in proportion."""
        if not self.prefill_s:
            return self.prefill_s_per_token * n
        first, seconds = self.prefill_s[0]
        return seconds * n / first if n <= first else _on_line(self.prefill_s, n)

    def seconds(self, b: Batch) -> float:
        return self._run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        a, slope, k = self._run(b, k)
        self._watch(b, k * a + slope * (k * (k - 1) * 0.5))
        return a, slope, k

    def _run(self, b: Batch, k: int) -> tuple[float, float, int]:
        n = b.decode_seqs
        kv_mean = b.decode_kv / n if n else 0.0
        a, slope, end = self._law(b.sequences).at(kv_mean)
        if not n:
            slope = 0.0  # nobody's context grows
        elif not isinf(end):
            k = min(k, max(1, floor(end - kv_mean + end * 1e-12) + 1))
        a += self.kv_s_per_token * b.decode_kv
        for chunk, before in b.prefill:
            a += self.of_prompt(before + chunk) - self.of_prompt(before) if self.prefill_s else self.prefill_s_per_token * chunk
        return a, slope + self.kv_s_per_token * n, k if not (self.prefill_s and b.prefill) else 1

    def _law(self, n: int) -> Pieces:
        """Seconds over kv_mean of a step of n sequences."""
        law = self._laws.get(n)
        if law is None:
            law = self._laws[n] = self._made(n)
        return law

    def _made(self, n: int) -> Pieces:
        rows = self._rows
        i = bisect_left(rows, n, key=lambda r: r[0])
        if i < len(rows) and (i == 0 or rows[i][0] == n or self.mode == "ceil"):
            return rows[i][1]
        if len(rows) == 1:
            return rows[0][1]
        (n0, low), (n1, high) = rows[min(i, len(rows) - 1) - 1:][:2]
        return between(low, high, (n - n0) / (n1 - n0))

    @property
    def beyond(self) -> str:
        """What was asked beyond the knots, how far and for how long; empty: nothing."""
        return self.outside.beyond

    def _watch(self, b: Batch, seconds: float) -> None:
        """Remember what was asked beyond the knots."""
        o = self.outside
        seen: list[tuple[str, float, float, float]] = []
        o.total_s += seconds
        least, most = 0 if self.mode == "ceil" else self._rows[0][0], self._rows[-1][0]
        if not least <= b.sequences <= most:
            seen.append(("sequences", b.sequences, least, most))
        if b.decode_seqs and self.by_context:
            law, kv_mean = self._law(b.sequences), b.decode_kv / b.decode_seqs
            if not law.least <= kv_mean <= law.most:
                seen.append(("kv_mean", kv_mean, law.least, law.most))
        for chunk, before in b.prefill if self.prefill_s else ():
            if chunk + before > self.prefill_s[-1][0]:
                seen.append(("prompt tokens", chunk + before, self.prefill_s[0][0], self.prefill_s[-1][0]))
        for found in seen:
            o.saw(*found, self.on_extrapolation)
        if seen:
            o.outside_s += seconds


def check_rows(rows: Sequence[Sequence[int | float]]) -> None:
    """ConfigValueError unless these are the knots of a table: (batch, seconds) each or (batch, kv_mean, seconds) each, ascending."""
    if not rows:
        raise ConfigValueError("decode_s", "expected at least one (batch, seconds)")
    width = len(rows[0])
    for knot in rows:
        if len(knot) not in (2, 3) or len(knot) != width:
            raise ConfigValueError("decode_s", "expected (batch, seconds) each or (batch, kv_mean, seconds) each, got "
                                   f"{list(knot)}" + (f" after {list(rows[0])}" if len(knot) in (2, 3) else ""))
        check_number("decode_s.batch", knot[0], lo=1, whole=True)
        if width == 3:
            check_number("decode_s.kv_mean", knot[1], lo=0.0)
        check_number("decode_s.seconds", knot[-1], above=0.0)
    keys = [tuple(knot[:-1]) for knot in rows]
    if keys != sorted(set(keys)):
        shown = [k[0] for k in keys] if width == 2 else [list(k) for k in keys]
        raise ConfigValueError("decode_s", f"expected ascending {'batches' if width == 2 else 'batches and kv_mean'}, got {str(shown)[:200]}")


def _on_line(knots: tuple[tuple[int, float], ...], x: float) -> float:
    """Linear between knots, the last slope beyond them; the only knot's value if there is one."""
    if len(knots) == 1:
        return knots[0][1]
    i = min(max(1, bisect_left(knots, (x, 0.0))), len(knots) - 1)
    (x0, y0), (x1, y1) = knots[i - 1], knots[i]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
