"""How many attempts complete per second: what tells a refused client when trying again makes sense."""

from __future__ import annotations

from math import exp, expm1

from windtunnel.policy.param import check_number

SILENT_WINDOWS = 5.0


class CompletionRate:
    """Completions per second, weighted exponentially over `window_s`; unbiased from the first completion on. O(1) per call.

    Unknown (None) before a second completion, and after 5 windows of silence: an old rate is no promise.
    """

    __slots__ = ("_at", "_since", "_weight", "window_s")

    def __init__(self, window_s: float = 10.0) -> None:
        check_number("window_s", window_s, above=0.0)
        self.window_s = window_s
        self._since: float | None = None
        self._at = self._weight = 0.0

    def completed(self, now: float) -> None:
        """One completion at run second `now`. The first one only starts the clock."""
        if self._since is None:
            self._since = self._at = now
            return
        if now > self._at:
            self._weight *= exp((self._at - now) / self.window_s)
            self._at = now
        self._weight += 1.0

    def per_s(self, now: float) -> float | None:
        """The rate at run second `now`; None while unknown."""
        since = self._since
        if since is None or not self._weight or now <= since or now - self._at > SILENT_WINDOWS * self.window_s:
            return None
        return self._weight * exp((self._at - now) / self.window_s) / (-self.window_s * expm1((since - now) / self.window_s))
