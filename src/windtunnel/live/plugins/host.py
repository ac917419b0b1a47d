"""A planner's connections in a live run: clients of its plugins elsewhere, and the registry's server. Opened and closed with the run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from windtunnel.errors import PlannerConfigError, PluginCallError, PluginUnknownMethodError
from windtunnel.events import Event
from windtunnel.live.plugins.auth import AnyOf, source_of
from windtunnel.live.plugins.auth import secret_of as secret
from windtunnel.live.plugins.endpoint import Tls, bind, close_to_others, options
from windtunnel.live.plugins.grpc_client import GrpcPlugin
from windtunnel.live.plugins.registry import Registry
from windtunnel.policy.planning.outside import ExternalPlugin, Outside
from windtunnel.policy.planning.roster import Entry

log = logging.getLogger(__name__)
GRACE_S, RETRY_S, TIDY_S = 0.5, 30.0, 1.0
Key = tuple[str, int]


class PluginHost:
    """clients: by plugin id and registration, for whoever answers the planner's questions.

    Everything runs on the driver's loop. planner: its roster is read; what changes it goes through `deliver`. retry_s: how long after a
    failure a configured plugin is tried again.
    """

    def __init__(self, planner: Any, outside: Outside, deliver: Callable[[Event], None], now: Callable[[], float], *,
                 over: Callable[[], bool] = lambda: False, retry_s: float = RETRY_S) -> None:
        self._planner, self._outside, self._deliver, self._now, self._over = planner, outside, deliver, now, over
        self._retry_s = retry_s
        self.clients: dict[Key, GrpcPlugin] = {}
        self._server: grpc.aio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def bind(self) -> None:
        """Take the registry's address. Raises PlannerConfigError: no address, no secret, no plaintext without permission."""
        door = self._outside.registry
        if door is None:
            return
        sources = [source_of(source, door.listen) for source in door.sources]
        registry = Registry(self._planner.roster, AnyOf(sources), self._deliver, self._now, self, over=self._over, admins=door.admin_subjects,
                            allow_insecure_grpc=self._outside.allow_insecure_grpc)
        server = grpc.aio.server(options=options(self._outside.keepalive_s, self._outside.max_message_bytes))
        server.add_generic_rpc_handlers((registry.handlers(),))
        bind(server, door.listen, tls=None if door.tls is None else Tls(**door.tls), allow_insecure=door.allow_insecure)
        if door.allow_insecure and door.tls is None and not door.listen.startswith("unix:"):
            log.warning("the planner's registry at %s is not encrypted", door.listen)
        self._server = server

    async def open(self) -> None:
        """Connect to the configured plugins, then let others register."""
        for external in self._outside.externals:
            entry = self._planner.roster.entries.get(external.plugin_id)
            if entry is not None:
                self._soon(self._reach(external, entry))
        if self._server is not None:
            await self._server.start()
            close_to_others(self._outside.registry.listen)  # type: ignore[union-attr]
            self._soon(self._tidying())

    async def aclose(self) -> None:
        """The door first, with a grace for answers under way; then the connections. Never raises."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(GRACE_S)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        clients = list(self.clients.values())
        self.clients.clear()
        await asyncio.gather(*(client.aclose() for client in clients), return_exceptions=True)

    # -- connections of those that registered themselves ------------------------------------------------------------------------------

    def prepare(self, endpoint: str) -> GrpcPlugin:
        """A client; raises PlannerConfigError if there can be none. It trusts, and shows, what the registry's own tls says."""
        door = self._outside.registry
        return self._client(endpoint, None, None if door is None else door.tls)

    def connect(self, entry: Entry, client: GrpcPlugin) -> None:
        """From now on this plugin is asked there; it is told the past."""
        self.tidy()
        self.clients[entry.plugin_id, entry.order] = client
        self._soon(self._bootstrap(entry, client))

    def tidy(self) -> None:
        """Close the connections of plugins that are gone."""
        entries = self._planner.roster.entries
        for key in [k for k in self.clients if (entry := entries.get(k[0])) is None or entry.order != k[1]]:
            self._soon(_closed(self.clients.pop(key)))

    async def _tidying(self) -> None:
        while True:
            await asyncio.sleep(TIDY_S)
            self.tidy()

    # -- configured ones ----------------------------------------------------------------------------------------------------------------

    async def _reach(self, external: ExternalPlugin, entry: Entry) -> None:
        """Until it was reached once; later interruptions are the connection's own business."""
        key = (entry.plugin_id, entry.order)
        while True:
            try:
                client = self.clients.get(key)
                if client is None:
                    token = None if external.token is None else secret(external.token)
                    client = self.clients[key] = self._client(external.endpoint, token, external.tls)
                await self._told(entry, client)
                return
            except (PlannerConfigError, PluginCallError, ValueError) as error:
                log.warning("planner plugin %r: %s; tried again in %g s", external.plugin_id, error, self._retry_s)
            await asyncio.sleep(self._retry_s)

    def _client(self, endpoint: str, token: str | None, tls: Any) -> GrpcPlugin:
        how = None if tls is None else Tls(**tls)
        if endpoint.startswith("grpcs:"):
            (how or Tls()).read()
        return GrpcPlugin(endpoint, token=token, tls=how, allow_insecure=self._outside.allow_insecure_grpc,
                          keepalive_s=self._outside.keepalive_s, max_message_bytes=self._outside.max_message_bytes)

    async def _bootstrap(self, entry: Entry, client: GrpcPlugin) -> None:
        try:
            await self._told(entry, client)
        except PluginCallError as error:
            log.warning("planner plugin %r could not take the past: %s", entry.plugin_id, error)

    async def _told(self, entry: Entry, client: GrpcPlugin) -> None:
        history = self._planner.observer.history(entry.window_s, self._now())
        hints = {"stage": entry.stage.value, "components": ",".join(self._planner.pools), "scale_interval_s": f"{self._planner.scale_s:g}"}
        try:
            if not await client.bootstrap(history, entry.window_s, hints, entry.timeout_s):
                log.warning("planner plugin %r could not use the past", entry.plugin_id)
        except PluginUnknownMethodError:
            return  # it learns nothing

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _closed(client: GrpcPlugin) -> None:
    try:
        await client.aclose()
    except Exception as error:
        log.warning("closing %s: %s", client.endpoint, error)
