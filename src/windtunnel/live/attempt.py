"""One attempt of a request on a real engine: a task that owns the stream and says exactly once how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from windtunnel.effects import Dispatch
from windtunnel.events import Failed, Finished, FirstToken, Request, Started
from windtunnel.live.clock import RunClock
from windtunnel.live.engines import engine as wire
from windtunnel.live.gate import Gate
from windtunnel.sources.traces.prompts import Prompts

if TYPE_CHECKING:
    from windtunnel.live.replica import LiveReplica

DEFAULT_MAX_TOKENS = 1024  # a request without a bound must not run for ever: some engines have none of their own
PROGRESS_TOKENS = 32  # of one request, between two reports of its replica
DEFAULT_INPUT_TOKENS = 64  # prompt length of a request that says nothing of its own
_CALL_FIELDS = frozenset({"prompt", "messages", "max_tokens", "temperature", "seed", "ignore_eos"})
_PROMPTS = Prompts("live")


class LiveAttempt:
    """One `Dispatch` on its way. `over(self, event)` is called exactly once; `heard` gets Started and FirstToken;
    `progressed(self)`, if given, is called whenever 32 tokens have not been reported.

    All times are taken here, when the event is read from the stream: run seconds. tokens: output so far, by the engine's count.
    """

    __slots__ = (
        "_clock", "_engine", "_gate", "_heard", "_outcome", "_over", "_progressed", "_reason", "_said", "_usage", "dispatch", "dry", "first_token_s",
        "key", "muted", "replica", "reported", "started_s", "task", "tokens",
    )

    def __init__(self, dispatch: Dispatch, replica: LiveReplica, clock: RunClock, gate: Gate, *, dry: bool,
                 over: Callable[[LiveAttempt, Finished | Failed], None], heard: Callable[[Started | FirstToken], None],
                 progressed: Callable[[LiveAttempt], None] | None = None) -> None:
        self.dispatch, self.replica, self.dry = dispatch, replica, dry
        self.key = (dispatch.request.id, dispatch.dispatch)
        self._engine = replica.stand_in if dry else replica.engine
        self._clock, self._gate, self._over, self._heard = clock, gate, over, heard
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.tokens = self.reported = 0
        self._progressed = progressed
        self._usage: wire.Usage | None = None
        self._reason, self._outcome = "", "local_cancelled"
        self._said = self.muted = False
        self.task: asyncio.Task[None] | None = None

    # -- stopping -------------------------------------------------------------------------------------------------------------------

    def stop(self, reason: str, outcome: str = "local_cancelled") -> None:
        """Leave the stream; `over` follows when the engine has let go. The first reason counts."""
        if self._reason or self._said or self.task is None:
            return
        self._reason, self._outcome = reason, outcome
        self.task.cancel()

    def abandon(self, reason: str) -> None:
        """End without waiting for the engine any longer."""
        self._say(self._failed(self._outcome, self._reason or reason))
        if self.task is not None:
            self.task.cancel()

    def gone(self, task: asyncio.Task[None]) -> None:
        """The task is over; one that was cancelled before its first step has said nothing yet."""
        self._say(self._failed(self._outcome, self._reason or "stopped"))

    # -- the stream -----------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send, read, report. Never raises."""
        if not self.dry:
            self.replica.in_flight += 1
            self.replica.heard_s = self._clock.now()
        try:
            if self._gate.closed:  # closed between the gate's verdict and this task's first step
                self._reason = "stopped"
            else:
                await self._stream()
        except asyncio.CancelledError:
            self._reason = self._reason or "stopped"
        except Exception as error:
            self._say(self._failed("unexpected_exception", f"adapter_{type(error).__name__}"))
        finally:
            if not self.dry:
                self.replica.in_flight -= 1
            self._say(self._failed(self._outcome, self._reason) if self._reason else self._failed("provider_failure", "eof_without_end"))

    async def _stream(self) -> None:
        call = call_of(self.dispatch, self.replica.endpoint.model)
        async with self._engine.stream(call) as events:
            async for event in events:
                if isinstance(event, wire.Delta):
                    self._delta(event)
                elif isinstance(event, wire.Opened):
                    self.started_s = self._clock.now()
                    self._heard(Started(*self.key, self.dispatch.replica))
                elif isinstance(event, wire.Usage):
                    self._usage = event
                elif isinstance(event, wire.Ended):
                    self._say(self._finished(event))
                elif isinstance(event, wire.Failed):
                    self._say(self._failed(event.outcome, event.reason, event.status, event.retry_after_s))
                self.replica.heard_s = self._clock.now()

    def _delta(self, event: Any) -> None:
        self.tokens += 1 if event.n is None else event.n
        if self.first_token_s is None:
            self.first_token_s = self._clock.now()
            self._heard(FirstToken(*self.key, self.dispatch.replica))
        if self._progressed is not None and self.tokens - self.reported >= PROGRESS_TOKENS:
            self._progressed(self)

    # -- the end, once --------------------------------------------------------------------------------------------------------------

    def _say(self, event: Finished | Failed) -> None:
        if not self._said:
            self._said = True
            self._over(self, event)

    def _finished(self, ended: wire.Ended) -> Finished | Failed:
        usage = self._usage or wire.Usage()
        if usage.output_tokens is None and not self.tokens:
            return self._failed("unexpected_exception", "empty_success")
        output = self.tokens if usage.output_tokens is None else usage.output_tokens
        self.replica.requests += not self.dry
        self.replica.output_tokens += 0 if self.dry else output
        return Finished(*self.key, self.dispatch.replica, output, usage.input_tokens, usage.cached_tokens, self.started_s,
                        self.first_token_s, ended.finish_reason, ended.timings)

    def _failed(self, outcome: str, reason: str, status: int | None = None, retry_after_s: float | None = None) -> Failed:
        return Failed(*self.key, self.dispatch.replica, outcome, reason, status, retry_after_s, self.tokens or None, self.started_s,
                      self.first_token_s)


def call_of(dispatch: Dispatch, model: str = "") -> wire.EngineCall:
    """What the engine is asked for: the request's own content, else a prompt made from its id, blocks and token count.

    model: the engine's own name for it, "" = the request's. content: text, a list of chat messages, or a mapping with `prompt` or
    `messages` and sampling fields.
    """
    request = dispatch.request
    given = _given(request)
    own = {k: v for k, v in given.items() if k in _CALL_FIELDS}
    own["max_tokens"] = request.max_tokens or own.get("max_tokens") or DEFAULT_MAX_TOKENS
    more = {k: v for k, v in given.items() if k not in _CALL_FIELDS}
    call_id = f"{request.id}/{dispatch.dispatch}"
    return wire.EngineCall(call_id, priority=request.priority, model=model or request.model, options=more, **own)


def _given(request: Request) -> Mapping[str, Any]:
    content = request.content
    if content is None:
        n = DEFAULT_INPUT_TOKENS if request.input_tokens is None else max(1, request.input_tokens)
        return {"prompt": _PROMPTS.text(request.id, n, request.blocks)}
    if isinstance(content, Mapping):
        return content
    return {"prompt": content} if isinstance(content, str) else {"messages": content}
