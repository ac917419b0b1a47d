"""What a planner has outside this process: plugins that it calls, and the door at which plugins register themselves. Plain data.

A planner carries it for the live driver, which opens and closes the connections; simulation and replay do not look at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ExternalPlugin:
    """A plugin that the configuration names. token: env:NAME or file:PATH, never the value; tls: paths of PEM files ca, cert, key."""

    plugin_id: str
    endpoint: str
    token: str | None = None
    tls: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """The door. sources: who may register, as `live.plugins.auth.source_of` reads them; admin_subjects may list the plugins.

    allow_insecure: plaintext TCP at the door. How many heartbeats may be missed is the roster's business.
    """

    listen: str
    sources: tuple[Mapping[str, Any], ...]
    admin_subjects: frozenset[str] = frozenset()
    allow_insecure: bool = False
    tls: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Outside:
    """externals: called at their endpoints; registry: None if nobody may register. allow_insecure_grpc: plaintext calls over TCP."""

    externals: tuple[ExternalPlugin, ...] = ()
    registry: RegistrySettings | None = None
    allow_insecure_grpc: bool = False
    keepalive_s: float = 30.0
    max_message_bytes: int = 10 * 1024 * 1024
