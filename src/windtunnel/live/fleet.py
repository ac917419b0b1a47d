"""The fleet file: which real engines there are, where, and how to talk to them.

```yaml
name: prod-chat
pools:
  chat:
    engine: llamacpp            # llamacpp, openai, vllm or mock
    model: tiny
    urls: ["http://127.0.0.1:8090", "env:CHAT_URL"]
    slots: 8                    # requests at once per replica; left out: what the engine says
    usd_per_hour: 2.5           # price of one replica, for the cap on cost
    options: {api_key: "env:CHAT_KEY"}
```
A value `env:NAME` is read from the environment, `file:PATH` from a file (relative to the fleet file): neither secrets nor private
addresses need to stand in the file, and none is ever printed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from windtunnel.errors import ConfigError, ConfigFileError, ConfigUnknownKeyError, ConfigValueError
from windtunnel.live.stopfile import check_name
from windtunnel.policy.param import PoolFacts


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that serves a replica of a pool. name: the replica's first id; shown: the address as the file writes it.

    The resolved url and options may be secret and are not in the repr.
    """

    name: str
    pool: str
    engine: str
    model: str
    url: str = field(repr=False)
    shown: str = ""
    role: str = "agg"
    weight: float = 1.0
    slots: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


class LiveScaling(BaseModel):
    """How the replicas of a pool are started and ended. exec: local processes from a command template with `{port}`; virtual: stand-ins;
    kubernetes: the pods of a `deployment` in a `namespace` that serve at `port` (cluster and credentials as kubectl has them).

    replicas: how many at the start; a cluster has its own count. Timeouts in seconds. Nothing is started before the world is armed with scaling.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["exec", "virtual", "kubernetes"]
    command: str | tuple[str, ...] = ""
    url: str = "http://127.0.0.1:{port}"
    replicas: int = Field(1, ge=0, le=1024)
    drain_timeout_s: float = Field(120.0, ge=0, allow_inf_nan=False)
    kill_grace_s: float = Field(10.0, ge=0, allow_inf_nan=False)
    logs: str | None = None
    deployment: str = ""
    namespace: str = "default"
    port: int = Field(8000, ge=1, le=65535)


class LivePool(BaseModel):
    """Replicas alike in engine and model. replicas: only for `mock`, which needs no urls; scaling: a connector starts them instead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["llamacpp", "openai", "vllm", "mock"]
    model: str = ""
    urls: tuple[str, ...] = ()
    replicas: int = Field(1, ge=1, le=1024)
    role: Literal["agg", "prefill", "decode"] = "agg"
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    slots: int | None = Field(None, ge=1)
    usd_per_hour: float | None = Field(None, ge=0, allow_inf_nan=False)
    options: dict[str, Any] = Field(default_factory=dict)
    scaling: LiveScaling | None = None

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class LiveFleet(BaseModel):
    """A named set of pools of real engines; nothing is contacted before a driver starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pools: dict[str, LivePool] = Field(min_length=1)
    _where: Path | None = PrivateAttr(None)

    @classmethod
    def load(cls, path: str | Path) -> LiveFleet:
        """Read a fleet file. Raises ConfigFileError, ConfigValueError, ConfigUnknownKeyError, each naming file and dotted path."""
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigFileError(f"cannot read the fleet file: {why}", where=str(path)) from error
        except yaml.YAMLError as error:
            raise ConfigFileError(f"the fleet file is not YAML: {' '.join(str(error).split())}", where=str(path)) from error
        return cls.of(data, where=path)

    @classmethod
    def of(cls, data: Any, *, where: Path | None = None) -> LiveFleet:
        """A fleet from plain data: {name, pools}. Errors as in `load`."""
        text = str(where) if where is not None else ""
        if not isinstance(data, dict):
            raise ConfigValueError("", f"expected a mapping with name and pools, got {type(data).__name__}", where=text)
        try:
            fleet = cls.model_validate(data)
        except ValidationError as error:
            raise _sentence(error, text) from None
        fleet._where = where
        try:
            fleet.endpoints()
            for pool, spec in fleet.pools.items():
                _check_scaling(pool, spec)
            _check_connectors(fleet.pools)
            check_name("name", fleet.name)
            for pool in fleet.pools:
                check_name("pools", pool)
        except ConfigValueError as error:
            error.where = error.where or text
            raise
        return fleet

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints with `env:` and `file:` values resolved, in the file's order, named `<pool>-<n>`."""
        made: list[Endpoint] = []
        owner: dict[str, str] = {}
        for name, pool in self.pools.items():
            base = self._where.parent if self._where is not None else Path()
            options = {k: _resolved(v, f"pools.{name}.options.{k}", base) for k, v in pool.options.items()}
            for i, url in () if pool.scaling is not None else enumerate(self._urls(name, pool, base)):
                if url in owner:
                    raise ConfigValueError(f"pools.{name}.urls.{i}", f"the same address as {owner[url]}; one engine is one replica")
                owner[url] = f"pools.{name}.urls.{i}"
                shown = pool.urls[i] if pool.urls else url
                made.append(Endpoint(f"{name}-{i}", name, pool.engine, pool.model, url, shown, pool.role, pool.weight, pool.slots, options))
        return tuple(made)

    @staticmethod
    def _urls(name: str, pool: LivePool, base: Path) -> list[str]:
        if pool.engine == "mock" and not pool.urls:
            return [f"mock://{name}-{i}" for i in range(pool.replicas)]
        if not pool.urls:
            raise ConfigValueError(f"pools.{name}.urls", "expected at least one address")
        if pool.replicas != 1:
            raise ConfigValueError(f"pools.{name}.replicas", "only a mock pool without urls has a number of replicas")
        fields = [f"pools.{name}.urls.{i}" for i in range(len(pool.urls))]
        return [address(_resolved(raw, at, base), at, pool.engine) for raw, at in zip(pool.urls, fields)]

    def pool_facts(self) -> tuple[PoolFacts, ...]:
        """What a policy's `build` may know of these pools."""
        counts = {name: sum(e.pool == name for e in self.endpoints()) for name in self.pools}
        return tuple(
            PoolFacts(n, p.role, p.model, counts[n], slots=p.slots, max_replicas=counts[n]) if p.scaling is None
            else PoolFacts(n, p.role, p.model, p.scaling.replicas, slots=p.slots)
            for n, p in self.pools.items())

    def prices(self) -> dict[str, float | None]:
        """USD per replica and hour by pool."""
        return {name: pool.usd_per_hour for name, pool in self.pools.items()}


