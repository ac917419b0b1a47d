"""Randomness: each component gets its own generator from the run's one seed, so adding one never changes another's draws."""

from __future__ import annotations

from operator import index
from zlib import crc32

import numpy as np

from windtunnel.errors import ConfigValueError


def generator(seed: int, path: str, replication: int = 0) -> np.random.Generator:
    """The generator of the component at `path` (such as "pool/chat/replica/3/boot") in one replication of a seed.

    Raises ConfigValueError for a seed or replication that is no int in [0, 2^63).
    """
    _check("seed", seed)
    _check("replication", replication)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(crc32(path.encode()), replication))))


def _check(name: str, value: int) -> None:
    try:
        good = not isinstance(value, bool) and 0 <= index(value) < 2**63
    except TypeError:
        good = False
    if not good:
        raise ConfigValueError(name, f"expected an int >= 0 and < {2**63}, got {value!r}")


class PolicyRng:
    """The two draws that policies may make, on a seeded NumPy generator."""

    __slots__ = ("_generator",)

    def __init__(self, seed: int, path: str, replication: int = 0) -> None:
        self._generator = generator(seed, path, replication)

    def random(self) -> float:
        return float(self._generator.random())

    def randrange(self, n: int, /) -> int:
        return int(self._generator.integers(n))
