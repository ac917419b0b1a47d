"""Models and GPUs by name: the facts that step times and capacities are computed from."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any

import yaml

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigUnknownModelError, ConfigValueError

BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5625, "int4": 0.5625}  # 4-bit weights carry their scales


def element_bytes(field: str, dtype: str) -> float:
    """Bytes of one element; ConfigValueError, naming `field`, for a dtype that is not known."""
    size = BYTES.get(dtype)
    if size is None:
        raise ConfigValueError(field, f"expected one of {', '.join(BYTES)}, got {dtype!r}")
    return size


@dataclass(frozen=True, slots=True)
class Architecture:
    """A dense decoder. params: all weights; ffn: width of the gated MLP; counts in elements."""

    name: str
    params: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_model_len: int
    tie_embeddings: bool = False
    source: str = ""
    licence: str = ""

    @property
    def counted_params(self) -> int:
        """The sum of the parts; `params` must agree within 2 %."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        per_layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * per_layer + self.vocab * self.hidden * (1 if self.tie_embeddings else 2) + self.hidden

    def kv_bytes_per_token(self, dtype: str = "bf16") -> float:
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes("kv_dtype", dtype)


@dataclass(frozen=True, slots=True)
class Gpu:
    """memory_bytes; memory_bw and link bandwidths in bytes/s; flops: dense peak FLOP/s by dtype; usd_per_hour None: no price known."""

    name: str
    memory_bytes: int
    memory_bw: float
    flops: dict[str, float] = field(hash=False)
    power_w: float
    gpus_per_node: int
    intra_bw: float
    inter_bw: float
    pcie_bw: float
    usd_per_hour: float | None = None
    spot_usd_per_hour: float | None = None
    price_as_of: str = ""
    source: str = ""


@cache
def _entries(kind: str) -> dict[str, dict[str, Any]]:
    with data_path(f"catalog/{kind}.yaml").open(encoding="utf-8") as file:
        return dict(yaml.safe_load(file)[kind])


def _entry(kind: str, word: str, name: str) -> dict[str, Any]:
    entries = _entries(kind)
    if name not in entries:
        raise ConfigUnknownModelError(word, name, get_close_matches(name, entries, 3, 0.0))
    return entries[name]


@cache
def model(name: str) -> Architecture:
    """The architecture `name`; ConfigUnknownModelError with the closest names."""
    return Architecture(name=name, **_entry("models", "model", name))


@cache
def gpu(name: str) -> Gpu:
    """The GPU `name`; ConfigUnknownModelError with the closest names."""
    facts = dict(_entry("gpus", "GPU", name))
    price = facts.pop("price_usd_per_hour", None) or {}
    facts["flops"] = {k: float(v) for k, v in facts["flops"].items()}
    for key in ("memory_bw", "power_w", "intra_bw", "inter_bw", "pcie_bw"):
        facts[key] = float(facts[key])
    return Gpu(name=name, usd_per_hour=price.get("on_demand"), spot_usd_per_hour=price.get("spot"), price_as_of=price.get("as_of", ""), **facts)


def names(kind: str) -> list[str]:
    """All names of a kind: "models" or "gpus"."""
    return sorted(_entries(kind))
