"""How a simulated engine is set up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number

POLICIES = ("vllm", "sarathi")


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Time that the host adds to every step. All 0 by default; other values only from a calibration."""

    step_s: Annotated[float, Param(unit="s", label="host, step", help="added to every step", knob=False)] = 0.0
    step_per_seq_s: Annotated[float, Param(unit="s", label="host, sequence", help="added per sequence in a step", knob=False)] = 0.0

    def __post_init__(self) -> None:
        check_number("step_s", self.step_s, lo=0.0)
        check_number("step_per_seq_s", self.step_per_seq_s, lo=0.0)


def _count(default: Any, label: str, help: str, lo: int = 1, hi: int | None = None) -> Any:
    return Param(lo=lo, hi=hi, step=1, label=label, help=help, knob=default is not None)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Batching, KV cache and queue of one engine. Raises ConfigValueError for a value that no engine can have.

    num_blocks None: as many KV blocks as are needed. cache_block_tokens None: block_size; else a multiple of it, the tokens of one prefix hash.
    """

    policy: Annotated[str, Param(choices=POLICIES, label="batching", help="vllm: token budget; sarathi: fixed chunk, decodes first")] = "vllm"
    max_num_seqs: Annotated[int, _count(256, "sequences", "requests in the batch at once", hi=1024)] = 256
    max_num_batched_tokens: Annotated[int, _count(2048, "tokens a step", "budget of one step; of sarathi the chunk", hi=16384)] = 2048
    block_size: Annotated[int, _count(None, "block", "tokens of a KV block")] = 16
    num_blocks: Annotated[int | None, _count(None, "KV blocks", "left out: from the GPU's memory")] = None
    max_model_len: Annotated[int | None, _count(None, "context", "prompt and output tokens of one request at most")] = None
    watermark: Annotated[float, Param(lo=0.0, hi=0.2, label="watermark", help="share of KV blocks kept free at admission", knob=False)] = 0.0
    reserve_full_input: Annotated[bool, Param(help="a prompt is admitted only if all its blocks are free", knob=False)] = True
    chunked_prefill: Annotated[bool, Param(label="chunked prefill", help="a prompt may be split over steps")] = True
    preemption: Annotated[str, Param(choices=("recompute",), help="what happens to a request that loses its blocks", knob=False)] = "recompute"
    order: Annotated[str, Param(choices=("fcfs",), help="who is admitted first and preempted last", knob=False)] = "fcfs"
    prefix_cache: Annotated[bool, Param(label="prefix cache", help="KV blocks of equal prompt prefixes are computed once")] = True
    cache_block_tokens: Annotated[int | None, _count(None, "hash block", "tokens of one prefix hash; left out: block_size")] = None
    max_queued_requests: Annotated[int | None, _count(None, "engine queue", "requests that may wait in the engine")] = None
    max_queued_tokens: Annotated[int | None, _count(None, "engine queue", "uncached prompt tokens that may wait in the engine")] = None
    reject_status: Annotated[int, _count(None, "refusal", "HTTP status when the queue is full", 400, 599)] = 503
    host: HostCosts = field(default_factory=HostCosts)

    def __post_init__(self) -> None:
        for name, choices in (("policy", POLICIES), ("preemption", ("recompute",)), ("order", ("fcfs",))):
            if getattr(self, name) not in choices:
                raise ConfigValueError(name, f"expected {' or '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            check_number(name, getattr(self, name), lo=1, whole=True)
        for name in ("num_blocks", "max_model_len", "cache_block_tokens", "max_queued_requests", "max_queued_tokens"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), lo=1, whole=True)
        check_number("reject_status", self.reject_status, lo=400, hi=599, whole=True)
        check_number("watermark", self.watermark, lo=0.0, below=1.0)
        for name in ("reserve_full_input", "chunked_prefill", "prefix_cache"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigValueError(name, f"expected true or false, got {getattr(self, name)!r}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            short = f"{self.max_num_batched_tokens} tokens a step cannot serve {self.max_num_seqs} sequences"
            raise ConfigValueError("max_num_batched_tokens", short, hint="raise it to max_num_seqs or lower max_num_seqs")
        if self.hash_tokens % self.block_size:
            raise ConfigValueError("cache_block_tokens", f"expected a multiple of block_size {self.block_size}, got {self.cache_block_tokens}")

    @property
    def hash_tokens(self) -> int:
        """Tokens of one prefix hash."""
        return self.cache_block_tokens or self.block_size
