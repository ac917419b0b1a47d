"""The parts of a `planner:` block that speak of other processes: plugins at an endpoint, and the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from windtunnel.lab.kinds import Spec
from windtunnel.policy.planning.outside import ExternalPlugin, Outside, RegistrySettings
from windtunnel.policy.planning.settings_blocks import refuse

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]


class TlsSpec(Spec):
    """Paths of PEM files. ca: whom to trust; cert and key: one's own, always both."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def plain(self) -> dict[str, str]:
        return self.model_dump(exclude_none=True)


class StaticSecretSpec(Spec):
    """Subject by where its secret is, env:NAME or file:PATH; never the secret itself, which no message may repeat."""

    kind: Literal["static_secret"]
    secrets: Annotated[dict[str, Name], Field(min_length=1)]


class MtlsSpec(Spec):
    """Names of verified client certificates; empty: any that the CA signed."""

    kind: Literal["mtls"]
    subjects: tuple[Name, ...] = ()


class UnauthenticatedSpec(Spec):
    """Anybody on this machine."""

    kind: Literal["allow_unauthenticated"]


class MultiSpec(Spec):
    """The first of several that knows the caller."""

    kind: Literal["multi"]
    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]


SourceSpec = Annotated[StaticSecretSpec | MtlsSpec | UnauthenticatedSpec | MultiSpec, Field(discriminator="kind")]
MultiSpec.model_rebuild()


class AuthSpec(Spec):
    """Who may register."""

    sources: tuple[SourceSpec, ...] = ()
    admin_subjects: tuple[str, ...] = ()


class RegistrySpec(Spec):
    """The door for plugins that register themselves."""

    enabled: bool = False
    listen: str | None = None
    allow_insecure: bool = False
    allow_insecure_grpc: bool = False
    tls: TlsSpec | None = None
    auth: AuthSpec = AuthSpec()
    heartbeat_timeout_s: Positive = 15.0
    missed_threshold: int = Field(default=2, ge=1)
    protocol_min: str = Field(default="1.0", pattern=r"^\d+\.\d+$")
    protocol_max: str = Field(default="1.0", pattern=r"^\d+\.\d+$")
    keepalive_s: Positive = 30.0
    max_message_bytes: int = Field(default=10_485_760, ge=1024)

    def check(self) -> None:
        """Raises PlannerConfigError with the dotted path."""
        low, high = (tuple(int(n) for n in v.split(".")) for v in (self.protocol_min, self.protocol_max))
        if low > high:
            raise refuse("planner.registry.protocol_min", f"{self.protocol_min} is above protocol_max {self.protocol_max}")
        if not self.enabled:
            return
        if self.listen is None:
            raise refuse("planner.registry.listen", "missing, an enabled registry needs it")
        if not self.auth.sources:
            raise refuse("planner.registry.auth.sources", "missing, an enabled registry needs at least one")
        unix, tls = self.listen.startswith("unix:"), self.tls
        if not unix and (not self.listen.rpartition(":")[2].isdigit() or int(self.listen.rpartition(":")[2]) not in range(1, 65536)):
            raise refuse("planner.registry.listen", f"expected unix:PATH or HOST:PORT with a port above 0, got {self.listen!r}")
        if not unix and tls is None and not self.allow_insecure:
            raise refuse("planner.registry.tls", "missing: TCP is encrypted, or allow_insecure says that it need not be")
        if not unix and tls is not None and (tls.cert is None or tls.key is None):
            raise refuse("planner.registry.tls", "expected cert and key")
        for i, source in enumerate(self.auth.sources):
            self._check_source(f"planner.registry.auth.sources.{i}", source)

    def _check_source(self, path: str, source: Any) -> None:
        if source.kind == "multi":
            for i, one in enumerate(source.sources):
                self._check_source(f"{path}.sources.{i}", one)
        if source.kind == "static_secret" and not all(where.startswith(("env:", "file:")) for where in source.secrets):
            raise refuse(f"{path}.secrets", "expected env:NAME or file:PATH for each subject, not the secret itself")
        host = (self.listen or "").rpartition(":")[0].strip("[]")
        if source.kind == "allow_unauthenticated" and not (self.listen or "").startswith("unix:") and host not in LOOPBACK:
            raise refuse(path, f"allow_unauthenticated needs listen on a unix socket or loopback, got {self.listen!r}")
        if source.kind == "mtls" and (self.tls is None or self.tls.ca is None):
            raise refuse(path, "mtls needs planner.registry.tls.ca, the authority of the clients' certificates")

    def settings(self) -> RegistrySettings | None:
        """None if it is not enabled."""
        if not self.enabled or self.listen is None:
            return None
        sources = tuple(source.model_dump(mode="json") for source in self.auth.sources)
        return RegistrySettings(self.listen, sources, frozenset(self.auth.admin_subjects), self.allow_insecure,
                                None if self.tls is None else self.tls.plain())


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def outside_of(externals: tuple[Any, ...], registry: RegistrySpec) -> Outside:
    """What a live driver is to open. externals: entries with plugin_id, endpoint, token and tls."""
    plugins = tuple(ExternalPlugin(e.plugin_id, e.endpoint, e.token, None if e.tls is None else e.tls.plain()) for e in externals)
    return Outside(plugins, registry.settings(), registry.allow_insecure_grpc, registry.keepalive_s, registry.max_message_bytes)


def without_addresses(planner: Mapping[str, Any]) -> dict[str, Any]:
    """A plain `planner` block that decides the same and opens nothing: endpoints are their schemes, no door, no tokens, no files."""
    out = dict(planner)
    if isinstance(plugins := out.get("plugins"), Mapping):
        externals = [{**e, "endpoint": f"{e['endpoint'].partition(':')[0]}:", "token": None, "tls": None} for e in plugins.get("external", ())]
        out["plugins"] = {**plugins, "external": externals}
    if isinstance(registry := out.get("registry"), Mapping):
        out["registry"] = {**registry, "enabled": False, "listen": None, "tls": None, "auth": AuthSpec().model_dump(mode="json")}
    return out
