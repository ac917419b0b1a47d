"""Models and GPUs by name: the facts that step times and capacities are computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigFileError, ConfigUnknownKeyError, ConfigUnknownModelError, ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sim.architecture import BYTES, Architecture, Gpu, Mla, Moe, element_bytes

__all__ = ["BYTES", "Architecture", "Catalog", "Gpu", "Mla", "Moe", "element_bytes", "gpu", "model", "names"]

IDLE_SHARE = 0.15  # of power_w, an assumption


@cache
def _entries(kind: str) -> dict[str, dict[str, Any]]:
    with data_path(f"catalog/{kind}.yaml").open(encoding="utf-8") as file:
        return dict(yaml.safe_load(file)[kind])


class Catalog:
    """The shipped models and GPUs, with entries of the user's own files laid over them by name."""

    def __init__(self, mine: dict[str, dict[str, dict[str, Any]]] | None = None) -> None:
        self._mine = mine or {}
        self._made: dict[tuple[str, str], Any] = {}

    @classmethod
    def load(cls, paths: Sequence[Path], entries: dict[str, dict[str, dict[str, Any]]] | None = None) -> Catalog:
        """The shipped catalogue and these YAML files, each with `models:` or `gpus:`, then these entries; a later one wins.

        An entry of a name that exists is an override: keys that it leaves out keep their value. Raises ConfigFileError, ConfigUnknownKeyError.
        """
        mine: dict[str, dict[str, dict[str, Any]]] = {"models": {}, "gpus": {}}
        for data in (*map(_own_file, paths), entries or {}):
            for kind, named in data.items():
                for name, facts in named.items():
                    mine[kind][name] = mine[kind].get(name, {}) | facts
        return cls(mine)

    def model(self, name: str) -> Architecture:
        """The architecture `name`; ConfigUnknownModelError with the closest names."""
        return self._once("models", name, _architecture)  # type: ignore[no-any-return]

    def gpu(self, name: str) -> Gpu:
        """The GPU `name`; ConfigUnknownModelError with the closest names."""
        return self._once("gpus", name, _gpu)  # type: ignore[no-any-return]

    def names(self, kind: str) -> list[str]:
        """All names of a kind: "models" or "gpus"."""
        return sorted({**_entries(kind), **self._mine.get(kind, {})})

    def _once(self, kind: str, name: str, make: Callable[[str, dict[str, Any]], Any]) -> Any:
        known = self._made.get((kind, name))
        if known is None:
            facts = _entries(kind).get(name, {}) | self._mine.get(kind, {}).get(name, {})
            if not facts:
                raise ConfigUnknownModelError({"models": "model", "gpus": "GPU"}[kind], name, get_close_matches(name, self.names(kind), 3, 0.0))
            known = self._made[kind, name] = make(name, facts)
        return known


def _own_file(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigFileError(f"{path}: no catalogue file: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(v, dict) and all(isinstance(e, dict) for e in v.values()) for v in data.values()):
        raise ConfigFileError(f"{path}: expected models: or gpus: with entries by name")
    for key in data:
        if key not in ("models", "gpus"):
            raise ConfigUnknownKeyError("", str(key), known=("models", "gpus"), where=str(path))
    return data


def _facts(cls: type, path: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts, once all their keys are fields and none without a default is missing."""
    known = {f.name: f for f in fields(cls) if f.name != "name"}
    for key in facts:
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            raise ConfigUnknownKeyError(path, str(key), did_you_mean=close[0] if close else None, known=tuple(known))
    for key, f in known.items():
        if key not in facts and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigValueError(f"{path}.{key}", "is missing")
    return facts


def _architecture(name: str, facts: dict[str, Any]) -> Architecture:
    facts = dict(facts)
    for key, cls in (("moe", Moe), ("mla", Mla)):
        if facts.get(key) is not None:
            facts[key] = cls(**_facts(cls, f"models.{name}.{key}", facts[key]))
    arch = Architecture(name=name, **_facts(Architecture, f"models.{name}", facts))
    for key in ("params", "layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "max_model_len"):
        check_number(f"models.{name}.{key}", getattr(arch, key), lo=1, whole=True)
    if abs(arch.counted_params / arch.params - 1) > 0.02:
        raise ConfigValueError(f"models.{name}.params", f"{arch.params:,} is not the sum of the parts, {arch.counted_params:,}, within 2 %")
    return arch


# What a number of a GPU can be, and what was probably meant if it is not.
MAGNITUDES = {
    "memory_bytes": (1e9, 1e13, "bytes"), "memory_bw": (1e11, 1e14, "bytes/s"), "intra_bw": (1e9, 1e13, "bytes/s"),
    "inter_bw": (1e8, 1e13, "bytes/s"), "pcie_bw": (1e8, 1e13, "bytes/s"), "power_w": (10.0, 1e4, "watts"),
}


def _gpu(name: str, facts: dict[str, Any]) -> Gpu:
    facts = dict(facts)
    price = facts.pop("price_usd_per_hour", None) or {}
    facts = _facts(Gpu, f"gpus.{name}", facts)
    flops = {str(k): float(v) for k, v in facts.pop("flops").items()}
    if "bf16" not in flops:
        raise ConfigValueError(f"gpus.{name}.flops", "expected a rate for bf16")
    for key, (lo, hi, unit) in MAGNITUDES.items():
        facts[key] = _magnitude(f"gpus.{name}.{key}", facts[key], lo, hi, unit)
    for dtype, rate in flops.items():
        _magnitude(f"gpus.{name}.flops.{dtype}", rate, 1e12, 1e17, "FLOP/s")
    facts["memory_bytes"] = int(facts["memory_bytes"])
    facts["idle_w"] = float(facts.get("idle_w", IDLE_SHARE * facts["power_w"]))
    return Gpu(name=name, flops=flops, usd_per_hour=price.get("on_demand"), spot_usd_per_hour=price.get("spot"),
               price_as_of=price.get("as_of", ""), **facts)


def _magnitude(field: str, value: Any, lo: float, hi: float, unit: str) -> float:
    number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else float("nan")
    if not lo <= number <= hi:
        raise ConfigValueError(field, f"{value} is not between {lo:g} and {hi:g}", hint=f"did you mean {unit}?")
    return number


SHIPPED = Catalog()


def model(name: str) -> Architecture:
    """The shipped architecture `name`; ConfigUnknownModelError with the closest names."""
    return SHIPPED.model(name)


def gpu(name: str) -> Gpu:
    """The shipped GPU `name`; ConfigUnknownModelError with the closest names."""
    return SHIPPED.gpu(name)


def names(kind: str) -> list[str]:
    """All shipped names of a kind: "models" or "gpus"."""
    return SHIPPED.names(kind)
