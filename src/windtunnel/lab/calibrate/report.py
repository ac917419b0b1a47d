"""How far a simulation is from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from windtunnel.errors import ConfigValueError
from windtunnel.lab.calibrate.observe import RequestObs

QUANTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}


def _tpots(rows: Sequence[RequestObs]) -> list[float]:
    return [r.tpot_s for r in rows if r.tpot_s is not None]


def error_table(measured: Sequence[RequestObs], simulated: Sequence[RequestObs], *, estimate: str = "simulated",
                extra: dict[str, tuple[float | None, float]] | None = None) -> pd.DataFrame:
    """One row a metric and statistic: measured, simulated (s, or per s), signed `error` (relative), n.

    Metrics: ttft, tpot, e2e (mean, p50, p90, p95, p99), output tokens per second and makespan; `extra` adds counts, (measured or None,
    simulated) by name. Raises ConfigValueError for lists that are not of the same requests.
    """
    if len(measured) != len(simulated) or not measured:
        raise ConfigValueError("simulated", f"expected the {len(measured)} measured requests, got {len(simulated)}")
    rows: list[tuple[str, str, float | None, float, int]] = []
    metrics: dict[str, Callable[[Sequence[RequestObs]], list[float]]] = {
        "ttft": lambda r: [x.ttft_s for x in r], "tpot": _tpots, "e2e": lambda r: [x.e2e_s for x in r]}
    for name, of in metrics.items():
        a, b = np.array(of(measured)), np.array(of(simulated))
        if not len(a):
            continue
        rows.append((name, "mean", float(a.mean()), float(b.mean()), len(a)))
        rows += [(name, label, float(np.percentile(a, q)), float(np.percentile(b, q)), len(a)) for label, q in QUANTILES.items()]
    spans = [max(r.last_s for r in rows_) - min(r.arrival_s for r in rows_) for rows_ in (measured, simulated)]
    tokens = sum(r.output_tokens for r in measured)
    rows.append(("output_tok_per_s", "all", tokens / spans[0], tokens / spans[1], len(measured)))
    rows.append(("makespan", "all", spans[0], spans[1], len(measured)))
    for name, (was, got) in (extra or {}).items():
        rows.append((name, "all", was, got, len(measured)))
    table = pd.DataFrame(rows, columns=["metric", "statistic", "measured", "simulated", "n"])
    table["measured"] = table["measured"].astype(float)
    table["error"] = table["simulated"] / table["measured"] - 1
    table.insert(0, "estimate", estimate)
    return table
