"""Metrics of a live run over HTTP, for a Prometheus that scrapes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from windtunnel.errors import ConfigError
from windtunnel.policy.planning.shell import PipelinePlanner

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from windtunnel.policy.control import Control

LOOPBACK = "127.0.0.1"
TRIES = 20  # a planner that ticks while it is read is read again


class _Steady:
    """A collector read from another thread than the one that writes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def collect(self) -> Iterator[Metric]:
        for _ in range(TRIES - 1):
            with suppress(RuntimeError):  # something was added in the middle
                return iter(list(self._inner.collect()))
        return iter(list(self._inner.collect()))

    def describe(self) -> tuple[()]:
        return ()


@contextmanager
def metrics_door(control: Control, address: str | None) -> Iterator[str | None]:
    """Serve the planner's metrics at `address` ("[HOST:]PORT", this machine alone if no host is named; port 0: any) for the time of a block.

    Gives the URL, or None without an address. Raises ConfigError for a bad address, or a control without a pipeline planner.
    """
    if address is None:
        yield None
        return
    host, _, port = address.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--metrics {address}: expected PORT or HOST:PORT")
    if not isinstance(control.planner, PipelinePlanner):
        raise ConfigError("--metrics: only a planner of kind pipeline has metrics, this control has none",
                          hint="control.planner: {kind: pipeline, ...}")
    from prometheus_client import CollectorRegistry, start_http_server

    from windtunnel.lab.planner_metrics import PlannerCollector

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Steady(PlannerCollector(control.planner)))  # type: ignore[arg-type]
    try:
        server, thread = start_http_server(int(port), host.strip("[]") or LOOPBACK, registry)
    except OSError as error:
        raise ConfigError(f"--metrics {address}: {error.strerror or error}") from None
    try:
        yield f"http://{host or LOOPBACK}:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
