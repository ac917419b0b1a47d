"""What a stand-in engine is to do: its timing, its slots, and which request meets which fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number

FaultKind = Literal[
    "refuse", "drop", "hang", "die", "cut", "stall", "no_end", "no_done", "garbage", "half_utf8", "error_frame", "empty", "oversized",
    "replay",
]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a stand-in engine. Raises ConfigValueError.

    | kind | what the client sees |
    |---|---|
    | refuse | `status` (with `retry_after` as the header's text, if given) instead of a stream |
    | drop | the connection closed without a byte |
    | hang | nothing at all, the connection stays open |
    | die, cut | after `after_tokens` tokens the connection is reset, or closed in the middle of the body |
    | stall | after `after_tokens` tokens nothing more, the connection stays open |
    | no_end | the body ends well, but without finish reason, usage and `[DONE]` |
    | no_done | finish reason and usage, but no `[DONE]` |
    | garbage | after `after_tokens` tokens a frame that is no JSON |
    | half_utf8 | each token is a character whose bytes come in two pieces |
    | error_frame | after `after_tokens` tokens an error object with code `status` in the 200 stream, then `[DONE]` |
    | empty | a stream that ends well with neither content nor usage |
    | oversized | after `after_tokens` tokens one frame of more than 1 MiB |
    | replay | `body` as the whole event stream, in pieces of `piece_bytes` |

    at: numbers of the generating requests that meet it, from 1; empty = every `every`-th.
    """

    kind: FaultKind
    at: tuple[int, ...] = ()
    every: int = 1
    after_tokens: int = 2
    status: int = 503
    retry_after: str | None = None
    body: bytes = b""
    piece_bytes: int = 65536

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ConfigValueError("fault.kind", f"expected one of {', '.join(get_args(FaultKind))}, got {self.kind!r}")
        check_number("fault.every", self.every, lo=1, whole=True)
        check_number("fault.after_tokens", self.after_tokens, lo=0, whole=True)
        check_number("fault.status", self.status, lo=400, hi=599, whole=True)
        check_number("fault.piece_bytes", self.piece_bytes, lo=1, whole=True)

    def hits(self, number: int) -> bool:
        return number in self.at if self.at else number % self.every == 0


@dataclass(frozen=True, slots=True)
class FakeScript:
    """Timing and size of a stand-in engine; times in seconds.

    ttft_s: from taking a slot to the first token, plus ttft_per_token_s for each prompt token; itl_s: gap between tokens;
    slots: calls at once, None = any number; queue_limit: calls that may wait, None = any number, beyond it 503 without Retry-After;
    output_tokens: length of an answer that its call does not force, None = the call's max_tokens (16 if it has none).
    """

    ttft_s: float = 0.05
    itl_s: float = 0.01
    slots: int | None = 8
    queue_limit: int | None = None
    output_tokens: int | None = None
    ttft_per_token_s: float = 0.0
    ctx_tokens: int = 8192
    model: str = "fake"
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        for name in ("ttft_s", "itl_s", "ttft_per_token_s"):
            check_number(name, getattr(self, name), lo=0)
        for name, lowest in (("slots", 1), ("queue_limit", 0), ("output_tokens", 0)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), lo=lowest, whole=True)
        check_number("ctx_tokens", self.ctx_tokens, lo=1, whole=True)
        object.__setattr__(self, "faults", tuple(self.faults))

    def fault_for(self, number: int) -> Fault | None:
        """The first fault that the `number`-th generating request meets, from 1."""
        return next((fault for fault in self.faults if fault.hits(number)), None)

    def answer_tokens(self, max_tokens: int | None, ignore_eos: bool) -> int:
        """Output length of a call."""
        if self.output_tokens is None or (ignore_eos and max_tokens is not None):
            return 16 if max_tokens is None else max_tokens
        return self.output_tokens if max_tokens is None else min(max_tokens, self.output_tokens)
