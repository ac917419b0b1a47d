"""A plugin's side of the registry: registers, beats its heart, registers again when it was forgotten, and takes its leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import grpc

from windtunnel.errors import PluginRefusedError
from windtunnel.live.plugins import planner_pb2
from windtunnel.live.plugins import planner_pb2_grpc as rpc
from windtunnel.live.plugins.bridge import STAGES
from windtunnel.live.plugins.endpoint import Tls, channel_to
from windtunnel.policy.planning.plugin import Registration

pb: Any = planner_pb2  # its names are made at run time
log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S, CALL_S = 0.2, 5.0, 5.0
DUPLICATE = "duplicate_plugin_id"
_NOT_SENT = frozenset({"offload", "stage", "needs", "requires"})


def request_of(reg: Registration, token: str) -> Any:
    """The RegisterRequest of a registration."""
    request = pb.RegisterRequest(auth_token=token, stage=STAGES[reg.stage], needs=reg.needs, requires=reg.requires)
    for f in fields(reg):
        value = getattr(reg, f.name)
        if f.name not in _NOT_SENT and value is not None:
            setattr(request, f.name, value)
    return request


class Announcer:
    """Keeps one plugin registered. registry: grpc://, grpcs:// or unix: address; token: read at each call, so that it may change.

    replace: if the id is taken, unregister it first (only one's own can be). Raises PluginRefusedError from `register` for a refusal that
    trying again will not change.
    """

    def __init__(self, registry: str, registration: Registration, token: Callable[[], str] = lambda: "", *, tls: Tls | None = None,
                 allow_insecure: bool = False, replace: bool = False) -> None:
        self.registration, self._token, self._replace = registration, token, replace
        self._channel = channel_to(registry, tls=tls, allow_insecure=allow_insecure)
        self._stub: Any = rpc.PlannerRegistryStub(self._channel)
        self.heartbeat_timeout_s = 15.0
        self.registered = False

    async def register(self) -> None:
        """Until it is registered; a registry that is not there yet is waited for."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                reply = await self._stub.Register(request_of(self.registration, self._token()), timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                log.info("planner registry: %s; tried again in %g s", error.details(), wait_s)
            else:
                if reply.accepted:
                    self.heartbeat_timeout_s, self.registered = reply.heartbeat_timeout_s, True
                    return
                if not (self._replace and reply.reason.startswith(DUPLICATE)):
                    raise PluginRefusedError(reply.reason)
                self._replace = False
                await self.unregister("replaced")
                continue
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def run(self) -> None:
        """Register, and beat three times per heartbeat_timeout_s, until cancelled. A planner that does not know it any more is told again."""
        await self.register()
        while True:
            await asyncio.sleep(self.heartbeat_timeout_s / 3)
            if not await self.beat():
                self.registered = False
                await self.register()

    async def beat(self) -> bool:
        """False if the planner says that this is not its plugin; a registry that cannot be reached says nothing."""
        try:
            await self._stub.Heartbeat(pb.HeartbeatRequest(auth_token=self._token(), plugin_id=self.registration.plugin_id), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            log.info("planner registry: %s", error.details())
            return error.code() not in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
        return True

    async def unregister(self, reason: str = "stopped") -> bool:
        """Take leave; False if nobody took note."""
        self.registered = False
        request = pb.UnregisterRequest(auth_token=self._token(), plugin_id=self.registration.plugin_id, reason=reason)
        try:
            return bool((await self._stub.Unregister(request, timeout=CALL_S)).removed)
        except grpc.aio.AioRpcError as error:
            log.info("planner registry: %s", error.details())
            return False

    async def aclose(self) -> None:
        """Unregister if registered, and close the connection."""
        if self.registered:
            await self.unregister()
        await self._channel.close()
