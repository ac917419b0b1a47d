"""The `clients` block of a source: when clients give up, leave and try again."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from windtunnel.lab.dist_spec import DistSpec, build_dist
from windtunnel.lab.kinds import Spec, spec_of
from windtunnel.sources.backoff import Retry
from windtunnel.sources.clients import Clients
from windtunnel.sources.seeding import generator
from windtunnel.sources.source import Source

RetrySpec = spec_of(Retry)


class ClientsSpec(Spec):
    """Timeouts, abandonment and retries of the clients of one source."""

    timeout_s: float | None = Field(default=None, gt=0, description="From a submission to its last token (s).")
    ttft_timeout_s: float | None = Field(default=None, gt=0, description="From a submission to its first token (s).")
    idle_timeout_s: float | None = Field(default=None, gt=0, description="Between two tokens, from the first one on (s).")
    patience: DistSpec | None = Field(default=None, description="How long a client waits for its first token before it leaves for good (s).")
    cancel_on_timeout: bool = Field(default=True, description="false: the client only stops listening, and the engine works on.")
    tell_deadline: bool = Field(default=False, description="Requests carry the client's timeout as their deadline.")
    retry: RetrySpec | None = Field(default=None, description="Left out: clients never try again.")  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _something_to_tell(self) -> ClientsSpec:
        if self.tell_deadline and self.timeout_s is None:
            raise ValueError("tell_deadline needs a timeout_s")
        return self


def build_clients(spec: ClientsSpec, inner: Source, base: Path, seed: int, replication: int) -> Clients:
    """The source with its clients; they draw from a generator of their own."""
    patience = None if spec.patience is None else build_dist(spec.patience, base, "clients.patience")
    retry = None if spec.retry is None else spec.retry.config()
    return Clients(inner, timeout_s=spec.timeout_s, ttft_timeout_s=spec.ttft_timeout_s, idle_timeout_s=spec.idle_timeout_s, patience=patience,
                   cancel_on_timeout=spec.cancel_on_timeout, tell_deadline=spec.tell_deadline, retry=retry,
                   rng=generator(seed, f"source/{inner.name}/clients", replication))
