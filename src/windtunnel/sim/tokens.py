"""When each token came, and the exact distribution of the gaps between them, from the pieces that runs leave behind."""

from __future__ import annotations

from array import array
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from windtunnel.sim.attempt import Attempt


class Pieces:
    """One row per run: steps D0+1 … D0+k of the replica, step j (from 0) lasting A + B·j from t0 (s), b requests decoding in each."""

    __slots__ = ("A", "B", "D0", "b", "k", "singles", "t0")

    def __init__(self) -> None:
        self.D0, self.k, self.b = array("q"), array("q"), array("q")
        self.t0, self.A, self.B = array("d"), array("d"), array("d")
        self.singles: list[float] = []  # gaps across a preemption (s)

    def __len__(self) -> int:
        return len(self.D0)

    def add(self, D0: int, k: int, b: int, t0: float, A: float, B: float) -> None:
        self.D0.append(D0)
        self.k.append(k)
        self.b.append(b)
        self.t0.append(t0)
        self.A.append(A)
        self.B.append(B)

    def time_of(self, D: int) -> float:
        """The time (run s) at which the replica's step D ended. IndexError if it did not run."""
        i = bisect_left(self.D0, D) - 1
        if i < 0 or self.D0[i] + self.k[i] < D:
            raise IndexError(f"no step {D}")
        j = D - self.D0[i]
        return self.t0[i] + (j * self.A[i] + self.B[i] * (j * (j - 1) * 0.5))

    def token_time(self, a: Attempt, n: int) -> float:
        """The time (run s) of output token n (from 1) of an attempt that has got so far. IndexError if it has not."""
        if not a.segments or n < 1 or n > max(1, a.output):
            raise IndexError(f"{a.id} has no token {n}")
        first, D = max(s for s in a.segments if s[0] <= n)
        return self.time_of(D + n - first)

    def gaps(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Every gap between two tokens of one request: (seconds, how many), as a weighted multiset. O(steps)."""
        k, b = np.array(self.k, dtype=np.int64), np.array(self.b, dtype=np.int64)
        A, B = np.array(self.A), np.array(self.B)
        steps = np.arange(k.sum()) - np.repeat(np.cumsum(k) - k, k)
        seconds, counts = np.repeat(A, k) + np.repeat(B, k) * steps, np.repeat(b, k)
        decoding = counts > 0
        seconds, counts = seconds[decoding], counts[decoding]
        return np.concatenate([seconds, self.singles]), np.concatenate([counts, np.ones(len(self.singles), dtype=np.int64)])
