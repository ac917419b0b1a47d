"""What a run of steps did to the requests: tokens, first tokens, finishes, blocks that others can hit."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from windtunnel.sim.attempt import GONE, Attempt
from windtunnel.sim.batching.members import Members
from windtunnel.sim.tokens import Pieces


class Progress(Members):
    """Members that get on. `_marks` is a heap of (D at which it ends, admission order, request); an entry that is not its request's
    `end_mark` any more is void."""

    __slots__ = ("_chunk_steps", "_k", "_marks", "_prefills", "output_tokens", "pieces")

    def __init__(self, *args: Any, pieces: bool = False) -> None:
        super().__init__(*args)
        self.pieces = Pieces() if pieces else None
        self._marks: list[tuple[int, int, Attempt]] = []
        self._k = 0  # steps of the run
        self._prefills = self._chunk_steps = self.output_tokens = 0

    def _finish_marks(self, now: float) -> list[Attempt]:
        """Decodes that got their last token, in admission order."""
        marks, D, kv = self._marks, self.D, self.kv
        finished: list[Attempt] = []
        if self.cache is not None and self.cache.idle:
            self._trim(D)
        while marks and marks[0][0] <= D:
            mark, _, a = heappop(marks)
            if a.end_mark == mark:
                if a.refs is None:  # as _leave, for the common case
                    del self._running[a.order]
                    a.computed = a.base + D
                    a.generated = a.output
                    a.end_mark = -1
                    kv.leave(a.base)
                else:
                    self._leave(a)
                self._finish(a, now)
                finished.append(a)
        return finished

    def _finish_chunks(self, now: float, finished: list[Attempt]) -> list[Attempt]:
        """Prefills move on; a complete one yields a token and decodes from now on, or is done. Returns those with a first token."""
        firsts: list[Attempt] = []
        k, chunks = self._k, self._chunks
        self._chunk_steps += k * len(chunks)
        for a, q in chunks:
            a.computed += q * k
            if a.refs is not None:
                self._make_findable(a)
            if a.computed < a.target:
                continue
            if a is self.partial:
                self.partial = None
            a.generated += 1
            self.output_tokens += 1
            self._prefills += 1
            if self.pieces is not None:
                self._note_segment(a, now)
            is_first = a.first_token_s is None
            if is_first:
                a.first_token_s = now
            if a.generated >= a.output:
                self._leave(a)
                self._finish(a, now)
                finished.append(a)
            else:
                self._join(a)
                if is_first:
                    firsts.append(a)
        chunks.clear()
        return firsts

    def _join(self, a: Attempt) -> None:
        """A complete prefill decodes from the next step on."""
        kv = self.kv
        computed = a.computed
        kv.fixed -= -(-computed // kv.size)
        a.held = 0
        a.base = base = computed - self.D
        kv.join(base)
        a.end_mark = mark = self.D + a.output - a.generated
        heappush(self._marks, (mark, a.order, a))

    def _finish(self, a: Attempt, now: float) -> None:
        a.finished_s = now
        a.state = GONE
        del self._here[a.id, a.dispatch]
        if a.output == 0:
            a.generated, a.first_token_s = 0, None
            self.output_tokens -= 1
            self._prefills -= 1

    def _note_segment(self, a: Attempt, now: float) -> None:
        assert self.pieces is not None
        a.segments = a.segments or []
        a.segments.append((a.generated, self.D))
        if a.lost_at is not None:
            self.pieces.singles.append(now - a.lost_at)
            a.lost_at = None
