"""What one replica can do within an SLO: a search over batch sizes, and latency estimates from what engines report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, floor

from windtunnel.policy.planning.perf_model import PerfModel

CANDIDATES = 128
MOST_HIT = 0.95
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Shape:
    """A typical request: tokens in and out, share of the prompt found in the cache, tokens accepted per decode step (None: unknown)."""

    isl: float
    osl: float
    kv_hit_rate: float | None = None
    accept_length: float | None = None


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Of one engine: tokens per step, sequences at once, KV tokens, context. None: not known."""

    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_kv_tokens: int | None = None
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds in seconds; None: no bound."""

    ttft_s: float | None = None
    itl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """rps: requests/s of one replica at `batch`; eligible: within the SLO. Seconds of what the role does, else None."""

    rps: float
    batch: int
    ttft_s: float | None
    itl_s: float | None
    e2e_s: float | None
    eligible: bool


def capacity(role: str, shape: Shape, limits: EngineLimits, slo: Slo, model: PerfModel) -> Capacity | None:
    """The best batch: within the SLO before not, then most requests per second, then the smallest.

    An SLO that cannot be met gives the best ineligible one: more replicas would not meet it either. None: the role's step times or the
    limits it needs are unknown, or not one request fits.
    """
    if not model.ready(role):
        return None
    try_batch = {"prefill": _prefill, "decode": _decode, "agg": _agg}[role](shape, limits, slo, model)
    if try_batch is None:
        return None
    most, attempt = try_batch
    found = [c for c in map(attempt, _candidates(most)) if c is not None]
    return max(found, key=lambda c: (c.eligible, c.rps), default=None)


def _candidates(most: int) -> Iterable[int]:
    if most <= CANDIDATES:
        return range(1, most + 1)
    return (1 + i * (most - 1) // (CANDIDATES - 1) for i in range(CANDIDATES))


Search = tuple[int, Callable[[int], Capacity | None]]


def _prefill(shape: Shape, limits: EngineLimits, slo: Slo, model: PerfModel) -> Search | None:
    mbt, seqs = limits.max_num_batched_tokens, limits.max_num_seqs
    if mbt is None:
        return None
    tokens = prompt_tokens(shape)
    fits = mbt // tokens
    most = 1 if tokens > mbt else fits if seqs is None else min(seqs, fits)

    def attempt(batch: int) -> Capacity:
        ttft_s = chunked(batch * tokens, mbt, model.prefill_s)
        return Capacity(batch / ttft_s, batch, ttft_s, None, None, _within(ttft_s, slo.ttft_s))

    return most, attempt


def _resident(shape: Shape, limits: EngineLimits) -> tuple[int, int] | None:
    """(context tokens of a decoding request, how many fit)."""
    if limits.max_kv_tokens is None:
        return None
    context = max(1, int(shape.isl + shape.osl // 2))
    fits = limits.max_kv_tokens // context
    return context, fits if limits.max_num_seqs is None else min(limits.max_num_seqs, fits)


def _decode(shape: Shape, limits: EngineLimits, slo: Slo, model: PerfModel) -> Search | None:
    resident = _resident(shape, limits)
    if resident is None or resident[1] < 1:
        return None
    (context, most), accept, osl = resident, accepted(shape.accept_length), max(1.0, shape.osl)

    def attempt(batch: int) -> Capacity:
        itl_s = model.decode_s(batch, batch * context) / accept
        return Capacity(batch / (osl * itl_s), batch, None, itl_s, None, _within(itl_s, slo.itl_s))

    return most, attempt


def _agg(shape: Shape, limits: EngineLimits, slo: Slo, model: PerfModel) -> Search | None:
    resident, mbt = _resident(shape, limits), limits.max_num_batched_tokens
    if resident is None or mbt is None or min(resident[1], mbt - 1) < 1:
        return None
    (context, fits), accept, osl, tokens = resident, accepted(shape.accept_length), max(1.0, shape.osl), prompt_tokens(shape)

    def attempt(batch: int) -> Capacity | None:
        x = ceil(batch * accept * tokens / osl - EPSILON)  # prompt tokens that a step must take to keep the batch full
        if x > mbt - batch:
            return None
        kv = batch * context
        itl_s = model.agg_s(min(mbt, x), kv) / accept
        ttft_s = chunked(x + tokens, mbt, lambda chunk: model.agg_s(chunk, kv))
        eligible = _within(ttft_s, slo.ttft_s) and _within(itl_s, slo.itl_s)
        return Capacity(batch / (osl * itl_s), batch, ttft_s, itl_s, ttft_s + itl_s * (osl - 1), eligible)

    return min(fits, mbt - 1), attempt


def _within(seconds: float, bound_s: float | None) -> bool:
    return bound_s is None or seconds <= bound_s + EPSILON


def hit_rate(rate: float | None) -> float:
    """Unknown counts as no hits; never all of a prompt."""
    return min(max(rate or 0.0, 0.0), MOST_HIT)


def prompt_tokens(shape: Shape) -> int:
    """Prompt tokens to compute, at least 1."""
    return max(1, ceil(shape.isl * (1 - hit_rate(shape.kv_hit_rate)) - EPSILON))


def accepted(length: float | None, most: float | None = None) -> float:
    """Output tokens per decode step, at least 1."""
    known = 1.0 if length is None else max(1.0, length)
    return known if most is None else min(known, max(1.0, most))


def chunked(tokens: float, chunk: float, seconds: Callable[[float], float]) -> float:
    """Time of `tokens` in chunks of at most `chunk`; no tokens take no time."""
    if tokens <= EPSILON:
        return 0.0
    whole = floor(tokens / chunk + EPSILON)
    rest = tokens - whole * chunk
    return (whole * seconds(chunk) if whole else 0.0) + (seconds(rest) if rest > EPSILON else 0.0)


def ttft_estimate(queued_tokens: float, avg_isl: float, hit: float | None, max_num_batched_tokens: float, seconds: Callable[[float], float]) -> float:
    """TTFT of a prompt that arrives behind `queued_tokens`; `seconds` of a step over so many tokens."""
    return chunked((queued_tokens + avg_isl) * (1 - hit_rate(hit)), max_num_batched_tokens, seconds)


def itl_estimate(step_s: float, accept_length: float | None, speculative_nextn: int) -> float:
    """ITL when one more request joins: `step_s` of that step, over the tokens that it yields."""
    return step_s / accepted(accept_length, speculative_nextn + 1)
