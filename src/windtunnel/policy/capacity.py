"""How much a pipeline run may have in flight, where each number comes from, and what was seen: three sections that never mix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from windtunnel.errors import ConfigValueError
from windtunnel.policy.tasks.record import plain

CapacitySource = Literal["default", "run_config", "dataset_builder", "model_metadata", "engine_internal_config", "adapter_config",
                         "environment", "runtime_snapshot", "benchmark_override"]
SOURCES: tuple[str, ...] = get_args(CapacitySource)
CONFIGURED = ("buffer_size", "row_group_admission", "submission_capacity", "task_resource_limits", "request_resources",
              "provider_model_static_caps", "request_domain_initial_limits", "request_admission_config", "transport_pool_limits")
RUNTIME = ("request_domain_current_limits", "request_domain_effective_max", "request_domain_blocked_until",
           "provider_model_aggregate_in_flight")
OBSERVED = ("row_groups_in_flight", "queued_tasks_by_group", "task_leases_by_resource", "request_waiters_by_resource",
            "request_in_flight_by_resource", "provider_model_aggregate_in_flight", "request_domain_current_limits",
            "transport_pool_utilization")
ROW_GROUP_ADMISSION = ("mode", "row_group_concurrency", "target_in_flight", "max_admitted_rows")
DEFAULTS: Mapping[str, Any] = {"buffer_size": 1000, "submission_capacity": 1024}
NOT_GIVEN = "not given"


@dataclass(frozen=True, slots=True)
class CapacityValue:
    """One number, or mapping of numbers, with its origin. value None: missing, with the reason; never left out and never 0.

    fallback_from: the source that should have had it. Raises ConfigValueError.
    """

    value: Any
    source: CapacitySource
    fallback_from: CapacitySource | None = None
    missing_reason: str | None = None

    def __post_init__(self) -> None:
        for name in ("source", "fallback_from"):
            given = getattr(self, name)
            if given not in SOURCES and not (name == "fallback_from" and given is None):
                raise ConfigValueError(name, f"expected one of {', '.join(SOURCES)}, got {given!r}")
        if (self.value is None) != (self.missing_reason is not None):
            raise ConfigValueError("missing_reason", "expected a reason for a missing value, and none for a value that is there")


def missing(reason: str, source: CapacitySource = "default") -> CapacityValue:
    """A value that nobody gave."""
    return CapacityValue(None, source, None, reason)


def _leaves(section: str, names: tuple[str, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ConfigValueError(f"{section}.{unknown[0]}", f"expected one of {', '.join(names)}")
    leaves: dict[str, Any] = {}
    for name in names:
        if name == "row_group_admission":
            parts = given.get(name, {})
            leaves[name] = _leaves(f"{section}.{name}", ROW_GROUP_ADMISSION, parts)
            continue
        leaf = given.get(name, missing(NOT_GIVEN))
        if not isinstance(leaf, CapacityValue):
            raise ConfigValueError(f"{section}.{name}", f"expected a CapacityValue, got {leaf!r}")
        leaves[name] = leaf
    return leaves


@dataclass(frozen=True, slots=True)
class AsyncCapacityPlan:
    """configured: as set before the run; runtime_snapshot: as they are at an instant, None as a whole if there is none; observed_maxima:
    the largest values seen. Fields not given are there, as missing. Raises ConfigValueError for unknown fields and wrong leaves."""

    configured: Mapping[str, Any] = field(default_factory=dict)
    runtime_snapshot: Mapping[str, CapacityValue] | None = None
    observed_maxima: Mapping[str, CapacityValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "configured", _leaves("configured", CONFIGURED, self.configured))
        object.__setattr__(self, "observed_maxima", _leaves("observed_maxima", OBSERVED, self.observed_maxima))
        if self.runtime_snapshot is not None:
            object.__setattr__(self, "runtime_snapshot", _leaves("runtime_snapshot", RUNTIME, self.runtime_snapshot))

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives an equal plan back."""
        data: dict[str, Any] = plain(asdict(self))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AsyncCapacityPlan:
        snapshot = data["runtime_snapshot"]
        return cls(_read(data["configured"]), None if snapshot is None else _read(snapshot), _read(data["observed_maxima"]))


def _read(section: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _read(leaf) if name == "row_group_admission" else CapacityValue(**leaf) for name, leaf in section.items()}


def pick(name: str, *, benchmark_override: Any = None, run_config: Any = None, default: Any = None) -> CapacityValue:
    """By precedence: benchmark override, explicit run config, documented default. None everywhere is missing."""
    if benchmark_override is not None:
        return CapacityValue(benchmark_override, "benchmark_override")
    if run_config is not None:
        return CapacityValue(run_config, "run_config")
    known = DEFAULTS.get(name) if default is None else default
    return missing(NOT_GIVEN) if known is None else CapacityValue(known, "default", "run_config")


def static_cap(from_metadata: int | None, from_admission: int | None) -> CapacityValue:
    """An endpoint's cap: admission config may lower what the model's metadata says, never raise it."""
    if from_metadata is None and from_admission is None:
        return missing(NOT_GIVEN, "model_metadata")
    if from_metadata is None:
        return CapacityValue(from_admission, "adapter_config", "model_metadata")
    if from_admission is not None and from_admission < from_metadata:
        return CapacityValue(from_admission, "adapter_config")
    return CapacityValue(from_metadata, "model_metadata")


class Maxima:
    """The largest value seen per name and key, and in total."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}

    def saw(self, name: str, values: Mapping[str, float] | float) -> None:
        if not isinstance(values, Mapping):
            self._seen[name] = max(values, self._seen.get(name, values))
            return
        kept = self._seen.setdefault(name, {})
        for key, value in values.items():
            kept[key] = max(value, kept.get(key, value))

    def section(self, why_missing: Callable[[str], str] = lambda name: "not observed") -> dict[str, CapacityValue]:
        """The plan's `observed_maxima`."""
        return {name: CapacityValue(self._seen[name], "runtime_snapshot") if name in self._seen
                else missing(why_missing(name), "runtime_snapshot") for name in OBSERVED}
