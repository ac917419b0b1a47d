"""The request that tests of a control send: 100 tokens in, at most 64 out, of a model that one lane serves."""

from __future__ import annotations

from typing import Any

from windtunnel.events import Request


def chat_request(id: str, tenant: str, at_s: float, *, priority: int = 0, **more: Any) -> Request:
    return Request(id, tenant, "m", priority, at_s, 100, 64, **more)
