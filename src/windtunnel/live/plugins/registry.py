"""The door at which plugins register themselves: checks the caller, asks the roster, and hands on an event.

Nothing here changes the planner. What is accepted becomes a `Commanded` in the driver's own order of events, so that it is recorded and
replays; the roster is only read, on the thread that owns it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NoReturn, Protocol

import grpc

from windtunnel.errors import PlannerConfigError
from windtunnel.events import Commanded, Event
from windtunnel.live.plugins import planner_pb2
from windtunnel.live.plugins.auth import AuthSource
from windtunnel.live.plugins.bridge import STAGES, STAGES_BACK
from windtunnel.live.plugins.endpoint import check_endpoint
from windtunnel.policy.planning.contract import HoldPolicy
from windtunnel.policy.planning.plain import plain
from windtunnel.policy.planning.plugin import Registration
from windtunnel.policy.planning.roster import Entry, Roster

pb: Any = planner_pb2  # its names are made at run time
log = logging.getLogger(__name__)
SERVICE = "windtunnel.planner.v1.PlannerRegistry"
Code = grpc.StatusCode
_OPTIONAL = ("hold_max_age_s", "timeout_s", "failure_threshold", "cooldown_s")


class Connections(Protocol):
    """Where accepted plugins are called: `prepare` raises what makes that impossible, `connect` and `tidy` follow the roster."""

    def prepare(self, endpoint: str) -> Any: ...
    def connect(self, entry: Entry, client: Any) -> None: ...
    def tidy(self) -> None: ...


class Registry:
    """Register, Heartbeat, Unregister, ListPlugins. All on the driver's loop.

    deliver: hands an event to the control at once; now: run seconds; over: True once the run takes no more events.
    """

    def __init__(self, roster: Roster, auth: AuthSource, deliver: Callable[[Event], None], now: Callable[[], float],
                 connections: Connections, *, over: Callable[[], bool], admins: Iterable[str] = (), allow_insecure_grpc: bool = False) -> None:
        self._roster, self._auth, self._deliver, self._now, self._connections = roster, auth, deliver, now, connections
        self._over, self._admins, self._insecure = over, frozenset(admins), allow_insecure_grpc

    def handlers(self) -> grpc.GenericRpcHandler:
        """For a server. Messages are read here: bytes that are none are the caller's fault, and are told so."""
        kinds: dict[str, tuple[Any, Callable[[Any, Any], Coroutine[Any, Any, Any]]]] = {
            "Register": (pb.RegisterRequest, self._register), "Heartbeat": (pb.HeartbeatRequest, self._heartbeat),
            "Unregister": (pb.UnregisterRequest, self._unregister), "ListPlugins": (pb.ListRequest, self._list),
        }
        return grpc.method_handlers_generic_handler(SERVICE, {
            name: grpc.unary_unary_rpc_method_handler(_reading(kind, act), response_serializer=_bytes_of) for name, (kind, act) in kinds.items()})

    # -- the four methods -----------------------------------------------------------------------------------------------------------

    async def _register(self, request: Any, context: Any) -> Any:
        """A refusal leaves everything as it was; the first failing check is the answer."""
        subject = self._subject(request.auth_token, context)
        if subject is None:
            return _refused("auth_failed")
        asked = registration_of(request)
        reason = self._roster.refusal(asked, external=True) or self._endpoint(asked.endpoint, context.peer())
        if reason:
            log.info("planner plugin %r of %s refused: %s", asked.plugin_id, subject, reason)
            return _refused(reason)
        try:
            client = self._connections.prepare(asked.endpoint)
        except (PlannerConfigError, ValueError) as error:
            return _refused(f"transport_build_failed: {error}")
        await self._open(context)
        scheme = asked.endpoint.partition(":")[0]
        told = {**plain(asked), "endpoint": f"{scheme}:"}  # the address is nothing that a record has to know
        self._deliver(Commanded("planner.register", {"registration": told, "subject": subject}))
        entry = self._roster.entries.get(asked.plugin_id)
        if entry is None:
            await context.abort(Code.UNAVAILABLE, "the planner takes no registrations now")
            raise AssertionError("abort raises")
        self._connections.connect(entry, client)
        s = self._roster.settings
        return pb.RegisterReply(accepted=True, protocol_version=asked.protocol_version, scale_interval_s=s.scale_interval_s,
                                heartbeat_timeout_s=s.heartbeat_timeout_s)

    async def _heartbeat(self, request: Any, context: Any) -> Any:
        await self._own(request, context)
        self._deliver(Commanded("planner.heartbeat", {"plugin_id": request.plugin_id}))
        return pb.HeartbeatReply(known=True)

    async def _unregister(self, request: Any, context: Any) -> Any:
        await self._own(request, context)
        self._deliver(Commanded("planner.unregister", {"plugin_id": request.plugin_id, "reason": request.reason[:200] or "unregistered"}))
        self._connections.tidy()
        return pb.UnregisterReply(removed=True)

    async def _list(self, request: Any, context: Any) -> Any:
        subject = self._subject(request.auth_token, context)
        if subject is None:
            await context.abort(Code.UNAUTHENTICATED, "auth_failed")
        if subject not in self._admins:
            await context.abort(Code.PERMISSION_DENIED, "permission_denied")
        now = self._now()
        return pb.ListReply(plugins=[_line(entry, now) for entry in self._roster.snapshot().entries])

    # -- who asks, and for what -----------------------------------------------------------------------------------------------------

    def _subject(self, token: str, context: Any) -> str | None:
        names = tuple(name.decode("utf-8", "replace") for name in context.auth_context().get("x509_subject_alternative_name", ()))
        subject = self._auth.subject(token, names)
        if subject is None:
            log.warning("planner registry: %s brought no secret and no certificate that is known here", context.peer())
        return subject

    async def _own(self, request: Any, context: Any) -> None:
        """The caller's own, self-registered plugin; every other case has one and the same answer."""
        subject = self._subject(request.auth_token, context)
        if subject is None:
            await context.abort(Code.UNAUTHENTICATED, "auth_failed")
        entry = self._roster.entries.get(request.plugin_id)
        owner = None if entry is None or not entry.self_registered else entry.subject
        if subject != owner:
            await context.abort(Code.PERMISSION_DENIED, "permission_denied")
        await self._open(context)

    async def _open(self, context: Any) -> None:
        if self._over():
            await context.abort(Code.UNAVAILABLE, "the run is over")

    def _endpoint(self, endpoint: str, peer: str) -> str:
        try:
            check_endpoint(endpoint, allow_insecure=self._insecure)
        except PlannerConfigError as error:
            return f"endpoint_rejected: {error.message}"
        if endpoint.startswith("unix:") and not peer.startswith(("unix:", "ipv4:127.", "ipv6:%5B::1", "ipv6:[::1")):
            return "endpoint_rejected: a unix socket can be offered from this machine alone"
        return ""


