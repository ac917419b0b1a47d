"""What a model and a GPU are, for step times and capacities: counts of elements, bytes and rates."""

from __future__ import annotations

from dataclasses import dataclass, field

from windtunnel.errors import ConfigValueError

BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5625, "int4": 0.5625}  # 4-bit weights carry their scales


def element_bytes(field: str, dtype: str) -> float:
    """Bytes of one element; ConfigValueError, naming `field`, for a dtype that is not known."""
    size = BYTES.get(dtype)
    if size is None:
        raise ConfigValueError(field, f"expected one of {', '.join(BYTES)}, got {dtype!r}")
    return size


@dataclass(frozen=True, slots=True)
class Moe:
    """Mixture of experts: `topk` of `experts` MLPs of width `expert_ffn` serve a token, and `shared` ones every token; the first
    `first_dense_layers` layers have a dense MLP instead."""

    experts: int
    topk: int
    expert_ffn: int
    shared: int = 0
    first_dense_layers: int = 0


@dataclass(frozen=True, slots=True)
class Mla:
    """Latent attention (DeepSeek-V2, 2024): one latent of `kv_lora_rank` and one key of `rope_dim` per token are cached for all heads;
    a head's key has `nope_dim` + `rope_dim` elements, its value `v_dim`. q_lora_rank None: queries are not compressed."""

    kv_lora_rank: int
    rope_dim: int
    nope_dim: int
    v_dim: int
    q_lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder. params: all weights; ffn: width of the dense MLP; counts in elements.

    active_params: weights that one token meets (None: all); sliding_window: tokens that windowed layers attend, full_layers: layers that attend
    everything (None: all); linear_params: weights of one layer that keeps a state instead of keys (the layers that are neither full nor windowed).
    """

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
    ffn_gated: bool = True
    active_params: int | None = None
    moe: Moe | None = None
    mla: Mla | None = None
    sliding_window: int | None = None
    full_layers: int | None = None
    linear_params: int | None = None
    source: str = ""
    licence: str = ""

    @property
    def attention_params(self) -> int:
        """Weights of one attention block."""
        d, m = self.hidden, self.mla
        if m is None:
            return d * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        head = m.nope_dim + m.rope_dim
        query = d * self.heads * head if m.q_lora_rank is None else m.q_lora_rank * (d + self.heads * head)
        return query + d * (m.kv_lora_rank + m.rope_dim) + m.kv_lora_rank * self.heads * (m.nope_dim + m.v_dim) + self.heads * m.v_dim * d

    @property
    def matrices(self) -> int:
        """Weight matrices of an MLP: three if gated."""
        return 3 if self.ffn_gated else 2

    @property
    def attending_layers(self) -> int:
        """Layers with keys and values of every token."""
        return self.layers if self.full_layers is None else self.full_layers

    @property
    def counted_params(self) -> int:
        """The sum of the parts; `params` must agree within 2 %."""
        return self._sum(None if self.moe is None else self.moe.experts)

    @property
    def counted_active_params(self) -> int:
        """The parts that one token meets; the head included, the embedding table not."""
        return self._sum(None if self.moe is None else self.moe.topk) - (0 if self.tie_embeddings else self.vocab * self.hidden)

    def _sum(self, experts: int | None) -> int:
        d, moe = self.hidden, self.moe
        dense = self.layers if moe is None else moe.first_dense_layers
        mlp = dense * self.matrices * d * self.ffn
        if moe is not None and experts is not None:
            mlp += (self.layers - dense) * ((experts + moe.shared) * 3 * d * moe.expert_ffn + d * moe.experts)
        linear = 0 if self.linear_params is None else self.layers - self.attending_layers
        mixing = (self.layers - linear) * self.attention_params + linear * (self.linear_params or 0)
        return mlp + mixing + self.layers * 2 * d + self.vocab * d * (1 if self.tie_embeddings else 2) + d

    def kv_bytes_per_token(self, dtype: str = "bf16") -> float:
        """Bytes that one token adds to the KV cache, all ranks' shares together; windowed layers are counted as full, as vLLM reserves them."""
        size = element_bytes("kv_dtype", dtype)
        layers = self.layers if self.linear_params is None else self.attending_layers
        if self.mla is not None:
            return layers * (self.mla.kv_lora_rank + self.mla.rope_dim) * size
        return 2 * layers * self.kv_heads * self.head_dim * size

    def kv_share(self, tp: int) -> float:
        """The part of `kv_bytes_per_token` that one of `tp` ranks holds: heads are split, then repeated; a latent is repeated on every rank."""
        return 1.0 if self.mla is not None else max(1.0, self.kv_heads / tp) / self.kv_heads


@dataclass(frozen=True, slots=True)
class Gpu:
    """memory_bytes; memory_bw and link bandwidths in bytes/s; flops: dense peak FLOP/s by dtype; usd_per_hour None: no price known.

    idle_w is an assumption, 0.15 · power_w, where no measurement is given.
    """

    name: str
    memory_bytes: int
    memory_bw: float
    flops: dict[str, float] = field(hash=False)
    power_w: float
    gpus_per_node: int
    intra_bw: float
    inter_bw: float
    pcie_bw: float
    idle_w: float = 0.0
    usd_per_hour: float | None = None
    spot_usd_per_hour: float | None = None
    price_as_of: str = ""
    source: str = ""
