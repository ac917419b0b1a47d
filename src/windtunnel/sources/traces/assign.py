"""Operations that give rows a tenant, a priority class or a deadline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from windtunnel.errors import ConfigValueError
from windtunnel.events import PRIORITIES
from windtunnel.policy.param import check_number
from windtunnel.policy.routing.hashing import h64
from windtunnel.sources.shares import Shares
from windtunnel.sources.traces.keys import Keys
from windtunnel.sources.traces.open import Trace
from windtunnel.sources.traces.row import values_of, with_column


@dataclass(frozen=True, slots=True)
class AssignTenants:
    """Tenants by share: h64(key) / 2**64 against the cumulative shares, the same whatever the order of rows."""

    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        Shares("assign_tenants", self.shares)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: _assign(trace, "tenant", Shares("assign_tenants", self.shares)))


@dataclass(frozen=True, slots=True)
class AssignPriority:
    """Priority classes by share, by the same points as tenants: equal shares in equal order make equal groups."""

    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        _check_classes("assign_priority", Shares("assign_priority", self.shares).names)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: _assign(trace, "priority", Shares("assign_priority", self.shares)))


@dataclass(frozen=True, slots=True)
class AssignDeadline:
    """Deadlines in s after the arrival: one for all, or one by priority class (rows of other classes keep theirs)."""

    slo: float | Mapping[str, float]

    def __post_init__(self) -> None:
        if isinstance(self.slo, Mapping):
            _check_classes("assign_deadline", self.slo)
            for name, value in self.slo.items():
                check_number(f"assign_deadline.{name}", value, above=0)
        else:
            check_number("assign_deadline", self.slo, above=0)

    def __call__(self, trace: Trace, salt: str) -> Trace:
        return trace.with_batches(lambda: (with_column(batch, "deadline_in_s", self._deadlines(batch)) for batch in trace.batches()))

    def _deadlines(self, batch: pa.RecordBatch) -> list[float | None]:
        slo = self.slo
        if not isinstance(slo, Mapping):
            return [float(slo)] * batch.num_rows
        rows = zip(values_of(batch, "priority"), values_of(batch, "deadline_in_s"))
        return [slo.get(class_ or "interactive", old) for class_, old in rows]


def _assign(trace: Trace, column: str, shares: Shares) -> Iterator[pa.RecordBatch]:
    keys = Keys()
    for batch in trace.batches():
        points = np.array([h64(key) for key in keys.of(batch)], dtype=np.uint64) / 2.0**64
        yield with_column(batch, column, shares.pick(points))


def _check_classes(field: str, names: Iterable[str]) -> None:
    for name in names:
        if name not in PRIORITIES:
            raise ConfigValueError(field, f"expected {' or '.join(PRIORITIES)}, got {name!r}")
