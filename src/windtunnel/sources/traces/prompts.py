"""Prompts for real engines from a trace that holds only counts and prefix blocks: equal block ids give equal text, in every process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.policy.routing.hashing import h64

# Short, frequent words: most vocabularies hold each of them, with the space before it, as one token, so that an engine's own
# count comes close to what was asked for (its chat template adds to it).
_TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were all "
    "her she there would their we him been has when who will no more if out so up said what its about than into them can only other "
    "time new some could these two may first then do any like my now over such our man me even most made after also did many off "
    "before must well back through years where much your way down should because long each just state those people too how little "
    "good world make very year still see work life men day get here old between both being under three never know same last another "
    "while us might great go come since against right came take used himself few house use place during high without again home "
    "around small however found part school every got left number course war until away something fact water public put think hand"
)
WORDS = tuple(_TEXT.split())


class Prompts:
    """Makes token ids and texts of given lengths. name: the trace's, so that two traces share nothing; block_size: tokens of a block."""

    def __init__(self, name: str, block_size: int = 512, vocabulary: Sequence[str] = WORDS) -> None:
        check_number("block_size", block_size, lo=1, whole=True)
        if not vocabulary:
            raise ConfigValueError("vocabulary", "expected at least one word, got none")
        self.name, self.block_size, self._words = name, block_size, tuple(vocabulary)

    def token_ids(self, request_id: str, input_tokens: int, blocks: Sequence[int] | None = None) -> list[int]:
        """`input_tokens` numbers below the size of the vocabulary: the blocks' own ones first, then ones that only this request has."""
        parts, left = [], input_tokens
        for block in blocks or ():
            parts.append(_draw(f"{self.name}:{block}", min(left, self.block_size), len(self._words)))
            left -= len(parts[-1])
        parts.append(_draw(f"{self.name}/{request_id}", left, len(self._words)))
        ids: list[int] = np.concatenate(parts).tolist()
        return ids

    def text(self, request_id: str, input_tokens: int, blocks: Sequence[int] | None = None) -> str:
        """`input_tokens` words, joined by spaces."""
        return " ".join([self._words[i] for i in self.token_ids(request_id, input_tokens, blocks)])

    def content(self, request_id: str, input_tokens: int, blocks: Sequence[int] | None = None) -> dict[str, list[dict[str, str]]]:
        """The request's content as one user message: {"messages": [{"role": "user", "content": text}]}."""
        return {"messages": [{"role": "user", "content": self.text(request_id, input_tokens, blocks)}]}


def _draw(key: str, n: int, size: int) -> NDArray[np.int64]:
    """n numbers below `size`: SplitMix64 from h64(key). NumPy's own generators may change their streams between versions."""
    return (scramble(h64(key), np.arange(1, n + 1, dtype=np.uint64)) % np.uint64(size)).astype(np.int64)


def scramble(key: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output at `counters` of the sequence that starts at `key` (modulo 2**64)."""
    z = np.uint64(key & 0xFFFFFFFFFFFFFFFF) + counters * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
