"""What a run of steps did to the requests: tokens, first tokens, finishes, blocks that others can hit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from heapq import heappop, heappush

from windtunnel.sim.agenda import Agenda
from windtunnel.sim.attempt import GONE, Attempt, Callbacks
from windtunnel.sim.batching.fittings import Fittings
from windtunnel.sim.batching.room import Room
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.stepmodels.model import StepModel


class Progress(Room):
    """Members that get on. `_marks` is a heap of (D at which it ends, admission order, request); an entry that is not its request's
    `end_mark` any more is void."""

    __slots__ = ("_asks_hits", "_chunk_steps", "_decode_steps", "_extra_tokens", "_k", "_marks", "_prefills", "_simple", "_split")

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, told: Callbacks, fittings: Fittings) -> None:
        super().__init__(name, config, model, agenda, told, fittings)
        self._marks: list[tuple[int, int, Attempt]] = []
        self._k = 0  # steps of the run
        self._prefills = self._chunk_steps = self._decode_steps = self._extra_tokens = 0
        self._simple = self._g is None and not self._padded and self.pieces is None
        # Are prefixes looked up inside a run? Those that a long prompt fills must be findable at once.
        self._asks_hits = self.config.max_queued_tokens is not None or self.config.role == "decode"
        self._split = self.config.role == "prefill"

    @property
    def output_tokens(self) -> int:
        """Tokens yielded up to the last boundary, of all requests ever."""
        return self._decode_steps + self._prefills + self._extra_tokens + (0 if self._g is None else self._extra_now(self.D))

    def _extra_now(self, D: int) -> int:
        """With expected speculation: tokens of those who decode at D beyond one per step."""
        extra = 0
        for a in self._running.values():
            if a.end_mark >= 0:
                extra += min(a.output - a.generated, int((D - a.base[1]) * self._g + 1e-9)) - (D - a.base[1])  # type: ignore[operator]
        return extra

    def _left_decoding(self, a: Attempt, before: int) -> None:
        if self._g is not None:
            self._extra_tokens += a.generated - before - (self.D - a.base[1])

    def _accept(self, random: Callable[[], float], now: float) -> None:
        """Draft tokens that were right come on top of the one that every decode got; draws in admission order."""
        spec, D, kv = self.config.spec_decode, self.D, self.kv
        assert spec is not None
        for a in self._running.values():
            if a.end_mark < 0:
                continue
            right = min(spec.draw(random), a.end_mark - D)
            if right:
                kv.leave(a.base)
                a.base += right
                kv.join(a.base)
                a.end_mark -= right
                heappush(self._marks, (a.end_mark, a.order, a))
                self._extra_tokens += right
                if a.segments is not None:
                    a.segments.append((self._generated(a, self.D), D, now))

    def _finish_marks(self, now: float) -> list[Attempt]:
        """Decodes that got their last token, in admission order."""
        marks, D, kv = self._marks, self.D, self.kv
        finished: list[Attempt] = []
        if self.cache is not None and self.cache.idle:
            self._trim(D)
        while marks and marks[0][0] <= D:
            mark, _, a = heappop(marks)
            if a.end_mark == mark:
                if a.refs is None and self._simple:  # as _leave, for the common case
                    del self._running[a.order]
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
        k, chunks, D, marks, kv = self._k, self._chunks, self.D, self._marks, self.kv
        size = kv.size
        self._chunk_steps += k * len(chunks)
        for a, q in chunks:
            a.computed += q * k
            if a.refs is not None:
                self._trim(D)  # what was displaced is not there to be filled again
                self._make_findable(a)
            if a.computed < a.target:
                continue
            if a is self.partial:
                self.partial = None
            if self._split and (a.output > 1 or self.config.first_token == "decode"):
                if self._hand_over(a, now):
                    firsts.append(a)
                continue
            a.generated += 1
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
                if self._simple:  # as _join, for the common case
                    computed = a.computed
                    kv.fixed -= -(-computed // size)
                    a.held = 0
                    a.base = base = computed - D
                    kv.n += 1
                    kv.base_sum += base
                    kv.bins[base % size] += 1
                    a.end_mark = mark = D + a.output - a.generated
                    heappush(marks, (mark, a.order, a))
                else:
                    self._join(a)
                if is_first:
                    firsts.append(a)
        chunks.clear()
        return firsts

    def _chunk_run(self) -> int:
        """Steps of a long prompt that takes the whole budget of each: nobody can be admitted before its last chunk."""
        a, q = self._chunks[0]
        kv = self.kv
        k = (a.target - a.computed - 1) // q
        if len(self._chunks) > 1 or k < 2 or kv.n * self.width + q < self.budget or (a.refs is not None and self._in_the_way(a)):
            return 1
        if kv.n:
            marks = self._marks
            while marks[0][2].end_mark != marks[0][0]:
                heappop(marks)
            k = min(k, marks[0][0] - self.D)
        lo, taken = 1, kv.blocks_for(a.computed + q)
        while lo < k:
            mid = (lo + k + 1) // 2
            if kv.fits(self.D + mid, kv.blocks_for(a.computed + q * mid) - taken):
                lo = mid
            else:
                k = mid - 1
        return lo

    def _in_the_way(self, a: Attempt) -> bool:
        """Must the blocks that a prompt fills be findable step by step? Inside a run nobody looks, unless arrivals do; an idle equal of one
        may be evicted meanwhile."""
        assert self.cache is not None and a.blocks is not None
        return self._asks_hits or not self.cache.idle.keys().isdisjoint(a.blocks[a.filled :])

    @abstractmethod
    def _hand_over(self, a: Attempt, now: float) -> bool:
        """To another engine, which decodes it; True if token 1 came here."""

    def _join(self, a: Attempt) -> None:
        kv = self.kv
        computed = a.computed
        kv.fixed -= -(-computed // kv.size)
        a.held = 0
        a.base = computed - self.D if self._g is None else (computed, self.D)
        kv.join(a.base)
        a.end_mark = mark = self.D + (a.output - a.generated if self._g is None else self.steps_to_end(a))
        heappush(self._marks, (mark, a.order, a))

    def _finish(self, a: Attempt, now: float) -> None:
        a.finished_s = now
        a.state = GONE
        del self._here[a.id, a.dispatch]
        if a.output == 0:
            a.generated, a.first_token_s = 0, None
            self._extra_tokens -= 1

    def _note_segment(self, a: Attempt, now: float) -> None:
        assert self.pieces is not None
        a.segments = a.segments or []
        a.segments.append((a.generated, self.D, now))
        if a.lost_at is not None:
            self.pieces.singles.append(now - a.lost_at)
            a.lost_at = None
