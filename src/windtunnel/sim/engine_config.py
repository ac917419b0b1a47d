"""How a simulated engine is set up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param, check_number
from windtunnel.sim.specdecode import SpecDecode

POLICIES = ("vllm", "sarathi", "prefill_first", "static", "slots")
BUDGETED = ("vllm", "sarathi", "slots")  # a step has a token budget that decodes and prompts share
# What the systems that these policies are of start with (Sarathi-Serve; vLLM v0); a scenario takes them where it gives no value.
POLICY_DEFAULTS: dict[str, dict[str, Any]] = {
    "sarathi": {"max_num_seqs": 128, "max_num_batched_tokens": 512, "watermark": 0.01},
    "prefill_first": {"max_num_seqs": 128, "max_num_batched_tokens": 4096, "watermark": 0.01},
}
_CHOICES = {
    "policy": POLICIES, "preemption": ("recompute", "swap"), "order": ("fcfs", "priority"), "admission": ("blocks", "peak"),
    "role": ("agg", "prefill", "decode"), "first_token": ("prefill", "decode"),
}


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Time that the host adds. All 0 by default; other values only from a calibration or a labelled preset."""

    step_s: Annotated[float, Param(unit="s", label="host, step", help="added to every step", knob=False)] = 0.0
    step_per_seq_s: Annotated[float, Param(unit="s", label="host, sequence", help="added per sequence in a step", knob=False)] = 0.0
    connect_s: Annotated[float, Param(unit="s", label="connect", help="once per attempt, before the engine sees it", knob=False)] = 0.0
    ingress_s: Annotated[float, Param(unit="s", label="ingress", help="from dispatch to the engine's queue", knob=False)] = 0.0
    ingress_per_token_s: Annotated[float, Param(unit="s/token", label="ingress, token", help="per prompt token (tokenising)", knob=False)] = 0.0
    egress_s: Annotated[float, Param(unit="s", label="egress", help="added to the delivery of every token", knob=False)] = 0.0

    def __post_init__(self) -> None:
        for name in ("step_s", "step_per_seq_s", "connect_s", "ingress_s", "ingress_per_token_s", "egress_s"):
            check_number(name, getattr(self, name), lo=0.0)


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapters. max_loras: resident at once; load_s: to load one more; step_factor: how much longer a step with any of them lasts.

    by: whose adapter a request needs: its tenant's, or the one in its label `adapter` (none: the base model).
    """

    max_loras: Annotated[int, Param(lo=1, hi=64, step=1, label="adapters", help="resident at once")] = 8
    load_s: Annotated[float, Param(lo=0.0, hi=10.0, unit="s", label="adapter load", help="to load one that is not resident")] = 0.5
    step_factor: Annotated[float, Param(lo=1.0, hi=2.0, label="adapter cost", help="how much longer a step with adapters lasts")] = 1.0
    by: Annotated[str, Param(choices=("tenant", "label"), help="whose adapter a request needs: its tenant's or its label's", knob=False)] = "tenant"

    def __post_init__(self) -> None:
        check_number("max_loras", self.max_loras, lo=1, whole=True)
        check_number("load_s", self.load_s, lo=0.0)
        check_number("step_factor", self.step_factor, lo=1.0)
        if self.by not in ("tenant", "label"):
            raise ConfigValueError("by", f"expected tenant or label, got {self.by!r}")


def _count(default: Any, label: str, help: str, lo: int = 1, hi: int | None = None) -> Any:
    return Param(lo=lo, hi=hi, step=1, label=label, help=help, knob=default is not None)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Batching, KV cache and queue of one engine. Raises ConfigValueError for a value that no engine can have.

    num_blocks None: as many KV blocks as are needed. cache_block_tokens None: block_size; else a multiple of it, the tokens of one prefix hash.
    """

    policy: Annotated[str, Param(choices=POLICIES, label="batching", help="vllm: token budget; sarathi: fixed chunk, decodes first; prefill_first: "
                                 "whole prompts in steps of their own; static: one batch after the other; slots: llama.cpp")] = "vllm"
    max_num_seqs: Annotated[int, _count(256, "sequences", "requests in the batch at once; in a scenario sarathi and "
                                               "prefill_first have 128 where it is left out", hi=1024)] = 256
    max_num_batched_tokens: Annotated[int, _count(2048, "tokens a step", "budget of one step; in a scenario sarathi, of which it is "
                                                         "the chunk, has 512 where it is left out, prefill_first 4096", hi=16384)] = 2048
    block_size: Annotated[int, _count(None, "block", "tokens of a KV block")] = 16
    num_blocks: Annotated[int | None, _count(None, "KV blocks", "left out: from the GPU's memory")] = None
    max_model_len: Annotated[int | None, _count(None, "context", "prompt and output tokens of one request at most; left out: "
                                                        "the model's, in a scenario")] = None
    watermark: Annotated[float, Param(lo=0.0, hi=0.2, label="watermark", help="share of KV blocks kept free at admission; in a scenario "
                                      "sarathi and prefill_first have 0.01 where it is left out", knob=False)] = 0.0
    reserve_full_input: Annotated[bool, Param(help="a prompt is admitted only if all its blocks are free", knob=False)] = True
    chunked_prefill: Annotated[bool, Param(label="chunked prefill", help="a prompt may be split over steps")] = True
    preemption: Annotated[str, Param(choices=_CHOICES["preemption"], help="of a request that loses its blocks", knob=False)] = "recompute"
    swap_blocks: Annotated[int, _count(None, "host blocks", "KV blocks of host memory that preempted requests may move to", lo=0)] = 0
    pcie_bw: Annotated[float | None, Param(unit="B/s", label="PCIe", help="rate of swapped KV; needed for swap", knob=False)] = None
    kv_bytes_per_token: Annotated[float | None, Param(unit="B", label="KV bytes", help="per token; needed for swap", knob=False)] = None
    order: Annotated[str, Param(choices=_CHOICES["order"], help="who is admitted first and preempted last", knob=False)] = "fcfs"
    admission: Annotated[str, Param(choices=_CHOICES["admission"], help="of prefill_first; peak: only if the KV pool can hold everybody to "
                                    "the end (knows the output lengths)", knob=False)] = "blocks"
    min_decode_steps: Annotated[int, _count(None, "decode steps", "of prefill_first: between two admissions", lo=0)] = 0
    batch_wait_s: Annotated[float, Param(unit="s", label="batch wait", help="of static: from the first in line until a batch starts that is not "
                                         "full", knob=False)] = 0.0
    pad: Annotated[bool, Param(label="padding", help="of static: a finished request stays in the step cost until its batch ends", knob=False)] = True
    n_ctx: Annotated[int | None, _count(None, "slot context", "of slots: tokens of all max_num_seqs slots together")] = None
    prefix_cache: Annotated[bool, Param(label="prefix cache", help="KV blocks of equal prompt prefixes are computed once")] = True
    cache_block_tokens: Annotated[int | None, _count(None, "hash block", "tokens of one prefix hash; left out: the trace's, else block_size")] = None
    max_queued_requests: Annotated[int | None, _count(None, "engine queue", "requests that may wait in the engine")] = None
    max_queued_tokens: Annotated[int | None, _count(None, "engine queue", "uncached prompt tokens that may wait in the engine")] = None
    reject_status: Annotated[int, _count(None, "refusal", "HTTP status when the queue is full", 400, 599)] = 503
    host: HostCosts = field(default_factory=HostCosts)
    spec_decode: SpecDecode | None = None
    lora: Lora | None = None
    noise_cv: Annotated[float, Param(lo=0.0, hi=0.5, label="noise", help="variation of step times: one log-normal factor, mean 1, per run of steps",
                                     knob=False)] = 0.0
    role: Annotated[str, Param(choices=_CHOICES["role"], help="prefill: hands KV over after token 1; decode: takes it", knob=False)] = "agg"
    first_token: Annotated[str, Param(choices=_CHOICES["first_token"], help="which side of a split pair yields token 1", knob=False)] = "prefill"
    wake_s: Annotated[tuple[float, float], Param(unit="s", help="to wake from sleep at level 1 (weights in host memory) and 2 (dropped)",
                                                 knob=False)] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigValueError(name, f"expected {' or '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            check_number(name, getattr(self, name), lo=1, whole=True)
        for name in ("num_blocks", "max_model_len", "cache_block_tokens", "max_queued_requests", "max_queued_tokens", "n_ctx"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), lo=1, whole=True)
        for name in ("pcie_bw", "kv_bytes_per_token"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0)
        check_number("swap_blocks", self.swap_blocks, lo=0, whole=True)
        check_number("min_decode_steps", self.min_decode_steps, lo=0, whole=True)
        check_number("reject_status", self.reject_status, lo=400, hi=599, whole=True)
        check_number("watermark", self.watermark, lo=0.0, below=1.0)
        check_number("batch_wait_s", self.batch_wait_s, lo=0.0)
        check_number("noise_cv", self.noise_cv, lo=0.0, hi=10.0)
        for name in ("reserve_full_input", "chunked_prefill", "prefix_cache", "pad"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigValueError(name, f"expected true or false, got {getattr(self, name)!r}")
        if not isinstance(self.wake_s, (tuple, list)) or len(self.wake_s) != 2:
            raise ConfigValueError("wake_s", f"expected seconds for level 1 and level 2, got {self.wake_s!r}")
        for seconds in self.wake_s:
            check_number("wake_s", seconds, lo=0.0)
        width = self.max_num_seqs * (1 if self.spec_decode is None else 1 + self.spec_decode.k)
        if self.policy in BUDGETED and self.max_num_batched_tokens < width:
            short = f"{self.max_num_batched_tokens} tokens a step cannot serve {self.max_num_seqs} sequences"
            short += "" if self.spec_decode is None else f" of {1 + self.spec_decode.k} tokens each"
            raise ConfigValueError("max_num_batched_tokens", short, hint="raise it to max_num_seqs or lower max_num_seqs")
        if self.policy == "slots" and self.n_ctx is not None and self.n_ctx < self.max_num_seqs:
            raise ConfigValueError("n_ctx", f"{self.n_ctx} tokens leave nothing for each of {self.max_num_seqs} slots")
        if self.hash_tokens % self.block_size:
            raise ConfigValueError("cache_block_tokens", f"expected a multiple of block_size {self.block_size}, got {self.cache_block_tokens}")

    @property
    def hash_tokens(self) -> int:
        """Tokens of one prefix hash."""
        return self.cache_block_tokens or self.block_size

    @property
    def draws(self) -> bool:
        """Does an engine need a generator?"""
        return self.noise_cv > 0.0 or (self.spec_decode is not None and self.spec_decode.mode == "sampled")

    @property
    def whole_prompts(self) -> bool:
        """Is a prompt computed in one step, however long?"""
        return self.policy not in BUDGETED

    @property
    def slot_tokens(self) -> int | None:
        """Context of one slot; None: no slots, or no bound."""
        if self.policy != "slots":
            return None
        tokens = self.n_ctx if self.n_ctx is not None else self.num_blocks and self.num_blocks * self.block_size
        return tokens // self.max_num_seqs if tokens else None
