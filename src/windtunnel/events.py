"""What happened: the events that a world hands to `Control`, and the request they speak of.

All types here are facts: made once, never changed after they were handed over. Times are run seconds; unknown is `None`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from windtunnel.policy.planning.contract import ForwardPass
    from windtunnel.policy.routing.turns import TurnRef

FROZEN = os.environ.get("WINDTUNNEL_FROZEN") == "1"
T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def fact(cls: type[T]) -> type[T]:
    """A slots dataclass that type checkers see as frozen; really frozen only under WINDTUNNEL_FROZEN=1 (frozen costs 4x per object)."""
    return dataclass(slots=True, frozen=FROZEN)(cls)


PRIORITIES: Mapping[str, int] = {"interactive": 0, "batch": 1}
PRIORITY_NAMES: Mapping[int, str] = {v: k for k, v in PRIORITIES.items()}


@fact
class Truth:
    """What a simulated engine will do with a request; no policy may read it. Tokens, seconds, block hashes."""

    output_tokens: int
    service_s: float | None = None
    output_blocks: tuple[int, ...] | None = None


@fact
class Request:
    """One submission of what a client wants. `id` is unique in the run, `origin` is shared by a client's retries.

    priority: 0 interactive, 1 batch, larger = less urgent. deadline_s, intended_s: absolute run seconds.
    content (live) and truth (simulated) are opaque: never read by a policy, never logged.
    """

    id: str
    tenant: str
    model: str
    priority: int
    arrived_s: float
    input_tokens: int | None = None
    max_tokens: int | None = None
    expected_tokens: int | None = None
    origin: str | None = None
    attempt: int = 1
    tried: frozenset[str] = frozenset()
    intended_s: float | None = None
    deadline_s: float | None = None
    domain: str = "chat"
    pool: str | None = None
    replica: str | None = None
    blocks: tuple[int, ...] | None = None
    route_key: str | None = None
    turn: TurnRef | None = None
    labels: tuple[tuple[str, str], ...] = ()
    placement: Any = None
    phase: str = "profiling"
    recovered: bool = False
    content: Any = field(default=None, compare=False, repr=False)
    truth: Truth | None = field(default=None, compare=False, repr=False)


@fact
class Scrape:
    """What an engine's metrics said at `sampled_s`; each value may be None on its own (not exported)."""

    sampled_s: float
    running: int | None = None
    waiting: int | None = None
    kv_used_fraction: float | None = None
    preemptions: int | None = None
    input_tokens_total: int | None = None
    output_tokens_total: int | None = None
    cached_tokens_total: int | None = None
    num_blocks: int | None = None
    sleeping: bool | None = None


@fact
class Arrived:
    """A request reached the control."""

    request: Request


@fact
class Cancelled:
    """The client gave up on a request (or, with `session` alone, on a session)."""

    request_id: str | None = None
    session: str | None = None
    reason: str = "cancelled"
    outcome: str = "local_cancelled"


@fact
class Started:
    """The engine began an attempt (in a batch; live: the response opened). Only if `started` is needed."""

    request_id: str
    dispatch: int
    replica: str


@fact
class FirstToken:
    """The first content token of an attempt. Only if `first_token` is needed."""

    request_id: str
    dispatch: int
    replica: str


@fact
class HandedOver:
    """The KV of an attempt that was prefilled on `prefill` is on its way to its decode replica: the prefill side is done with its work.
    Only if `handover` is needed."""

    request_id: str
    dispatch: int
    prefill: str


@fact
class Progressed:
    """Output tokens so far of requests on one replica: ((request_id, output_tokens), ...). Only if `progress` is needed."""

    replica: str
    counts: tuple[tuple[str, int], ...]


@fact
class Finished:
    """A complete answer: the only success. started_s, first_token_s: run seconds or None; engine: numbers for the record."""

    request_id: str
    dispatch: int
    replica: str
    output_tokens: int | None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    started_s: float | None = None
    first_token_s: float | None = None
    finish_reason: str = "stop"
    engine: Mapping[str, Any] | None = None


@fact
class Failed:
    """An attempt ended otherwise, including the engine's acknowledgement of a stop. `outcome` is the lease outcome."""

    request_id: str
    dispatch: int
    replica: str
    outcome: str
    reason: str
    status: int | None = None
    retry_after_s: float | None = None
    output_tokens: int | None = None
    started_s: float | None = None
    first_token_s: float | None = None


@fact
class ReplicaBooting:
    """A replica was asked for or moved one boot stage on."""

    replica: str
    pool: str
    role: str = "agg"
    stage: str = "requested"


@fact
class ReplicaReady:
    """A replica serves (again). slots: requests it runs at once; kv_tokens: KV capacity; boot_s: seconds from asking to ready."""

    replica: str
    pool: str
    role: str = "agg"
    weight: float = 1.0
    slots: int | None = None
    kv_tokens: int | None = None
    boot_s: float | None = None
    facts: Mapping[str, Any] | None = None


@fact
class ReplicaGone:
    """A replica is gone, or will be if `effective_at` lies ahead (a notice)."""

    replica: str
    reason: str
    effective_at: float | None = None


@fact
class Scraped:
    """An engine's metrics arrived. Only if `scrape` is needed."""

    replica: str
    scrape: Scrape


@fact
class StepReported:
    """What an engine says of its last step. Only if `fpm` is needed."""

    replica: str
    report: ForwardPass


@fact
class PoolsObserved:
    """An orchestrator's view of the pools: {pool: {"ready": n, "starting": n, "draining": n, "expected": n}}."""

    pools: Mapping[str, Any]


@fact
class ScaleAnswered:
    """What became of a ScaleTo: accepted, unchanged, superseded, refused or failed."""

    plan_id: int
    status: str
    reason: str = ""


@fact
class Answered:
    """The answers to an Ask."""

    gather_id: int
    items: tuple[Any, ...]


@fact
class Woke:
    """A wake that was asked for is due."""

    key: str


@fact
class Commanded:
    """An operator's command. name: stop, drain, undrain, reconfigure; args: plain data."""

    name: str
    args: Mapping[str, Any] | None = None


Event = (
    Arrived | Cancelled | Started | FirstToken | HandedOver | Progressed | Finished | Failed | ReplicaBooting | ReplicaReady | ReplicaGone
    | Scraped | StepReported | PoolsObserved | ScaleAnswered | Answered | Woke | Commanded
)
