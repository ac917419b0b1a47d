"""`calibrate`: measure, fit, check on held-back load, write a profile - bounded in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from windtunnel.errors import EngineUnavailableError
from windtunnel.lab.calibrate.engine_profile import EngineProfile, errors, fit, medians, merged, observed, plan
from windtunnel.lab.calibrate.probe import Cell, Measured, Probe
from windtunnel.live.engines import make_engine
from windtunnel.live.fleet import address
from windtunnel.policy.param import check_number

DEFAULT_SLOTS = 4
OPEN_SHARE = 0.6  # of the closed loop's requests per second: the open arrivals of the check


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came out. table: errors on held-back cells; median_error_percent by metric; took_s; rounds: how often
    each cell was measured."""

    profile: EngineProfile
    table: pd.DataFrame
    median_error_percent: dict[str, float]
    took_s: float
    rounds: int

    def write(self, path: str | Path) -> Path:
        """The profile as YAML: `profile` and `engine` are a pool's keys in a scenario."""
        path = Path(path)
        head = {
            "engine_measured": self.profile.engine, "source": self.profile.source,
            "median_error_percent": {k: round(v, 2) for k, v in self.median_error_percent.items()},
            "held_back_cells": sorted(set(self.table["cell"])), "took_s": round(self.took_s, 1),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"measured": head, **self.profile.plain()}, sort_keys=False, allow_unicode=True), "utf-8")
        return path


def calibrate(kind: str, url: str, *, model: str = "", slots: int | None = None, budget_s: float = 60.0, seed: int = 7, full: bool = False,
              options: dict[str, Any] | None = None, tell: Callable[[str], None] | None = None) -> Calibration:
    """Measure the engine at `url` for about `budget_s` seconds, fit a profile, and check it on load that was not fitted.

    kind: llamacpp, openai or vllm. slots: calls it runs at once; None: what it says, else 4. full: measure the whole sweep of
    concurrency 1 to 16, prompts of 64 to 2048 and answers of 64 and 256 tokens, once at least whatever the budget.
    Nothing else should use the engine meanwhile. Raises EngineUnavailableError, ConfigValueError, ConfigError.
    """
    check_number("budget_s", budget_s, above=0.0)
    if slots is not None:
        check_number("slots", slots, lo=1, whole=True)
    url = address(url, "url", kind)
    work = partial(_calibrate, kind, url, model, slots, budget_s, seed, full, options or {}, tell or (lambda text: None))
    with ThreadPoolExecutor(1) as thread:  # a notebook's own loop runs in this one
        return thread.submit(lambda: asyncio.run(work())).result()


async def _calibrate(kind: str, url: str, model: str, slots: int | None, budget_s: float, seed: int, full: bool, options: dict[str, Any],
                     tell: Callable[[str], None]) -> Calibration:
    begun = time.perf_counter()
    engine = make_engine(kind, url, name="calibrate", model=model, slots=slots, options=options)
    try:
        probe = Probe(engine, seed)
        await _reachable(probe, kind, url)
        can = await engine.capabilities()
        slots = slots or can.slots or DEFAULT_SLOTS
        fitted, held = plan(slots, can.ctx_tokens, full)
        got, checked, rounds = await _rounds(probe, fitted, held, begun + 0.9 * budget_s, tell)
        stamp = datetime.now(UTC).strftime("%Y-%m-%d")
        source = f"measured {stamp}, {sum(len(m.requests) for m in got)} requests in {rounds} round{'s' * (rounds > 1)}"
        profile = fit(got, engine=f"{kind} {can.version or ''}".strip(), slots=slots, ctx_tokens=can.ctx_tokens, source=source)
        checked = merged(checked) + await _open_check(probe, merged(checked), tell)
    finally:
        await engine.close()
    if not any(m.requests for m in checked):
        raise EngineUnavailableError(f"no held-back request was answered: {checked[0].failed[0] if checked and checked[0].failed else 'no time'}")
    table = errors(profile, checked)
    return Calibration(profile, table, medians(table), time.perf_counter() - begun, rounds)


async def _reachable(probe: Probe, kind: str, url: str) -> None:
    """Raises EngineUnavailableError that says who was asked at which address, unless a short request is answered."""
    try:
        await probe.check()
    except EngineUnavailableError as error:
        error.where = url
        error.hint = f"is a {kind} engine running there, and is it of that kind?"
        raise


async def _rounds(probe: Probe, fitted: list[Cell], held: list[Cell], until: float,
                  tell: Callable[[str], None]) -> tuple[list[Measured], list[Measured], int]:
    """All cells in turn, again and again: what a busy machine does in between falls on all alike. At least one round."""
    got: list[Measured] = []
    checked: list[Measured] = []
    rounds, longest_s = 0, 0.0
    while not rounds or time.perf_counter() + longest_s < until:
        begun = time.perf_counter()
        for cells, into in ((fitted, got), (held, checked)):
            for cell in cells:
                tell(f"round {rounds + 1}: {cell.name}")
                into.append(await probe.measure(cell))
        rounds += 1
        longest_s = max(longest_s, time.perf_counter() - begun)
    return got, checked, rounds


async def _open_check(probe: Probe, checked: list[Measured], tell: Callable[[str], None]) -> list[Measured]:
    """Poisson arrivals at a share of what the busiest closed loop served."""
    busiest = max((m for m in checked if m.requests), key=lambda m: m.cell.concurrency, default=None)
    if busiest is None:
        return []
    rate = OPEN_SHARE * observed(busiest)["tokens_per_s"] / busiest.cell.output_tokens
    cell = Cell(busiest.cell.concurrency, busiest.cell.input_tokens, busiest.cell.output_tokens, rounds=6, open_rps=rate)
    tell(cell.name)
    return [await probe.measure(cell)]
