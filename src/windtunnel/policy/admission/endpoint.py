"""An endpoint: the names it is known by, the cap that they share, and what is in flight over all its domains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from windtunnel.policy.admission.resource import Resource


class Endpoint:
    """raw_caps: by alias; no alias, no admission. resources: its domains, in the order of first use."""

    __slots__ = ("in_flight", "raw_caps", "resources")

    def __init__(self) -> None:
        self.raw_caps: dict[str, int] = {}
        self.resources: list[Resource] = []
        self.in_flight = 0

    @property
    def cap(self) -> int:
        """The smallest cap of its aliases; 0 without any."""
        return min(self.raw_caps.values(), default=0)


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """One endpoint at `captured_at` (run s). raw_caps: by alias; limits: in force, by domain."""

    captured_at: float
    provider: str
    model: str
    static_cap: int
    aggregate_in_flight: int
    aliases: tuple[str, ...]
    raw_caps: Mapping[str, int]
    limits: Mapping[str, int]
