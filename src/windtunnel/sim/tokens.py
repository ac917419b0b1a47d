"""When each token came, and the exact distribution of the gaps between them, from the pieces that runs leave behind."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from windtunnel.sim.attempt import Attempt
from windtunnel.sim.specdecode import steps_for


class Pieces:
    """One row per run: steps D0+1 … D0+k of the replica, step j (from 0) lasting A + B·j from t0 (s), b requests decoding in each.

    A row of k = 0 is a step of A seconds in which the decodes stood still. g: tokens that a decode gets per step.
    """

    __slots__ = ("A", "B", "D0", "_back", "_still", "b", "cuts", "g", "k", "late", "singles", "t0")

    def __init__(self, g: float = 1.0) -> None:
        self.D0, self.k, self.b = array("q"), array("q"), array("q")
        self.t0, self.A, self.B = array("d"), array("d"), array("d")
        self.singles: list[float] = []  # gaps across a preemption or a hand-over (s)
        self.late: list[tuple[int, float, int]] = []  # (row, seconds more, requests): gaps that began before the row's first step
        self._still: list[list[float]] = []  # [t0, seconds, decodes] of the steps without decodes since the last one with
        self._back: dict[int, float] = {}  # time of the last token of those who rejoin with the next step
        self.g = g
        self.cuts: dict[tuple[str, int], dict[int, tuple[int, float]]] = {}  # by attempt: segment -> (step, time of its last token)

    def __len__(self) -> int:
        return len(self.D0)

    def add(self, D0: int, k: int, b: int, t0: float, A: float, B: float) -> None:
        if b and (self._still or self._back):
            self._resume(t0)
        self.D0.append(D0)
        self.k.append(k)
        self.b.append(b)
        self.t0.append(t0)
        self.A.append(A)
        self.B.append(B)

    def stand_still(self, D0: int, b: int, t0: float, seconds: float) -> None:
        """A step in which b decodes got nothing."""
        self.add(D0, 0, 0, t0, seconds, 0.0)
        if b > len(self._back):
            self._still.append([t0, seconds, b - len(self._back)])

    def cut(self, a: Attempt, D: int) -> float:
        """A decode is preempted after step D: the time (run s) of its last token."""
        last = self.last_token(a, D)
        self.cuts.setdefault((a.id, a.dispatch), {})[len(a.segments or ()) - 1] = (D, last)
        return last

    def rejoin(self, a: Attempt, D: int) -> None:
        """A request that has tokens already decodes from step D + 1 on: the gap to its last token, wherever that came, is its own."""
        last = a.lost_at if a.lost_at is not None else a.first_token_s
        assert last is not None
        a.lost_at = None
        a.segments = [*(a.segments or ()), (a.generated, D, last)]
        self._back[id(a)] = last

    def leave(self, a: Attempt) -> None:
        """A decode goes before its next token: no gap ends."""
        if self._back.pop(id(a), None) is not None:
            return
        since = a.segments[-1][2] if a.segments else 0.0
        for still in self._still:
            if still[0] >= since:
                still[2] -= 1

    def _resume(self, t0: float) -> None:
        """The first step with decodes after some without: who was there from the i-th of them on waited for it and all later ones."""
        before = 0.0
        waited = sum(seconds for _, seconds, _ in self._still)
        for _, seconds, members in self._still:
            if members > before:
                self.late.append((len(self), waited, int(members - before)))
                before = members
            waited -= seconds
        self._still.clear()
        self.late += [(len(self), t0 - last, 1) for last in self._back.values()]
        self._back.clear()

    def time_of(self, D: int) -> float:
        """The time (run s) at which the replica's step D ended. IndexError if it did not run."""
        i = bisect_left(self.D0, D) - 1
        if i < 0 or self.D0[i] + self.k[i] < D:
            raise IndexError(f"no step {D}")
        j = D - self.D0[i]
        return self.t0[i] + (j * self.A[i] + self.B[i] * (j * (j - 1) * 0.5))

    def last_token(self, a: Attempt, D: int) -> float:
        """When a decode got its latest token, D steps having ended."""
        _, since, at = a.segments[-1]  # type: ignore[index]
        return at if since >= D else self.time_of(D)

    def token_time(self, a: Attempt, n: int) -> float:
        """The time (run s) of output token n (from 1) of an attempt that has got so far, at the engine. IndexError if it has not."""
        if not a.segments or n < 1 or n > max(1, a.output):
            raise IndexError(f"{a.id} has no token {n}")
        i = max(i for i, s in enumerate(a.segments) if s[0] <= n)
        first, D, at = a.segments[i]
        if n == first:
            return at
        step = D + (n - first if self.g == 1.0 else steps_for(n - first, self.g))
        if i + 1 < len(a.segments) and a.segments[i + 1][1] < step:  # several tokens came in one step
            return a.segments[i + 1][2]
        return self.time_of(step)

    def gaps(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Every gap between two tokens of one request: (seconds, how many), as a weighted multiset. O(steps)."""
        k, b = np.array(self.k, dtype=np.int64), np.array(self.b, dtype=np.int64)
        A, B = np.array(self.A), np.array(self.B)
        firsts = np.cumsum(k) - k
        steps = np.arange(k.sum()) - np.repeat(firsts, k)
        seconds, counts = np.repeat(A, k) + np.repeat(B, k) * steps, np.repeat(b, k)
        more = list(self.singles)
        many = [1] * len(more)
        for row, waited, requests in self.late:
            if row < len(k):
                counts[firsts[row]] -= requests
                more.append(float(A[row]) + waited)
                many.append(requests)
        there = counts > 0
        return np.concatenate([seconds[there], more]), np.concatenate([counts[there], np.array(many, dtype=np.int64)])


def weighted_percentiles(seconds: NDArray[np.float64], counts: NDArray[np.int64], percents: Sequence[float]) -> list[float | None]:
    """Percentiles of a weighted multiset, as `numpy.percentile` of the multiset written out (linear between order statistics)."""
    total = int(counts.sum())
    if not total:
        return [None for _ in percents]
    order = np.argsort(seconds, kind="stable")
    values, ends = seconds[order], np.cumsum(counts[order])
    position = (total - 1) * np.asarray(percents, dtype=np.float64) / 100.0
    below = np.floor(position).astype(np.int64)
    low = values[np.searchsorted(ends, below, side="right")]
    high = values[np.searchsorted(ends, np.minimum(below + 1, total - 1), side="right")]
    return [float(x) for x in low + (high - low) * (position - below)]


def itl_percentiles(pieces: Sequence[Pieces], percents: Sequence[float]) -> list[float | None]:
    """Exact percentiles (s) of the gaps between tokens, of all requests of these engines together; None without a gap."""
    gaps = [p.gaps() for p in pieces]
    if not gaps:
        return [None for _ in percents]
    return weighted_percentiles(np.concatenate([s for s, _ in gaps]), np.concatenate([c for _, c in gaps]), percents)
