"""One endpoint of a live fleet, the life of the replica that it serves now, and what a look at it showed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from windtunnel.live.engines.engine import Capabilities, Engine, Health
from windtunnel.live.fleet import Endpoint

BOOTING, READY, GONE = "booting", "ready", "gone"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at an engine. why: ok, down, not_ready, not_an_engine or hangs; text: a sentence."""

    why: str
    text: str = ""

    @property
    def ok(self) -> bool:
        return self.why == "ok"


@dataclass(slots=True)
class LiveReplica:
    """One endpoint and the life of the replica that it serves now. in_flight: real attempts; heard_s: when one last said something.

    stand_in: answers instead in dry run; made when the replica is first ready (nothing is sent before that).
    """

    endpoint: Endpoint
    engine: Engine
    stand_in: Engine
    name: str
    life: int = 1
    state: str = BOOTING
    failures: int = 0
    successes: int = 0
    in_flight: int = 0
    heard_s: float = 0.0
    requests: int = 0
    output_tokens: int = 0
    since_s: float = 0.0
    ready_s: float | None = None
    scraped_s: float | None = None
    can: Capabilities = field(default_factory=Capabilities)
    last_look: Look = Look("down", "not looked at yet")
    managed: bool = False  # by a connector, which alone gives up on a boot

    def row(self, ordinal: int, gone_s: float | None, reason: str | None) -> dict[str, Any]:
        """This life for the table of replicas; GPU, cost and steps are unknown here."""
        return {
            "replica": self.name, "pool": self.endpoint.pool, "role": self.endpoint.role, "ordinal": ordinal,
            "requested_s": self.since_s, "ready_s": self.ready_s, "gone_s": gone_s, "gone_reason": reason,
            "requests": self.requests, "output_tokens": self.output_tokens,
        }

    @property
    def where(self) -> str:
        """Its endpoint, as people are told of it."""
        return f"{self.endpoint.name} ({self.endpoint.shown or self.endpoint.engine})"

    @property
    def kind(self) -> str:
        """What should answer there, in words."""
        return {"llamacpp": "llama.cpp", "vllm": "vLLM", "openai": "an OpenAI-compatible server"}.get(self.endpoint.engine, self.endpoint.engine)

    def look_of(self, health: Health) -> Look:
        """What its engine said of itself."""
        if health.ok:
            return Look("ok")
        tail = f": {health.message}" if health.message else ""
        if health.status == "unreachable":
            return Look("down", f"{self.where} is down{tail}")
        if health.status == "loading":
            return Look("not_ready", f"{self.where} is still loading{tail}")
        return Look("not_an_engine", f"{self.where} is not a healthy engine{tail}")
