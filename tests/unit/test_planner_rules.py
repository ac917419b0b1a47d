"""Rules of the planner as a whole: pure modules, actions, audit records, modes."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from planner_flight import BLOCK, PAIR, PAIR_BLOCK, flight, short, swing

import windtunnel.policy.planning
from windtunnel.errors import PlanContractError, PlannerConfigError
from windtunnel.policy.planning.audit import KINDS, Record

HERE = Path(windtunnel.policy.planning.__file__).parent
REGRESSIONS = {"perf_model.py", "forecast.py", "demand.py", "capacity.py"}
NEVER = {"time", "datetime", "random", "asyncio", "threading", "socket", "os", "pathlib", "logging", "httpx", "simpy", "pydantic", "pandas", "grpc"}


@pytest.mark.parametrize("path", sorted(HERE.glob("*.py")), ids=lambda p: p.name)
def test_PL_001_no_clock_no_io_and_numbers_only_where_something_is_fitted(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global), path.name
    assert not found & NEVER
    assert "numpy" not in found or path.name in REGRESSIONS


def test_PL_316_a_tick_that_changes_nothing_is_applied_and_the_boundary_says_unchanged() -> None:
    run, _ = swing()
    ticks = run.planner.ticks
    same = [t for t in ticks if t["action"] == "apply" and all(c["planned"] == c["baseline"] for c in t["components"].values())]
    assert same and {t["action"] for t in ticks} == {"apply"}
    assert all(reason for t in same for c in t["components"].values() for reason in c["plan_reasons"])


def test_PL_318_records_are_frozen_and_of_a_known_kind_with_its_keys() -> None:
    record = Record(1, 5.0, 1, "tick_missed", "", "", {"count": 2, "first_at": 5.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.seq = 2  # type: ignore[misc]
    with pytest.raises(PlanContractError, match="unknown kind 'gossip'"):
        Record(1, 5.0, 1, "gossip", "", "", {})
    with pytest.raises(PlanContractError):
        Record(1, 5.0, 1, "tick_missed", "", "", {"count": 2})


def test_PL_318_there_are_records_only_where_they_are_asked_for() -> None:
    run, _ = short("full")
    kinds = {entry.kind for entry in run.planner.entries}
    assert {"tick_started", "tick_finished", "plugin_answered", "pulled", "forecast_scored"} <= kinds
    assert kinds - {"plan", "settings"} <= set(KINDS)
    quiet, planner = short("requests")
    assert "notes" not in quiet.tables.names and planner.ticks > 10, "counted, not written"


@pytest.mark.parametrize(("mode", "sized"), [("disagg", {"front", "back"}), ("prefill", {"front"}), ("decode", {"back"})])
def test_PL_701_a_mode_sizes_its_roles_and_no_other(mode: str, sized: set[str]) -> None:
    roles = {"disagg": ("prefill", "decode")}.get(mode, (mode,))
    block: dict[str, Any] = {**PAIR_BLOCK, "mode": mode, "pools": {role: PAIR_BLOCK["pools"][role] for role in roles}}
    run, planner = flight(block, scenario=PAIR, duration_s=200.0)
    assert {pool.frame.name for pool in planner.pools.values()} == sized
    moved = {name for name in ("front", "back") if (run.replicas.pool == name).sum() > {"front": 1, "back": 2}[name]}
    assert moved and moved <= sized, "only the pools of the mode ever grow"


def test_PL_701_a_mode_without_its_pool_is_refused() -> None:
    with pytest.raises(PlannerConfigError, match=r"planner.pools.prefill: expected one pool of role prefill"):
        flight({**BLOCK, "mode": "disagg", "pools": {"prefill": {}, "decode": {}}}, duration_s=20.0)
