"""Additive Holt-Winters: level, trend and, with a season length, one offset per slot of the season (Winters 1960)."""

from __future__ import annotations

from math import ceil


class HoltWinters:
    """alpha, beta, gamma: weight of the newest value in level, trend and season. season_len: steps of a season, None = no season.

    With a season the first two seasons set the start; until then the last value is the forecast. A missing step moves on by the trend;
    during the start it repeats the last value.
    """

    def __init__(self, alpha: float = 0.5, beta: float = 0.1, gamma: float = 0.1, season_len: int | None = None) -> None:
        self.alpha, self.beta, self.gamma, self.season_len = alpha, beta, gamma, season_len
        self.level = self.trend = 0.0
        self._season: list[float] = []
        self._first: list[float] = []  # values of the first two seasons
        self._slot = 0  # of the next step in the season
        self._last: float | None = None
        self._started = False

    @property
    def ready(self) -> bool:
        return self._started

    def observe(self, value: float) -> None:
        self._last = value
        if self._started:
            self._update(value)
        elif self.season_len is None:
            self.level, self._started = value, True
        else:
            self._first.append(value)
            if len(self._first) == 2 * self.season_len:
                self._start(self.season_len)

    def miss(self, steps: int) -> None:
        while steps and not self._started and self._last is not None:
            self.observe(self._last)
            steps -= 1
        self.level += steps * self.trend
        if self._season:
            self._slot = (self._slot + steps) % len(self._season)

    def _start(self, m: int) -> None:
        first, second = self._first[:m], self._first[m:]
        a0, a1 = sum(first) / m, sum(second) / m
        self.trend = (a1 - a0) / m
        self.level = a1 + self.trend * (m - 1) / 2
        self._season = [((x - a0) + (y - a1)) / 2 for x, y in zip(first, second, strict=True)]
        self._first, self._started = [], True

    def _update(self, value: float) -> None:
        offset = self._season[self._slot] if self._season else 0.0
        level = self.alpha * (value - offset) + (1 - self.alpha) * (self.level + self.trend)
        self.trend = self.beta * (level - self.level) + (1 - self.beta) * self.trend
        self.level = level
        if self._season:
            self._season[self._slot] = self.gamma * (value - level) + (1 - self.gamma) * offset
            self._slot = (self._slot + 1) % len(self._season)

    def ahead(self, steps: float) -> tuple[float, float | None] | None:
        if self._last is None:
            return None
        if not self._started:
            return self._last, None
        offset = 0.0
        if self._season:
            offset = self._season[(self._slot + max(1, ceil(steps - 1e-9)) - 1) % len(self._season)]
        return self.level + steps * self.trend + offset, None
