"""Randomness: each component gets its own generator from the run's one seed, so adding one never changes another's draws."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def generator(seed: int, path: str, replication: int = 0) -> np.random.Generator:
    """The generator of the component at `path` (such as "pool/chat/replica/3/boot") in one replication of a seed."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(crc32(path.encode()), replication))))


class PolicyRng:
    """The two draws that policies may make, on a seeded NumPy generator."""

    __slots__ = ("_generator",)

    def __init__(self, seed: int, path: str, replication: int = 0) -> None:
        self._generator = generator(seed, path, replication)

    def random(self) -> float:
        return float(self._generator.random())

    def randrange(self, n: int, /) -> int:
        return int(self._generator.integers(n))
