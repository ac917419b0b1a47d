"""Answers a planner's questions in the live world: all calls at once, each within its own time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any

from windtunnel.effects import Ask
from windtunnel.errors import PlanContractError, PluginCallError
from windtunnel.events import Answered
from windtunnel.policy.planning.calls import Answer, Call, CallError
from windtunnel.policy.planning.pipeline import answer_inline

HERE = ("inline", "async")  # transports of plugins in this process


class Asking:
    """clients: of plugins elsewhere, by id and number of the registration; local_only: a shadow asks nobody outside this process."""

    def __init__(self, now: Callable[[], float], clients: Mapping[tuple[str, int], Any] | None = None, *, local_only: bool = False) -> None:
        self._now, self.clients, self.local_only = now, clients if clients is not None else {}, local_only

    async def ask(self, effect: Ask) -> Answered:
        """Always one Answered with one Answer per call; raises nothing but CancelledError."""
        return Answered(effect.gather_id, tuple(await asyncio.gather(*(self._one(call) for call in effect.calls))))

    async def _one(self, call: Call) -> Answer:
        started = self._now()
        answer = Answer(call.plugin_id)
        try:
            async with asyncio.timeout(call.timeout_s):
                answer = await self._reach(call)
        except TimeoutError:
            answer.error = CallError("timeout", f"no answer within {call.timeout_s:g} s")
        except PluginCallError as error:
            answer.error = CallError(error.kind, str(error))  # type: ignore[arg-type]
        except PlanContractError as error:
            answer.error = CallError("contract", str(error))
        except NotImplementedError as error:
            answer.error = CallError("unknown_method", str(error))
        except Exception as error:
            answer.error = CallError("raised", f"{type(error).__name__}: {error}")
        answer.started_at, answer.finished_at = started, self._now()
        return answer

    async def _reach(self, call: Call) -> Answer:
        """A client by its `call`, an `async def` plugin by awaiting it, any other in a thread of its own.

        Who has an endpoint is asked there, whatever stands in for it in a simulated world.
        """
        target = self.clients.get((call.plugin_id, call.generation))
        if target is None and (call.transport in HERE or hasattr(call.target, "call")):
            target = call.target
        if target is None:
            return Answer(call.plugin_id, None, CallError("connection", "no client for this plugin"))
        client = getattr(target, "call", None)
        if iscoroutinefunction(client):
            if self.local_only:
                return Answer(call.plugin_id, None, CallError("connection", "a shadow calls nobody outside"))
            return Answer(call.plugin_id, await client(call.stage, call.request, call.timeout_s))
        method = getattr(target, call.stage, None)
        if iscoroutinefunction(method):
            return Answer(call.plugin_id, await method(call.request))
        return await asyncio.to_thread(answer_inline, Call(call.plugin_id, call.generation, call.stage, call.request, call.timeout_s,
                                                           call.transport, target))
