"""How many KV blocks fit beside the weights, and the refusal, with its arithmetic, of what cannot run at all."""

from __future__ import annotations

from math import floor

from windtunnel.errors import ConfigInfeasibleError
from windtunnel.policy.param import check_number
from windtunnel.sim.catalog import Architecture, Gpu, element_bytes

UTILISATION = 0.9  # vLLM's default share of GPU memory
OVERHEAD_BYTES = 1.24e9  # activations, graphs and runtime per GPU: an assumption from one measured engine


def kv_blocks(arch: Architecture, gpu: Gpu, *, tp: int = 1, dtype: str = "bf16", kv_dtype: str = "bf16", block_size: int = 16,
              utilisation: float = UTILISATION, overhead_bytes: float = OVERHEAD_BYTES, pp: int = 1) -> int:
    """Blocks of `block_size` tokens that fit on `tp` · `pp` GPUs, the layers shared out evenly over pp stages;
    negative if not even the weights do. ConfigValueError for a number that means nothing."""
    _check(tp, block_size, utilisation, overhead_bytes)
    check_number("pp", pp, lo=1, whole=True)
    usable = gpu.memory_bytes * utilisation - arch.params * element_bytes("dtype", dtype) / (tp * pp) - overhead_bytes
    return floor(usable / (block_size * arch.kv_bytes_per_token(kv_dtype) * arch.kv_share(tp) / pp))


def _check(tp: int, block_size: int, utilisation: float, overhead_bytes: float) -> None:
    check_number("tp", tp, lo=1, whole=True)
    check_number("block_size", block_size, lo=1, whole=True)
    check_number("utilisation", utilisation, above=0.0, hi=1.0)
    check_number("overhead_bytes", overhead_bytes, lo=0.0)


def refuse_infeasible(arch: Architecture, gpu: Gpu, *, tp: int = 1, dtype: str = "bf16", kv_dtype: str = "bf16", block_size: int = 16,
                      max_model_len: int | None = None, max_num_batched_tokens: int | None = None, max_num_seqs: int | None = None,
                      utilisation: float = UTILISATION, overhead_bytes: float = OVERHEAD_BYTES, ep: int = 1, max_prompt: int | None = None,
                      pp: int = 1, num_blocks: int | None = None) -> None:
    """Raise ConfigInfeasibleError, showing the sum, if this model cannot run on these GPUs. max_prompt: the longest that must fit into one step.

    num_blocks: KV blocks that are given, as measured on an engine; then weights and blocks need only be less than the whole memory.
    """
    check_number("ep", ep, lo=1, whole=True)
    _check(tp, block_size, utilisation, overhead_bytes)
    check_number("pp", pp, lo=1, whole=True)
    if pp > arch.layers:
        raise ConfigInfeasibleError(f"{arch.layers} layers cannot be shared out over pp {pp}")
    weights, usable = arch.params * element_bytes("dtype", dtype) / (tp * pp), gpu.memory_bytes * utilisation
    element_bytes("kv_dtype", kv_dtype)
    if arch.heads % tp:
        raise ConfigInfeasibleError(f"{arch.heads} attention heads cannot be split over tp {tp}", hint="choose a tp that divides them")
    if arch.kv_heads % tp and tp % arch.kv_heads:
        raise ConfigInfeasibleError(f"{arch.kv_heads} KV heads cannot be split over or repeated on tp {tp}")
    if tp > gpu.gpus_per_node:
        raise ConfigInfeasibleError(f"tp {tp} needs more GPUs than the {gpu.gpus_per_node} of a node of {gpu.name}")
    if arch.moe is not None and arch.moe.experts % ep:
        raise ConfigInfeasibleError(f"{arch.moe.experts} experts cannot be split over ep {ep}")
    if max_prompt is not None and max_num_batched_tokens is not None and max_prompt > max_num_batched_tokens:
        raise ConfigInfeasibleError(f"a prompt of {max_prompt:,} tokens does not fit into steps of {max_num_batched_tokens:,} without chunks",
                                    hint="set chunked_prefill: true or raise max_num_batched_tokens")
    if dtype not in gpu.flops and dtype in ("fp8",):
        raise ConfigInfeasibleError(f"{gpu.name} has no {dtype}", hint=f"it has {', '.join(gpu.flops)}")
    share = f" a GPU at tp {tp}" + (f" pp {pp}" if pp > 1 else "") if tp * pp > 1 else ""
    if num_blocks is not None:
        kv = num_blocks * block_size * arch.kv_bytes_per_token(kv_dtype) * arch.kv_share(tp) / pp
        if weights + kv > gpu.memory_bytes:
            raise ConfigInfeasibleError(
                f"weights {weights / 1e9:.1f} GB + {num_blocks:,} KV blocks {kv / 1e9:.1f} GB{share} > {gpu.memory_bytes / 1e9:.1f} GB",
                hint="lower engine.num_blocks, raise tp or use a larger GPU")
    elif weights + overhead_bytes >= usable:
        raise ConfigInfeasibleError(
            f"weights {weights / 1e9:.1f} GB{share} + overhead {overhead_bytes / 1e9:.1f} GB > {usable / 1e9:.1f} GB usable "
            f"({utilisation:g} × {gpu.memory_bytes / 1e9:.1f} GB)", hint=f"use tp: {2 * tp} or a larger GPU")
    blocks = (num_blocks if num_blocks is not None else kv_blocks(
        arch, gpu, tp=tp, dtype=dtype, kv_dtype=kv_dtype, block_size=block_size, utilisation=utilisation, overhead_bytes=overhead_bytes,
        pp=pp)) // pp  # of a group
    if blocks < 1 or (max_model_len is not None and blocks * block_size < max_model_len):
        raise ConfigInfeasibleError(f"{blocks * block_size:,} tokens of KV cache are fewer than one request of {max_model_len or 1:,} tokens",
                                    hint="lower engine.max_model_len or use a larger GPU")
    if max_num_batched_tokens is not None and max_num_seqs is not None and max_num_batched_tokens < max_num_seqs:
        raise ConfigInfeasibleError(f"{max_num_batched_tokens} tokens a step cannot serve {max_num_seqs} sequences")
