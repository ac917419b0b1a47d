"""Decode step time measured per batch size; prefill per token. For engines that are not linear in the batch, such as llama.cpp on CPU."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sim.stepmodels.calibrated import Outside
from windtunnel.sim.stepmodels.model import Batch, Provenance


@dataclass(frozen=True)
class Table:
    """decode_s: ((batch, seconds), ...) in ascending batch, linear between knots, the last slope beyond them; prefill_s_per_token: added
    per prefilled token; kv_s_per_token: added per attended token of a decode. prefill_s: ((tokens, seconds), ...) of whole prompts, instead
    of the rate per token: a chunk costs what the prompt costs with it less what it costs without."""

    decode_s: tuple[tuple[int, float], ...]
    prefill_s_per_token: float
    kv_s_per_token: float = 0.0
    prefill_s: tuple[tuple[int, float], ...] = ()
    provenance: Provenance = field(default_factory=lambda: Provenance("table", "", "measured per batch"))
    outside: Outside = field(default_factory=Outside, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.decode_s:
            raise ConfigValueError("decode_s", "expected at least one (batch, seconds)")
        for batch, seconds in self.decode_s:
            check_number("decode_s.batch", batch, lo=1, whole=True)
            check_number("decode_s.seconds", seconds, above=0.0)
        for tokens, seconds in self.prefill_s:
            check_number("prefill_s.tokens", tokens, lo=1, whole=True)
            check_number("prefill_s.seconds", seconds, lo=0.0)
        for name, knots in (("decode_s", self.decode_s), ("prefill_s", self.prefill_s)):
            at = [x for x, _ in knots]
            if at != sorted(set(at)):
                raise ConfigValueError(name, f"expected ascending {'batches' if name == 'decode_s' else 'tokens'}, got {at}")
        seconds_of = [s for _, s in self.prefill_s]
        if seconds_of != sorted(seconds_of):
            raise ConfigValueError("prefill_s", "expected seconds that do not fall with more tokens")
        check_number("prefill_s_per_token", self.prefill_s_per_token, lo=0.0)
        check_number("kv_s_per_token", self.kv_s_per_token, lo=0.0)

    def of_batch(self, n: int) -> float:
        """Seconds of a decode step of n sequences, without the KV term."""
        knots = self.decode_s
        if n <= knots[0][0]:
            return knots[0][1]
        return max(knots[0][1] * 1e-3, _between(knots, n))

    def of_prompt(self, n: int) -> float:
        """Seconds that n prompt tokens add to their steps; below the first knot in proportion."""
        if not self.prefill_s:
            return self.prefill_s_per_token * n
        first, seconds = self.prefill_s[0]
        return seconds * n / first if n <= first else _between(self.prefill_s, n)

    def seconds(self, b: Batch) -> float:
        return self._run(b, 1)[0]

    def run(self, b: Batch, k: int) -> tuple[float, float, int]:
        a, slope, k = self._run(b, k)
        self._watch(b, k * a + slope * (k * (k - 1) * 0.5))
        return a, slope, k

    def _run(self, b: Batch, k: int) -> tuple[float, float, int]:
        a = self.of_batch(b.sequences) + self.kv_s_per_token * b.decode_kv
        for chunk, before in b.prefill:
            a += self.of_prompt(before + chunk) - self.of_prompt(before) if self.prefill_s else self.prefill_s_per_token * chunk
        return a, self.kv_s_per_token * b.decode_seqs, k if not (self.prefill_s and b.prefill) else 1

    @property
    def beyond(self) -> str:
        """What was asked beyond the knots, how far and for how long; empty: nothing."""
        o = self.outside
        said = ", ".join(f"{name} {value:g} is outside {least} to {most}" for name, value, least, most in (
            (name, o.worst[name], knots[0][0], knots[-1][0]) for name, knots in self._knots() if name in o.worst))
        return f"{said}: {o.share:.1%} of simulated time" if said else ""

    def _knots(self) -> tuple[tuple[str, tuple[tuple[int, float], ...]], ...]:
        return ("sequences", self.decode_s), ("prompt tokens", self.prefill_s)

    def _watch(self, b: Batch, seconds: float) -> None:
        """Beyond the last knots it goes on as it did before them, and remembers that it had to."""
        o, worst = self.outside, self.outside.worst
        o.total_s += seconds
        beyond = False
        if b.sequences > self.decode_s[-1][0]:
            beyond, worst["sequences"] = True, max(worst.get("sequences", 0), b.sequences)
        for chunk, before in b.prefill if self.prefill_s else ():
            if chunk + before > self.prefill_s[-1][0]:
                beyond, worst["prompt tokens"] = True, max(worst.get("prompt tokens", 0), chunk + before)
        if beyond:
            o.outside_s += seconds


def _between(knots: tuple[tuple[int, float], ...], x: float) -> float:
    """Linear between knots, the last slope beyond them; the only knot's value if there is one."""
    if len(knots) == 1:
        return knots[0][1]
    i = min(max(1, bisect_left(knots, (x, 0.0))), len(knots) - 1)
    (x0, y0), (x1, y1) = knots[i - 1], knots[i]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
