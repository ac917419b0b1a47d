"""The words of the stand-in engine: frames and documents as vLLM and llama.cpp write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from windtunnel.live.fake_script import FakeScript

Kind = Literal["openai", "llamacpp"]
Shape = Literal["native", "completions", "chat"]
SHAPES: Mapping[str, Shape] = {"/completion": "native", "/v1/completions": "completions", "/v1/chat/completions": "chat"}
DONE = b"data: [DONE]\n\n"
TEXT, WIDE_TEXT = " tok", "é"


@dataclass(slots=True)
class Load:
    """What the stand-in has done so far, for its metrics. Token counts are of ended and running calls."""

    running: int = 0
    waiting: int = 0
    held_tokens: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    refused: int = 0


def frame(data: Any) -> bytes:
    """One server-sent event with JSON data."""
    return b"data: " + json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def token_frame(shape: Shape, model: str, n: int, input_tokens: int, text: str = TEXT) -> bytes:
    """The frame of the n-th output token."""
    if shape == "native":
        return frame({"index": 0, "content": text, "tokens": [7], "stop": False, "id_slot": -1, "tokens_predicted": n,
                      "tokens_evaluated": input_tokens})
    return frame({"object": "chat.completion.chunk" if shape == "chat" else "text_completion", "model": model,
                  "choices": [{"index": 0, **_part(shape, text), "finish_reason": None}]})


def opening_frames(shape: Shape, model: str) -> bytes:
    """What comes before the first token: chat says the role."""
    if shape != "chat":
        return b""
    return frame({"model": model, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})


def closing_frames(shape: Shape, model: str, finish: str, input_tokens: int, output_tokens: int, *, done: bool = True) -> bytes:
    """Finish reason, usage, end marker."""
    if shape == "native":
        return frame(_native_end(finish, input_tokens, output_tokens))
    choice = {"index": 0, **_part(shape, ""), "finish_reason": finish}
    usage = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": input_tokens + output_tokens}
    return frame({"model": model, "choices": [choice]}) + frame({"model": model, "choices": [], "usage": usage}) + (DONE if done else b"")


def empty_frames(shape: Shape) -> bytes:
    """A good end with neither content nor usage."""
    return frame({"index": 0, "content": "", "tokens": [], "stop": True, "stop_type": "eos"}) if shape == "native" else DONE


def document(shape: Shape, model: str, finish: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """The answer of a call that does not stream."""
    text = TEXT * output_tokens
    if shape == "native":
        return {**_native_end(finish, input_tokens, output_tokens), "content": text}
    part = {"message": {"role": "assistant", "content": text}} if shape == "chat" else {"text": text}
    usage = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": input_tokens + output_tokens}
    return {"model": model, "choices": [{"index": 0, **part, "finish_reason": finish}], "usage": usage}


def _part(shape: Shape, text: str) -> dict[str, Any]:
    return {"delta": {"content": text} if text else {}} if shape == "chat" else {"text": text}


def _native_end(finish: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {"index": 0, "content": "", "tokens": [], "id_slot": 0, "stop": True, "tokens_predicted": output_tokens,
            "tokens_evaluated": input_tokens, "truncated": False, "stop_type": "limit" if finish == "length" else "eos",
            "timings": {"cache_n": 0, "prompt_n": input_tokens, "predicted_n": output_tokens}}


def error_body(kind: Kind, status: int, message: str = "") -> dict[str, Any]:
    """An error as this kind of engine words it."""
    if status == 503 and not message:
        message = "no slot available" if kind == "llamacpp" else "The engine is currently busy and cannot accept new requests."
    error: dict[str, Any] = {"message": message or f"scripted refusal {status}", "code": status}
    error["type"] = "unavailable_error" if kind == "llamacpp" else "Service Unavailable"
    return {"error": error if kind == "llamacpp" else {**error, "param": None}}


def too_long_body(kind: Kind, input_tokens: int, ctx_tokens: int) -> dict[str, Any]:
    """What an engine of that kind says of a prompt beyond its context, in tokens."""
    if kind == "llamacpp":
        words = f"request ({input_tokens} tokens) exceeds the available context size ({ctx_tokens} tokens), try increasing it"
        return {"error": {"code": 400, "message": words, "type": "exceed_context_size_error", "n_prompt_tokens": input_tokens,
                          "n_ctx": ctx_tokens}}
    words = f"This model's maximum context length is {ctx_tokens} tokens, but the prompt has {input_tokens}."
    return {"error": {"message": words, "type": "BadRequestError", "param": "input_tokens", "code": 400}}


def page(kind: Kind, path: str, script: FakeScript, load: Load) -> tuple[str, str] | None:
    """Content type and text of a GET, or None if there is no such page."""
    if path == "/metrics":
        return "text/plain; version=0.0.4", metrics_text(kind, script, load)
    pages: dict[str, Any] = {"/health": {"status": "ok"}, "/v1/models": {"object": "list", "data": [
        {"id": script.model, "object": "model", "max_model_len": script.ctx_tokens}]}}
    if kind == "llamacpp":
        pages["/props"] = {"total_slots": script.slots, "model_alias": script.model, "build_info": "fake",
                           "default_generation_settings": {"n_ctx": script.ctx_tokens}}
        pages["/slots"] = _slots(script, load)
    else:
        pages["/version"] = {"version": "fake"}
    return ("application/json", json.dumps(pages[path])) if path in pages else None


def _slots(script: FakeScript, load: Load) -> list[dict[str, Any]]:
    slots: list[dict[str, Any]] = []
    for i in range(max(script.slots or 1, load.running)):
        busy = i < load.running
        share = {"n_prompt_tokens": load.held_tokens // load.running, "next_token": [{"n_decoded": 0}]} if busy else {}
        slots.append({"id": i, "n_ctx": script.ctx_tokens, "is_processing": busy, **share})
    return slots


def metrics_text(kind: Kind, script: FakeScript, load: Load) -> str:
    """A Prometheus exposition under the real engine's names."""
    if kind == "llamacpp":
        rows = {"requests_processing": load.running, "requests_deferred": load.waiting, "prompt_tokens_total": load.prompt_tokens,
                "prompt_tokens_cached_total": 0, "tokens_predicted_total": load.output_tokens}
        return "".join(f"llamacpp:{name} {value}\n" for name, value in rows.items())
    used = load.held_tokens / (script.ctx_tokens * (script.slots or max(1, load.running)))
    rows_v = {"num_requests_running": load.running, "num_requests_waiting": load.waiting, "kv_cache_usage_perc": min(1.0, used),
              "prompt_tokens_total": load.prompt_tokens, "prompt_tokens_cached_total": 0, "generation_tokens_total": load.output_tokens,
              "num_preemptions_total": 0, "admission_rejections_total": load.refused}
    return "".join(f'vllm:{name}{{model_name="{script.model}"}} {float(value)}\n' for name, value in rows_v.items())
