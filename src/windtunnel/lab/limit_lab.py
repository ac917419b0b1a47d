"""Any limit alone against a server known in closed form: where it rests, how long it takes, and how it drifts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from windtunnel.policy.admission.limit import Limit, Sample
from windtunnel.policy.param import BuildContext, check_number
from windtunnel.sources.seeding import PolicyRng

CEILING = 1 << 20
Latency = Callable[[float, int], float]


def queueing(c0: float, base_s: float = 1.0) -> Latency:
    """A server that runs `c0` requests at their base latency and queues the rest: base_s x max(1, L / c0) seconds."""
    check_number("c0", c0, above=0.0)
    check_number("base_s", base_s, above=0.0)
    return lambda in_flight, step: base_s * max(1.0, in_flight / c0)


def slowed(factor: float, at_step: int, base_s: float = 1.0) -> Latency:
    """A server whose latency rises for good at a step, whatever its load: the drift trap of limits that learn what is normal."""
    check_number("factor", factor, above=0.0)
    return lambda in_flight, step: base_s * (factor if step >= at_step else 1.0)


def limit_trajectory(config: Any, latency: Latency, *, steps: int = 500, every_s: float = 0.2, load: float = 1.0, seed: int = 0,
                     refuse: Callable[[float, int], bool] | None = None) -> pd.DataFrame:
    """Feed one sample per step to a fresh limit of `config` and write down what it does.

    latency(L, step) -> s; refuse(L, step) -> is this sample a 429? load: share of the limit in flight (below 0.5 most limits stand
    still). Columns: step, time_s, limit (before the sample), value (the real number behind it), rtt_s, refused, change
    (increase, decrease or None). Raises ConfigValueError for bad numbers.
    """
    check_number("steps", steps, lo=1, whole=True)
    check_number("every_s", every_s, above=0.0)
    check_number("load", load, lo=0.0)
    limit: Limit = config.build(BuildContext(rng=PolicyRng(seed, "limit_lab", 0)))(CEILING)
    rows = []
    for step in range(steps):
        value = value_of(limit)
        refused = refuse is not None and refuse(value, step)
        rtt_s = latency(value, step)
        kind, in_flight = ("rate_limited" if refused else "success"), math.ceil(load * value)
        before = limit.limit
        change = limit.on_sample(Sample(kind, None if refused else rtt_s, in_flight, before, limit.epoch), every_s * step)
        rows.append((step, every_s * step, before, value, rtt_s, refused, None if change is None else change.reason))
    return pd.DataFrame(rows, columns=["step", "time_s", "limit", "value", "rtt_s", "refused", "change"])


def value_of(limit: Any) -> float:
    """The real number behind a limit, through any window; the limit itself where there is none."""
    inner = getattr(limit, "inner", limit)
    return float(getattr(inner, "value", limit.limit))


def limit_trajectories(configs: Mapping[str, Any], latency: Latency, **more: Any) -> pd.DataFrame:
    """`limit_trajectory` of several limits against the same server, one below the other; column `name` says which."""
    parts = [limit_trajectory(config, latency, **more).assign(name=name) for name, config in configs.items()]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["name", "step", "limit", "value"])


def resting_points(config: Any, c0s: tuple[float, ...] = (8, 16, 32, 64, 128), *, starts: tuple[int, ...] = (), steps: int = 500,
                   seed: int = 0) -> pd.DataFrame:
    """Where a limit comes to rest on queueing servers. Columns: c0, start, value, slowdown (latency over base), still (did it rest?).

    starts: values of `initial_limit` to try; empty: the config as it is. A limit that measures anew now and then does not stay there.
    """
    rows = []
    for c0 in c0s:
        for start in starts or (None,):
            one = config if start is None else replace(config, initial_limit=start)
            values = limit_trajectory(one, queueing(c0), steps=steps, seed=seed)["value"]
            tail = values.iloc[-max(1, steps // 10):]
            rows.append((c0, start, values.iloc[-1], max(1.0, values.iloc[-1] / c0), bool(tail.max() - tail.min() < 1e-3)))
    return pd.DataFrame(rows, columns=["c0", "start", "value", "slowdown", "still"])