def _check_scaling(name: str, pool: LivePool) -> None:
    if pool.scaling is None:
        return
    if pool.urls or pool.replicas != 1:
        raise ConfigValueError(f"pools.{name}.scaling", "a pool has either addresses (urls, replicas) or a connector that starts them")
    if pool.scaling.kind == "exec" and "{port}" not in "".join(pool.scaling.command):
        raise ConfigValueError(f"pools.{name}.scaling.command", "expected a command with {port} in it")
    if pool.scaling.kind == "kubernetes" and not pool.scaling.deployment:
        raise ConfigValueError(f"pools.{name}.scaling.deployment", "expected the name of the deployment whose pods serve")


def _check_connectors(pools: Mapping[str, LivePool]) -> None:
    """One connector carries out a plan: pods and processes do not mix, nor do namespaces."""
    managed = {name: pool.scaling for name, pool in pools.items() if pool.scaling is not None}
    clusters = {name: how for name, how in managed.items() if how.kind == "kubernetes"}
    if clusters and len(clusters) < len(managed):
        raise ConfigValueError(f"pools.{min(set(managed) - set(clusters))}.scaling.kind", "expected kubernetes, as the other pools have")
    if len({how.namespace for how in clusters.values()}) > 1:
        raise ConfigValueError(f"pools.{max(clusters)}.scaling.namespace", "expected the same namespace as the other pools'")


def _resolved(value: Any, field_name: str, base: Path) -> Any:
    if not isinstance(value, str):
        return value
    if value.startswith("env:"):
        found = os.environ.get(value[4:])
        if not found:
            raise ConfigValueError(field_name, f"the environment variable {value[4:]!r} is not set")
        return found
    if value.startswith("file:"):
        try:
            return (base / value[5:]).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigValueError(field_name, f"cannot read the file {value[5:]!r}") from error
    return value


def address(value: str, field_name: str, engine: str) -> str:
    """The address without a trailing slash. The value itself is not quoted in errors: it may be a secret."""
    try:
        parts = urlsplit(value)
        good = parts.scheme in (("http", "https", "mock") if engine == "mock" else ("http", "https")) and bool(parts.netloc)
        _ = parts.port
    except ValueError:
        good = False
    if not good:
        raise ConfigValueError(field_name, "expected an address such as http://127.0.0.1:8090")
    if parts.query or parts.fragment:
        raise ConfigValueError(field_name, "expected an address without ? or #")
    return value.rstrip("/")


def _sentence(error: ValidationError, where: str) -> ConfigError:
    """The first problem as one sentence with its dotted path; all others keep until it is mended."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        model = LivePool if path[0] == "pools" else LiveFleet
        known = tuple(model.model_fields)
        close = get_close_matches(path[-1], known, 1)
        meant = close[0] if close else None
        return ConfigUnknownKeyError(".".join(path[:-1]), path[-1], did_you_mean=meant, known=known, where=where)
    if problem["type"] == "missing":
        return ConfigValueError(dotted, "is missing", where=where)
    text = problem["msg"].removeprefix("Input should be ")
    return ConfigValueError(dotted, f"expected {text}, got {_short(problem['input'])}", where=where)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
