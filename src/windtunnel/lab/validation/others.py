"""For orientation only: what public simulators say of the same ten thousand chat requests, each with its own step times."""

from __future__ import annotations

import pandas as pd

from windtunnel.lab.scenario import Scenario

COLUMNS = ("simulator", "step times", "mean TTFT (ms)", "mean TPOT (ms)", "median E2E (s)")
# Runs of chat_10k_r16 on one simulated H100 with a Llama of 8 B parameters; medians and means as each tool reports them.
OTHERS: tuple[tuple[str, str, float | None, float, float | None], ...] = (
    ("BLIS f90a1e3", "trained-physics", 30.2, 8.67, 1.320),
    ("BLIS f90a1e3", "roofline", 20.8, 4.19, 0.641),
    ("Dynamo replay 1.4.2", "its default polynomial", 52.2, 16.0, 2.412),
    ("aiconfigurator 0.12.0", "operator tables, batch 16", None, 8.8, None),
    ("aiconfigurator 0.12.0", "operator tables, batch 64", None, 15.9, None),
)
PROFILES = {"the roofline behind Vidur's tables": {"kind": "vidur"}, "operator tables": {"kind": "operators"}, "roofline": {"kind": "roofline"}}


def other_simulators(seconds: float | None = None) -> pd.DataFrame:
    """The table, ours first: one row per set of step times that we have for this model and GPU. seconds: fly only the first of the 630.

    None of it is a validation: the queueing is the same everywhere, the step times are not, and they decide.
    """
    rows = [("windtunnel", name, *_ours(profile, seconds)) for name, profile in PROFILES.items()]
    return pd.DataFrame([*rows, *OTHERS], columns=list(COLUMNS))


def spread(table: pd.DataFrame) -> float:
    """The largest median E2E over the smallest."""
    known = table[COLUMNS[4]].dropna()
    return float(known.max() / known.min())


def _ours(profile: dict[str, str], seconds: float | None) -> tuple[float, float, float]:
    changes = {"fleet.pools.chat.profile": profile, "fleet.pools.chat.model": "Llama-3-8B" if profile["kind"] == "vidur" else "Llama-3.1-8B"}
    run = Scenario.load("peer-chat-10k").with_({**changes, "duration_s": seconds}).run()
    numbers = [run.metric(name) or float("nan") for name in ("ttft_s.avg", "tpot_s.avg", "e2e_s.p50")]
    return 1e3 * numbers[0], 1e3 * numbers[1], numbers[2]
