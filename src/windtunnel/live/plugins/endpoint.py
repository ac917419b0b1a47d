"""Addresses of plugins and registries, and who may be spoken to without encryption."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import grpc

from windtunnel.errors import PlannerConfigError

SCHEMES = ("grpc://", "grpcs://", "unix:")
KEEPALIVE_S, MAX_MESSAGE_BYTES = 30, 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. ca: who is trusted (client: the server's; server: the clients', which makes it mutual); cert and key: one's own."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The three files' bytes, in the order ca, key, cert. Raises PlannerConfigError."""
        try:
            ca, key, cert = (None if path is None else Path(path).read_bytes() for path in (self.ca, self.key, self.cert))
        except OSError as error:
            raise PlannerConfigError(f"tls: cannot read {error.filename!r}: {error.strerror}") from error
        return ca, key, cert


def options(keepalive_s: float = KEEPALIVE_S, max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, int]]:
    """Channel options of both sides. A server takes pings as often as a client of the same settings sends them, and shares its port with
    nobody; a client looks for a restarted server within seconds, not minutes."""
    keepalive_ms = int(keepalive_s * 1000)
    return [
        ("grpc.keepalive_time_ms", keepalive_ms), ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_receive_message_length", max_message_bytes), ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.http2.max_pings_without_data", 0), ("grpc.http2.min_ping_interval_without_data_ms", keepalive_ms // 2),
        ("grpc.so_reuseport", 0), ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 5000),
    ]


def check_endpoint(endpoint: str, *, allow_insecure: bool) -> str:
    """The target that gRPC wants. Raises PlannerConfigError for an unknown scheme, or plaintext that was not allowed."""
    if endpoint.partition(":")[2].strip("/") == "":
        raise PlannerConfigError(f"endpoint {endpoint!r}: expected {', '.join(SCHEMES)} and an address")
    if endpoint.startswith("unix:"):
        return endpoint
    if endpoint.startswith("grpc://"):
        if not allow_insecure:
            raise PlannerConfigError(f"endpoint {endpoint!r} is not encrypted", hint="use grpcs://, a unix socket, or allow_insecure_grpc")
        return endpoint.removeprefix("grpc://")
    if endpoint.startswith("grpcs://"):
        return endpoint.removeprefix("grpcs://")
    raise PlannerConfigError(f"endpoint {endpoint!r}: expected {', '.join(SCHEMES)}")


def endpoint_of(address: str, *, encrypted: bool) -> str:
    """An endpoint from unix:PATH, HOST:PORT, or one that says its scheme already."""
    if address.startswith(SCHEMES):
        return address
    return f"{'grpcs' if encrypted else 'grpc'}://{address}"


def channel_to(endpoint: str, *, tls: Tls | None = None, allow_insecure: bool = False, keepalive_s: float = KEEPALIVE_S,
               max_message_bytes: int = MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A client's channel; it connects when it is first used, on the running loop."""
    target = check_endpoint(endpoint, allow_insecure=allow_insecure)
    wanted = options(keepalive_s, max_message_bytes)
    if endpoint.startswith("grpcs://"):
        ca, key, cert = (tls or Tls()).read()
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca, key, cert), options=wanted)
    return grpc.aio.insecure_channel(target, options=wanted)


def bind(server: grpc.aio.Server, listen: str, *, tls: Tls | None = None, allow_insecure: bool = False) -> None:
    """Bind a server. Unix sockets always (mode 0600); TCP with a certificate, or plaintext if that is allowed.

    Raises PlannerConfigError for a port of 0, plaintext without permission, or an address that cannot be bound.
    """
    unix = listen.startswith("unix:")
    if not unix and listen.rpartition(":")[2] in ("", "0"):
        raise PlannerConfigError(f"listen {listen!r}: expected an address with a port above 0")
    if not unix and tls is None and not allow_insecure:
        raise PlannerConfigError(f"listen {listen!r} is not encrypted", hint="give tls, a unix socket, or allow_insecure")
    if unix and _in_use(listen):
        raise PlannerConfigError(f"cannot listen at {listen!r}: somebody does already")
    try:
        if unix or tls is None:
            bound = server.add_insecure_port(listen)
        else:
            ca, key, cert = tls.read()
            if key is None or cert is None:
                raise PlannerConfigError("tls: a server needs cert and key")
            credentials = grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=ca is not None)
            bound = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise PlannerConfigError(f"cannot listen at {listen!r}: {error}") from error
    if not bound:
        raise PlannerConfigError(f"cannot listen at {listen!r}")


def _in_use(listen: str) -> bool:
    """Does anybody answer at this unix socket? One that was left behind by a process that is gone does not count."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(listen.removeprefix("unix:").removeprefix("//"))
        except OSError:
            return False
    return True


def close_to_others(listen: str) -> None:
    """A unix socket is for its owner alone; call once the server has started."""
    if listen.startswith("unix:"):
        path = Path(listen.removeprefix("unix:").removeprefix("//"))
        if path.exists():
            path.chmod(0o600)
