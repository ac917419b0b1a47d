"""Adapters to real engines, one file an engine, and `make_engine`, which builds one from a line of a fleet file."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from windtunnel.errors import ConfigUnknownKeyError, ConfigValueError
from windtunnel.live.engines.engine import Engine
from windtunnel.live.engines.llamacpp import LlamaCppEngine
from windtunnel.live.engines.mock import MockEngine
from windtunnel.live.engines.openai import OPENAI, VLLM, OpenAIEngine
from windtunnel.live.fake_script import FakeScript
from windtunnel.live.http import CONNECT_S, HttpClient
from windtunnel.policy.param import check_number

KINDS = ("llamacpp", "openai", "vllm", "mock")
_HTTP_OPTIONS = ("api_key", "headers", "connect_s", "trust_env")
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "llamacpp": (*_HTTP_OPTIONS, "cache_prompt"),
    "openai": _HTTP_OPTIONS,
    "vllm": (*_HTTP_OPTIONS, "priority"),
    "mock": ("ttft_s", "itl_s", "queue_limit", "output_tokens", "ttft_per_token_s", "ctx_tokens"),
}


def make_engine(kind: str, url: str, *, name: str, model: str, slots: int | None = None,
                options: Mapping[str, Any] | None = None) -> Engine:
    """The adapter for one address; nothing is contacted yet. Raises ConfigValueError, ConfigUnknownKeyError.

    options by kind: all over HTTP `api_key, headers, connect_s, trust_env`; llamacpp `cache_prompt`; vllm `priority`;
    mock (at `mock://name`) the timing fields of FakeScript. A mock at an http address is a stand-in server that speaks as vLLM does.
    """
    given = dict(options or {})
    served = kind == "mock" and url.startswith(("http://", "https://"))
    _check(kind, given, "vllm" if served else kind)
    if kind == "mock" and not served:
        return MockEngine(name=name, model=model, script=FakeScript(slots=slots, model=model or "fake", **given))
    http = _http(url, given)
    if kind == "llamacpp":
        return LlamaCppEngine(http, name=name, model=model, slots=slots, **given)
    return OpenAIEngine(http, name=name, model=model, slots=slots, dialect=OPENAI if kind == "openai" else VLLM, **given)


def _check(kind: str, options: Mapping[str, Any], options_of: str) -> None:
    if kind not in KINDS:
        raise ConfigValueError("engine", f"expected one of {', '.join(KINDS)}, got {kind!r}")
    known = _OPTIONS[options_of]
    for key in options:
        if key not in known:
            close = get_close_matches(key, known, 1)
            raise ConfigUnknownKeyError("options", key, did_you_mean=close[0] if close else None, known=known)
    for key in ("cache_prompt", "priority", "trust_env"):
        if key in options and not isinstance(options[key], bool):
            raise ConfigValueError(f"options.{key}", f"expected true or false, got {options[key]!r}")


def _http(url: str, options: dict[str, Any]) -> HttpClient:
    """Takes the options that concern HTTP out of `options`."""
    headers = options.pop("headers", None) or {}
    if not isinstance(headers, Mapping) or not all(isinstance(part, str) for pair in headers.items() for part in pair):
        raise ConfigValueError("options.headers", "expected a mapping of names to texts")  # not quoted: they may be secret
    headers = dict(headers)
    check_number("options.connect_s", options.get("connect_s", CONNECT_S), above=0)
    key = options.pop("api_key", None)
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return HttpClient(url, headers=headers, connect_s=options.pop("connect_s", CONNECT_S), trust_env=options.pop("trust_env", False))
