"""The interval of a difference between two runs of one seed: they saw the same arrivals, so blocks of them are drawn for both at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from windtunnel.lab import metrics, scalars, stats
from windtunnel.lab.expression import Expression
from windtunnel.lab.metrics import Floats, Mask, Requests
from windtunnel.lab.summary import names_of

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

Blocks = NDArray[np.int64]
_PER_WINDOW = frozenset({"goodput_rps", "request_rps", "input_tps", "output_tps", "total_tps", "offered_rps"})
_SHARES = {
    "success_fraction": ("success",), "rejected_fraction": ("rate_limited",), "timeout_fraction": ("provider_timeout", "local_timeout"),
}


def same_arrivals(a: Run, b: Run) -> bool:
    """Both runs were offered the same requests: same ids or at least times and prompt lengths, in order."""
    one, two = (Requests(r.tables.arrow("requests")) for r in (a, b))
    if len(one.keep) != len(two.keep):
        return False
    return all(np.array_equal(_in_order(one, c), _in_order(two, c), equal_nan=True) for c in ("arrived_s", "input_tokens"))


def _in_order(rows: Requests, column: str) -> Floats:
    arrived, length = rows.number("arrived_s"), np.nan_to_num(rows.number("input_tokens"))
    return rows.number(column)[np.lexsort((length, arrived))]


def difference(metric: str, a: Run, b: Run, *, level: float = 0.95) -> stats.Interval | None:
    """Percentile interval of metric(b) - metric(a) over 1,000 block resamples; None for a metric that is no function of the requests, and
    for a rate that differs in nothing but the length of the run: when the last request ended says nothing that resampling could weigh.
    """
    weights = stats.block_weights()
    one, two = _resampled(metric, a, weights), _resampled(metric, b, weights)
    if one is None or two is None:
        return None
    x, y = a.metric(metric), b.metric(metric)
    if x is None or y is None:
        return None
    found = stats.percentile_interval(y - x, two - one, level)
    constant = x != y and np.isclose(found.lo, found.hi, rtol=1e-9, atol=0.0)
    return None if constant and metric in _PER_WINDOW else found


def _resampled(metric: str, run: Run, weights: Floats) -> Floats | None:
    """The metric in each resample, shape (resamples,); NaN where it has no value."""
    found = Expression.parse(metric, names_of(run.meta.slo))
    everything = Requests(run.tables.arrow("requests"))
    block = np.empty(len(everything.keep), dtype=np.int64)
    order = np.argsort(everything.number("arrived_s"), kind="stable")
    block[order] = stats.blocks_of(len(order))
    rows = everything.only(found.keep(everything))
    if found.stat:
        return _statistic(found, rows, block, weights)
    if found.name == "jain":
        return _jain(run, rows, block, weights)
    parts = _parts(found.name, run, rows)
    if parts is None:
        return None
    above, below = (_by_block(p, rows.keep, block) for p in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Floats = (weights @ above) / (weights @ below)
    return out


def _by_block(values: Floats, keep: Mask, block: Blocks) -> Floats:
    return np.bincount(block[keep], np.nan_to_num(values[keep]), stats.BLOCKS).astype(float)


def _statistic(found: Expression, rows: Requests, block: Blocks, weights: Floats) -> Floats | None:
    keep = rows.keep & rows.success if found.name in metrics.LATENCIES else rows.keep
    x = rows.number(found.name)
    keep = keep & ~np.isnan(x)
    if found.stat in metrics.PERCENTILES:
        return stats.resampled_quantile(x[keep], block[keep], weights, metrics.PERCENTILES[found.stat])
    if found.stat in ("avg", "sum", "count"):
        total, count = weights @ _by_block(x, keep, block), weights @ _by_block(np.ones(len(x)), keep, block)
        with np.errstate(divide="ignore", invalid="ignore"):
            out: Floats = {"avg": total / count, "sum": total, "count": count}[found.stat]
        return out
    return None


def _parts(name: str, run: Run, rows: Requests) -> tuple[Floats, Floats] | None:
    """Numerator and denominator per request, so that a resample's value is the ratio of its sums; None if the metric is not made so."""
    each = np.ones(len(rows.keep))
    good = metrics.goods(rows, run.meta.slo)
    summary = run.summary().values
    if name in _PER_WINDOW:
        tokens = {"input_tps": rows.number("input_tokens"), "output_tps": rows.number("output_tokens")}
        tokens["total_tps"] = np.nan_to_num(tokens["input_tps"]) + np.nan_to_num(tokens["output_tps"])
        above = {"goodput_rps": good.good * each, "request_rps": rows.success * each, "offered_rps": each}.get(name)
        if above is None:
            above = np.where(rows.success, tokens[name], 0.0)
        return above, each * (summary["window_s"] / max(summary["offered"], 1))
    if name in _SHARES:
        return rows.is_word("outcome", *_SHARES[name]) * each, each
    if name == "failed_fraction":
        known = [word for words in _SHARES.values() for word in words]
        return ~rows.is_word("outcome", *known) * each, each
    if name == "good_fraction":
        return good.good * each, each
    if name.startswith("slo_attainment."):
        met = good.met.get(name.removeprefix("slo_attainment."))
        return None if met is None else (met * each, each)
    if name == "usd_per_1k_good" and summary["usd_per_1k_good"] is not None:
        return each * (summary["usd_per_1k_good"] * summary["good"] / max(summary["offered"], 1)), good.good * each
    if name == "prefix_hit_rate":
        both = ~np.isnan(rows.number("cached_tokens")) & ~np.isnan(rows.number("input_tokens"))
        return np.where(both, rows.number("cached_tokens"), 0.0), np.where(both, rows.number("input_tokens"), 0.0)
    return None


def _jain(run: Run, rows: Requests, block: Blocks, weights: Floats) -> Floats:
    codes, names = rows.words("tenant")
    share = scalars.weights_of(run, names)
    work = scalars.W_IN * np.nan_to_num(rows.number("input_tokens")) + scalars.W_OUT * np.nan_to_num(rows.number("output_tokens"))
    done = rows.keep & rows.success
    served = np.zeros((stats.BLOCKS, len(names)))
    np.add.at(served, (block[done], codes[done]), work[done] / share[codes[done]])
    s = (weights @ served)[:, np.unique(codes[rows.keep])]
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Floats = s.sum(axis=1) ** 2 / (s.shape[1] * (s**2).sum(axis=1))
    return out
