"""What was seen: traffic, engine steps and replicas, as planner plugins are shown them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from windtunnel.policy.planning.checks import INT32_MAX, STRICT, bad, component_name, flag, one, real, table, text, whole


@dataclass(frozen=True, slots=True)
class TrafficMetrics:
    """Traffic of a window. num_req: requests that ARRIVED in it; means carry their denominators; coverage: known share of the window."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    duration_s: float
    num_req: float
    isl: float | None = None
    osl: float | None = None
    kv_hit_rate: float | None = None
    accept_length: float | None = None
    ttft_s: float | None = None
    itl_s: float | None = None
    isl_count: float = 0
    osl_count: float = 0
    kv_hit_tokens: float = 0
    accept_forwards: float = 0
    ttft_count: float = 0
    itl_count: float = 0
    coverage: float = 1.0

    def __post_init__(self) -> None:
        for name in ("duration_s", "num_req", "isl_count", "osl_count", "kv_hit_tokens", "accept_forwards", "ttft_count", "itl_count"):
            real(f"traffic.{name}", getattr(self, name))
        for name, lo, hi in (("isl", 0, None), ("osl", 0, None), ("kv_hit_rate", 0, 1), ("accept_length", 1, None), ("ttft_s", 0, None),
                             ("itl_s", 0, None)):
            value = getattr(self, name)
            if value is not None:
                real(f"traffic.{name}", value, lo, hi)
        real("traffic.coverage", self.coverage, 0, 1)


INTS, INF = {int}, float("inf")


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What an engine step holds, or what waits for one: requests and tokens."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    num_prefill: int = 0
    prefill_tokens: int = 0
    prefill_kv_tokens: int = 0
    num_decode: int = 0
    decode_kv_tokens: int = 0
    var_prefill_length: float = 0.0
    var_decode_kv_tokens: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.num_prefill, self.prefill_tokens, self.prefill_kv_tokens, self.num_decode, self.decode_kv_tokens)
        if {type(count) for count in counts} == INTS and min(counts) >= 0 and type(self.var_prefill_length) is float and (
                type(self.var_decode_kv_tokens) is float and 0.0 <= self.var_prefill_length < INF and 0.0 <= self.var_decode_kv_tokens < INF):
            return
        for name in ("num_prefill", "prefill_tokens", "prefill_kv_tokens", "num_decode", "decode_kv_tokens"):
            whole(f"step_load.{name}", getattr(self, name))
        real("step_load.var_prefill_length", self.var_prefill_length)
        real("step_load.var_decode_kv_tokens", self.var_decode_kv_tokens)


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """One engine step of one rank: at_s run seconds, wall_s its length (0: idle report)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    replica_id: str
    rank: int
    counter: int
    at_s: float
    wall_s: float
    scheduled: StepLoad
    queued: StepLoad

    def __post_init__(self) -> None:
        text("forward_pass.replica_id", self.replica_id)
        if not self.replica_id:
            raise bad("forward_pass.replica_id", "a name", self.replica_id)
        whole("forward_pass.rank", self.rank)
        whole("forward_pass.counter", self.counter)
        real("forward_pass.at_s", self.at_s, float("-inf"))
        real("forward_pass.wall_s", self.wall_s)
        one("forward_pass.scheduled", self.scheduled, StepLoad, optional=False)
        one("forward_pass.queued", self.queued, StepLoad, optional=False)


@dataclass(frozen=True, slots=True)
class FpmData:
    """component -> "<replica_id>/<rank>" -> newest report."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    engines: Mapping[str, Mapping[str, ForwardPass]]

    def __post_init__(self) -> None:
        for component, reports in table("fpm.engines", self.engines).items():
            component_name("fpm.engines key", component)
            for key, report in table(f"fpm.engines.{component}", reports).items():
                if type(report) is not ForwardPass:
                    raise bad(f"fpm.engines.{component}.{key}", "ForwardPass", report)


@dataclass(frozen=True, slots=True)
class PoolState:
    """Replicas of a pool. expected: the accepted target; scaling: a change is under way; boot_s: from asking to ready."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    ready: int | None = None
    expected: int | None = None
    starting: int | None = None
    draining: int | None = None
    scaling: bool | None = None
    boot_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ready", "expected", "starting", "draining"):
            value = getattr(self, name)
            if value is not None:
                whole(f"pool_state.{name}", value, 0, INT32_MAX)
        if self.scaling is not None:
            flag("pool_state.scaling", self.scaling)
        if self.boot_s is not None:
            real("pool_state.boot_s", self.boot_s)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """Pools by component."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    pools: Mapping[str, PoolState]

    def __post_init__(self) -> None:
        for component, pool in table("workers.pools", self.pools).items():
            component_name("workers.pools key", component)
            one(f"workers.pools.{component}", pool, PoolState, optional=False)


@dataclass(frozen=True, slots=True)
class ObservationData:
    """What was seen; a block that was not collected this tick is None."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    traffic: TrafficMetrics | None = None
    fpm: FpmData | None = None
    workers: WorkerState | None = None

    def __post_init__(self) -> None:
        one("observations.traffic", self.traffic, TrafficMetrics)
        one("observations.fpm", self.fpm, FpmData)
        one("observations.workers", self.workers, WorkerState)
