"""What a live world asks of a connector, and what a connector may ask of the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from windtunnel.effects import Drain, ScaleTo
from windtunnel.live.fleet import Endpoint

Status = Literal["accepted", "unchanged", "superseded", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class PoolCount:
    """Replicas of one pool. ready: serving, not draining; expected: the accepted target; None: not known."""

    ready: int | None = None
    starting: int | None = None
    draining: int | None = None
    expected: int | None = None

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ScaleReply:
    """What became of a plan."""

    status: Status
    reason: str = ""


class Scaler(Protocol):
    """Changes the number of replicas. Targets are absolute: the same plan twice changes nothing, an older plan is superseded.

    Raises ScalerRefused (the orchestrator said no) and ScalerUnavailable (nobody knows what became of it).
    """

    async def observe(self) -> Mapping[str, PoolCount]: ...
    async def apply(self, plan: ScaleTo) -> ScaleReply: ...
    async def drain(self, order: Drain) -> None: ...
    async def aclose(self) -> None: ...


class Roster(Protocol):
    """The live world's replicas, as a connector sees them."""

    def add(self, endpoint: Endpoint) -> None:
        """Look at this endpoint from now on; it serves once it is healthy."""

    def notice(self, name: str, reason: str, timeout_s: float) -> None:
        """No new work for it; it goes within `timeout_s`."""

    def remove(self, name: str, reason: str) -> None:
        """It is gone for good; what still ran there has failed."""

    def in_flight(self, name: str) -> int: ...
    def serves(self, name: str) -> bool: ...


class NoScaler:
    """Advisory: plans are recorded, nothing moves."""

    async def observe(self) -> Mapping[str, PoolCount]:
        return {}

    async def apply(self, plan: ScaleTo) -> ScaleReply:
        return ScaleReply("refused", "no_connector")

    async def drain(self, order: Drain) -> None:
        """Nothing moves."""

    async def aclose(self) -> None:
        """Nothing is open."""
