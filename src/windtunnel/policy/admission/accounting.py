"""Who gets how much of what is admitted: shares from the monotone counters that a control keeps."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp

from windtunnel.errors import PolicyClockError
from windtunnel.policy.param import check_number

Who = tuple[str, int]  # tenant and priority class


class AdmissionShare:
    """Shares of the admitted tokens, weighted exponentially over `window_s`. Feed it counters that only grow, as often as you like.

    Under saturation the shares of a fair queue that charges tokens follow the tenants' weights. O(tenants x classes) per update.
    """

    def __init__(self, window_s: float = 10.0) -> None:
        check_number("window_s", window_s, above=0.0)
        self.window_s = window_s
        self._seen: dict[Who, int] = {}
        self._recent: dict[Who, float] = {}
        self._at: float | None = None

    def update(self, admitted_tokens: Mapping[Who, int], now: float) -> None:
        """The counters at run second `now`. Raises PolicyClockError if it lies before the last one."""
        if self._at is not None and now < self._at:
            raise PolicyClockError(f"update was called with now={now!r} after {self._at!r}")
        fade = 1.0 if self._at is None else exp((self._at - now) / self.window_s)
        recent = {who: tokens * fade for who, tokens in self._recent.items()}
        for who, tokens in admitted_tokens.items():
            recent[who] = recent.get(who, 0.0) + tokens - self._seen.get(who, 0)
        self._seen, self._recent, self._at = dict(admitted_tokens), recent, now

    def shares(self) -> dict[Who, float]:
        """Share by tenant and class, 1 in all; empty while nothing was admitted."""
        total = sum(self._recent.values())
        return {who: tokens / total for who, tokens in self._recent.items()} if total > 0 else {}