def registration_of(request: Any) -> Registration:
    """What a RegisterRequest asks for; unset fields take the defaults, wrong values stay as they are, for the roster to refuse."""
    optional = {name: getattr(request, name) for name in _OPTIONAL if request.HasField(name)}
    if request.HasField("priority"):
        optional["priority"] = request.priority
    for name in ("execution_interval_s", "observation_window_s"):
        if request.HasField(name):
            optional[name] = getattr(request, name)
    hold: Any = request.hold_policy
    if hold in tuple(HoldPolicy):
        hold = HoldPolicy(hold)
    stage: Any = STAGES_BACK.get(request.stage, f"number {request.stage}")
    return Registration(request.plugin_id, stage, endpoint=request.endpoint, version=request.version or "0",
                        protocol_version=request.protocol_version, hold_policy=hold or HoldPolicy.ACCEPT_WHEN_IDLE, needs=tuple(request.needs),
                        requires=tuple(request.requires), **optional)


def _refused(reason: str) -> Any:
    return pb.RegisterReply(accepted=False, reason=reason)


def _line(entry: Entry, now: float) -> Any:
    line = pb.PluginLine(plugin_id=entry.plugin_id, stage=STAGES[entry.stage], priority=entry.priority, version=entry.registration.version,
                         enabled=entry.enabled, transport=entry.transport, circuit=entry.breaker.last.value, evaluations=entry.calls)
    if entry.last_call_at is not None:
        line.last_call_age_s = now - entry.last_call_at
    if entry.cache is not None:
        line.cache_age_s = now - entry.cached_at
    return line


def _bytes_of(message: Any) -> bytes:
    made: bytes = message.SerializeToString()
    return made


def _reading(kind: Any, act: Callable[[Any, Any], Coroutine[Any, Any, Any]]) -> Callable[[bytes, Any], Coroutine[Any, Any, Any]]:
    async def answer(data: bytes, context: Any) -> Any:
        try:
            request = kind.FromString(data)
        except Exception:  # protobuf's own error class differs between its implementations
            await _malformed(kind, context)
        try:
            return await act(request, context)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("planner registry: %s", kind.DESCRIPTOR.name)
            raise

    return answer


async def _malformed(kind: Any, context: Any) -> NoReturn:
    await context.abort(Code.INVALID_ARGUMENT, f"not a {kind.DESCRIPTOR.name}")
    raise AssertionError("abort raises")
