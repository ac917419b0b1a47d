"""One attempt inside a simulated engine, and what an engine says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Required, TypedDict

from windtunnel.events import fact

# INBOUND: on its way through the host; SWAPPED: its KV is in host memory; MOVING: its KV comes back, or is on its way from or to another engine.
WAITING, RUNNING, GONE, INBOUND, SWAPPED, MOVING = range(6)


@fact
class Refusal:
    """The engine did not take a request. status: HTTP; reason: engine_queue_full, engine_unavailable, context_length_exceeded,
    kv_capacity_exceeded or invalid_request."""

    status: int
    reason: str
    retry_after_s: float | None = None


@fact
class EngineState:
    """What an engine looks like at one instant. generated: output tokens so far, of all requests ever; kv_used_fraction None: unbounded."""

    running: int
    waiting: int
    kv_used_fraction: float | None
    generated: int


class Attempt:
    """One attempt in an engine. Token counts; times in run s, filled in by the engine.

    blocks: chained prefix hashes of the prompt (and of the output behind it, if known), one per `cache_block_tokens`.
    `output` 0 costs the engine one token and is reported as none, without a first token.
    """

    __slots__ = (
        "base", "blocks", "cached_blocks", "cached_tokens", "cancelled", "computed", "dispatch", "end_mark", "filled", "finished_s", "first_token_s",
        "generated", "held", "id", "input_blocks", "kv_bytes", "kv_transfer_s", "kv_wait_s", "line", "lost_at", "order", "output", "preempted_at",
        "preemptions", "priority", "prompt", "ready_s", "recomputed_tokens", "refs", "segments", "started_s", "state", "submitted_s",
        "swapped_blocks", "target",
    )

    # Only of who was swapped out: when that ended. Only of who was prefilled elsewhere: the way of its KV.
    ready_s: float
    kv_bytes: float
    kv_wait_s: float
    kv_transfer_s: float

    def __init__(self, id: str, dispatch: int, prompt: int, output: int, priority: int = 0, blocks: tuple[int, ...] | None = None) -> None:
        self.id, self.dispatch, self.prompt, self.output, self.priority, self.blocks = id, dispatch, prompt, output, priority, blocks
        self.submitted_s = 0.0
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.finished_s: float | None = None
        self.cached_tokens = self.cached_blocks = self.input_blocks = 0
        self.preemptions = self.recomputed_tokens = self.swapped_blocks = self.generated = 0
        # Below: the engine's own. target: tokens to prefill, after a preemption what was generated too.
        self.target = prompt
        self.computed = self.held = self.order = self.state = self.line = 0
        self.filled = 0  # leading blocks that are findable, or somebody else's
        self.base: Any = 0  # while decoding: computed = base + D; with expected speculation (computed, D) at its start
        self.end_mark = -1  # while decoding: the D at which it ends; -1 otherwise
        self.preempted_at = -1  # `generated` at the last preemption
        self.refs: list[int] | None = None  # prefix entries that it holds, first block first
        self.segments: list[tuple[int, int, float]] | None = None  # (token, D, time) of each start of decoding
        self.lost_at: float | None = None  # time of the last token before a preemption
        self.cancelled = False


class Callbacks(TypedDict, total=False):
    """What an engine calls with an attempt that ends, yields its first token or starts; the engine is consistent then, so they may submit and
    cancel."""

    on_finish: Required[Callable[[Attempt], None]]
    on_cancelled: Required[Callable[[Attempt], None]]
    on_first: Callable[[Attempt], None]
    on_started: Callable[[Attempt], None]
