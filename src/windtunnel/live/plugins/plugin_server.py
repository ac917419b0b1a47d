"""Serve an in-process plugin over gRPC: what a plugin author runs. One class works in both places."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import signal
from collections.abc import Callable
from typing import Any

import grpc

from windtunnel.errors import PlanContractError, PluginSerializationError
from windtunnel.live.plugins import planner_pb2
from windtunnel.live.plugins import planner_pb2_grpc as rpc
from windtunnel.live.plugins.announce import Announcer
from windtunnel.live.plugins.bridge import from_proto, to_proto
from windtunnel.live.plugins.endpoint import Tls, bind, close_to_others, options
from windtunnel.policy.planning.contract import PredictResponse, StageResponse

pb: Any = planner_pb2  # its names are made at run time
GRACE_S = 0.5


class PluginServicer(rpc.PlannerPluginServicer):
    """The plugin's methods by their names on the wire. token: if given, callers have to bring it."""

    def __init__(self, plugin: Any, token: str | None = None) -> None:
        self._plugin, self._token = plugin, token

    async def Predict(self, request: Any, context: Any) -> Any:
        return await self._answer("predict", request, context, PredictResponse)

    async def Propose(self, request: Any, context: Any) -> Any:
        return await self._answer("propose", request, context, StageResponse)

    async def Reconcile(self, request: Any, context: Any) -> Any:
        return await self._answer("reconcile", request, context, StageResponse)

    async def Constrain(self, request: Any, context: Any) -> Any:
        return await self._answer("constrain", request, context, StageResponse)

    async def Bootstrap(self, request: Any, context: Any) -> Any:
        await self._known(context)
        if not hasattr(self._plugin, "bootstrap"):
            return pb.Done(ok=True, message="nothing to do")
        history = [from_proto(w) for w in request.history]
        return await self._done(context, self._plugin.bootstrap, history, request.window_s, dict(request.hints))

    async def Reset(self, request: Any, context: Any) -> Any:
        await self._known(context)
        if not hasattr(self._plugin, "reset"):
            return pb.Done(ok=True, message="nothing to do")
        return await self._done(context, self._plugin.reset, request.reason)

    async def _done(self, context: Any, method: Any, *args: Any) -> Any:
        try:
            result = method(*args)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            return pb.Done(ok=False, message=f"{type(error).__name__}: {error}")
        return pb.Done(ok=True)

    async def _known(self, context: Any) -> None:
        if self._token is not None:
            sent = dict(context.invocation_metadata() or ()).get("authorization", "")
            if not hmac.compare_digest(sent.encode(), f"Bearer {self._token}".encode()):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth_failed")

    async def _answer(self, name: str, request: Any, context: Any, kind: type) -> Any:
        await self._known(context)
        method: Any = getattr(self._plugin, name, None)
        if method is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"this plugin has no method {name}")
        try:
            asked = from_proto(request)
        except (PluginSerializationError, PlanContractError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        try:
            response = method(asked)
            if inspect.isawaitable(response):
                response = await response
        except Exception as error:
            await context.abort(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")
        if not isinstance(response, kind):
            await context.abort(grpc.StatusCode.INTERNAL, f"{name} answered {type(response).__name__}, not {kind.__name__}")
        return to_proto(response)


async def start(plugin: Any, listen: str, *, token: str | None = None, tls: Tls | None = None, allow_insecure: bool = False) -> grpc.aio.Server:
    """Serve a plugin on the running loop; `await server.stop(grace)` ends it. Raises PlannerConfigError."""
    server = grpc.aio.server(options=options())
    rpc.add_PlannerPluginServicer_to_server(PluginServicer(plugin, token), server)
    bind(server, listen, tls=tls, allow_insecure=allow_insecure)
    await server.start()
    close_to_others(listen)
    return server


def serve(plugin: Any, listen: str, *, token: str | None = None, tls: Tls | None = None, allow_insecure: bool = False,
          announcer: Callable[[], Announcer] | None = None) -> None:
    """Serve a plugin until the process is interrupted or terminated; it takes its leave of the planner first.

    announcer: makes what keeps it registered, if it registers itself. Raises PluginRefusedError if the planner does not want it.
    """
    asyncio.run(_serve(plugin, listen, announcer, token=token, tls=tls, allow_insecure=allow_insecure))
    print("stopped", flush=True)


async def _serve(plugin: Any, listen: str, announcer: Callable[[], Announcer] | None, **how: Any) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    server = await start(plugin, listen, **how)
    print(f"planner plugin {type(plugin).__name__} at {listen}", flush=True)
    told = None if announcer is None else announcer()
    try:
        await _until(asked, told)
    finally:
        if told is not None:
            await told.aclose()
        await server.stop(GRACE_S)


async def _until(asked: asyncio.Event, told: Announcer | None) -> None:
    """Until somebody asks to stop; an announcer that is refused ends it, too."""
    tasks = [asyncio.create_task(asked.wait()), *([asyncio.create_task(told.run())] if told is not None else [])]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
