"""A planner plugin in another process, asked over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from windtunnel.errors import (
    PluginCallError,
    PluginConnectionError,
    PluginRaisedError,
    PluginSerializationError,
    PluginTimeoutError,
    PluginUnknownMethodError,
)
from windtunnel.live.plugins import planner_pb2
from windtunnel.live.plugins.bridge import parse, to_proto
from windtunnel.live.plugins.endpoint import Tls, channel_to, check_endpoint
from windtunnel.policy.planning.contract import PredictResponse, Stage, StageRequest, StageResponse, TrafficMetrics

pb: Any = planner_pb2  # its names are made at run time
CODES: Mapping[grpc.StatusCode, type[PluginCallError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: PluginTimeoutError,
    grpc.StatusCode.UNAVAILABLE: PluginConnectionError,
    grpc.StatusCode.CANCELLED: PluginConnectionError,
    grpc.StatusCode.UNIMPLEMENTED: PluginUnknownMethodError,
    grpc.StatusCode.INTERNAL: PluginSerializationError,
    grpc.StatusCode.DATA_LOSS: PluginSerializationError,
    grpc.StatusCode.INVALID_ARGUMENT: PluginSerializationError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: PluginSerializationError,
}
SERVICE = "windtunnel.planner.v1.PlannerPlugin"
METHODS = {Stage.PREDICT: "Predict", Stage.PROPOSE: "Propose", Stage.RECONCILE: "Reconcile", Stage.CONSTRAIN: "Constrain"}


class GrpcPlugin:
    """A client of one plugin; the connection is made at the first call, on the loop of that call.

    token: sent as metadata `authorization`. Raises PlannerConfigError for a bad endpoint, or plaintext that is not allowed.
    """

    def __init__(self, endpoint: str, *, token: str | None = None, tls: Tls | None = None, allow_insecure: bool = False,
                 **channel: Any) -> None:
        check_endpoint(endpoint, allow_insecure=allow_insecure)
        self.endpoint = endpoint
        self._how = {"tls": tls, "allow_insecure": allow_insecure, **channel}
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}

    async def call(self, stage: Stage, request: StageRequest, timeout_s: float) -> StageResponse | PredictResponse:
        """Ask the plugin's method of a stage. Raises PluginCallError's children, as the plugin in process would cause them."""
        data = await self._ask(METHODS[stage], to_proto(request), timeout_s)
        response: StageResponse | PredictResponse = parse(pb.PredictResponse if stage is Stage.PREDICT else pb.StageResponse, data)
        return response

    async def bootstrap(self, history: Sequence[TrafficMetrics], window_s: float, hints: Mapping[str, str], timeout_s: float = 5.0) -> bool:
        """Hand over the past; False if the plugin says that it could not use it."""
        request = pb.BootstrapRequest(history=[to_proto(w) for w in history], window_s=window_s, hints=dict(hints))
        return _done(await self._ask("Bootstrap", request, timeout_s))

    async def reset(self, reason: str, timeout_s: float = 5.0) -> bool:
        """Ask the plugin to forget what it has learnt."""
        return _done(await self._ask("Reset", pb.ResetRequest(reason=reason), timeout_s))

    async def aclose(self) -> None:
        """Close the connection; a later call makes a new one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _ask(self, method: str, request: Any, timeout_s: float) -> bytes:
        """The answer's bytes: gRPC itself would hide those that are no message behind another error."""
        if self._channel is None:
            self._channel = channel_to(self.endpoint, **self._how)
            self._methods = {}
        call = self._methods.get(method)
        if call is None:
            call = self._methods[method] = self._channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            data: bytes = await call(request.SerializeToString(), timeout=timeout_s, metadata=self._metadata)
            return data
        except grpc.aio.AioRpcError as error:
            kind = CODES.get(error.code(), PluginRaisedError)
            raise kind(f"{self.endpoint} {method}: {error.details() or error.code().name.lower()}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise PluginConnectionError(f"{self.endpoint} {method}: closed while it was asked") from None


def _done(data: bytes) -> bool:
    try:
        return bool(pb.Done.FromString(data).ok)
    except DecodeError as error:
        raise PluginSerializationError(f"not a Done: {error}") from None
