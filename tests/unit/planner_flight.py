"""Small flights with a planner, for the tests that look at what it did: a swing of traffic over a fleet that boots in 15 s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from windtunnel import Run, Scenario
from windtunnel.lab.build import pool_facts
from windtunnel.lab.planner_build import build_pipeline_planner
from windtunnel.lab.planner_config import read_planner
from windtunnel.lab.recorder import Recorder
from windtunnel.lab.world_simulated import Simulated
from windtunnel.policy.control import Control
from windtunnel.policy.planning.shell import PipelinePlanner

SWING = """\
windtunnel: 1
name: swing
question: Does the planner follow?
duration_s: 300
seed: 9
fleet:
  pools:
    chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, min: 1, max: 8, engine: {max_num_seqs: 32},
           startup: {node_s: 5, image_s: 0, weights_s: 5, compile_s: 5}}
source: {kind: arrivals, pattern: gamma, cv: 1.5, input_tokens: 1500, output_tokens: 60,
         series: [[0, 4], [60, 10], [120, 40], [180, 36], [210, 6], [260, 4]]}
slo: {ttft_s: 1.0, tpot_s: 0.05}
"""
PAIR = SWING.replace("name: swing", "name: pair").replace("chat: {", "front: {role: prefill, ").replace("replicas: 2", "replicas: 1").replace(
    "source:", """    back: {model: Llama-3.1-8B, gpu: h100_sxm, role: decode, replicas: 2, min: 1, max: 8, engine: {max_num_seqs: 32},
           startup: {node_s: 5, image_s: 0, weights_s: 5, compile_s: 5}}
source:""") + "control: {routing: {kind: pairs}}\n"
LIMITS = {"limits": {"max_num_batched_tokens": 2048, "max_num_seqs": 32, "max_kv_tokens": 400000, "context_length": 8192}}
BLOCK: dict[str, Any] = {
    "pools": {"agg": {"boot_s": 15, **LIMITS}}, "slo": {"ttft_ms": 1000, "itl_ms": 50}, "budget": {"max_gpus": 4},
    "throughput": {"enabled": True, "interval_s": 10}, "load": {"enabled": True, "interval_s": 5},
    "stabilise": {"down_window_s": 30, "down_cooldown_s": 10, "down_after_up_s": 20}}

PAIR_BLOCK = {**BLOCK, "mode": "disagg", "budget": {"max_gpus": 6},
              "pools": {"prefill": {"boot_s": 15, **LIMITS}, "decode": {"boot_s": 15, **LIMITS}}}


def flight(block: Mapping[str, Any] = BLOCK, level: str = "decisions", *, scenario: str = SWING, seed: int = 3,
           more: Callable[[PipelinePlanner], None] | None = None, **changes: Any) -> tuple[Run, PipelinePlanner]:
    """A run of the scenario with the planner of the block, and that planner. more: is handed the planner before it flies."""
    made = Scenario.load(scenario).with_(changes)
    facts, wants = pool_facts(made.build_fleet()), Recorder(level).wants
    built = made.build_control(pools=facts, wants=wants)
    planner = build_pipeline_planner(read_planner(block), facts, wants=wants)
    if more is not None:
        more(planner)
    control = Control(lanes=built.lanes, fleet=built.fleet, planner=planner, settings=built.settings, wants=wants)
    world = Simulated(made.build_fleet(), seed=seed, record=level, until=made.duration_s)
    return world.run(control, made.build_source(seed=seed), name=made.name, slo=made.slo.bounds()), planner


@cache
def swing() -> tuple[Run, PipelinePlanner]:
    """The plain flight, flown once."""
    return flight()


@cache
def short(level: str = "full") -> tuple[Run, PipelinePlanner]:
    """Its first 100 s at a record level."""
    return flight(level=level, duration_s=100.0)


@cache
def pair() -> tuple[Run, PipelinePlanner]:
    """A flight with a pool for each of prefill and decode."""
    return flight(PAIR_BLOCK, scenario=PAIR)
