"""Who waits in an engine, who is in its batch, and which KV blocks they hold."""

from __future__ import annotations

from collections import deque

from windtunnel.sim.agenda import Agenda
from windtunnel.sim.attempt import RUNNING, SWAPPED, WAITING, Attempt, Callbacks
from windtunnel.sim.batching.fittings import Fittings
from windtunnel.sim.batching.priority_line import PriorityLine
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.kv import Blocks
from windtunnel.sim.prefix import PrefixCache
from windtunnel.sim.specdecode import steps_for, tokens_after
from windtunnel.sim.stepmodels.model import StepModel
from windtunnel.sim.stretched import LookaheadBlocks, StretchedBlocks
from windtunnel.sim.tokens import Pieces

NO_LIMIT = 1 << 62


class Members:
    """The queue, the batch and the blocks of one engine, at a step boundary.

    D counts the steps in which decodes got on; a decoding request keeps `base` (computed = base + D) and `end_mark`, so a step touches no
    request. At most one request is `partial`: its prefill was not complete after its last chunk.
    """

    __slots__ = (
        "D", "_alone", "_cancels", "_chunks", "_g", "_ghost_base", "_ghosts", "_hash_tokens", "_here", "_limit", "_max_seqs",
        "_on_cancelled", "_on_finish", "_on_first", "_on_started", "_orders", "_padded", "_per_entry", "_queue", "_reserve",
        "_reserve_full", "_returned", "_running", "_started", "_waiting", "_waiting_tokens", "agenda", "budget", "cache", "cached_tokens",
        "config", "kv", "model", "name", "partial", "pieces", "preemptions", "prefix_hit_blocks", "prefix_query_blocks",
        "prefix_query_tokens", "width",
    )

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, told: Callbacks, fittings: Fittings) -> None:
        self.name, self.config, self.model, self.agenda = name, config, model, agenda
        self._on_finish, self._on_cancelled = told["on_finish"], told["on_cancelled"]
        self._on_first, self._on_started = told.get("on_first"), told.get("on_started")
        spec = config.spec_decode
        self._g: float | None = spec.mean_tokens if spec is not None and spec.mode == "expected" else None
        self.width = 1 if spec is None else 1 + spec.k  # tokens that a decode computes in a step
        self.kv = self._blocks()
        self.pieces = Pieces(self._g or 1.0) if fittings.pieces else None
        self.cache = PrefixCache() if config.prefix_cache else None
        self._hash_tokens = config.hash_tokens
        self._per_entry = config.hash_tokens // config.block_size
        self._reserve = int(config.watermark * config.num_blocks) if config.num_blocks else 0
        self._reserve_full = config.reserve_full_input or config.whole_prompts
        self.budget, self._max_seqs = config.max_num_batched_tokens, config.max_num_seqs
        self._queue: deque[Attempt] | PriorityLine = deque() if config.order == "fcfs" else PriorityLine()  # may hold cancelled ones
        self._returned: list[Attempt] = []  # preempted, ahead of the queue, the first of them last
        self._here: dict[tuple[str, int], Attempt] = {}
        self._running: dict[int, Attempt] = {}  # in admission order
        self.partial: Attempt | None = None
        self._chunks: list[tuple[Attempt, int]] = []  # of the step or run under way
        self._alone = False  # are they computed in a step without decodes?
        self._limit = NO_LIMIT  # steps after which the batch must be composed anew although nothing happened
        self._started: list[Attempt] = []
        self._cancels: list[Attempt] = []
        self._padded = config.policy == "static" and config.pad
        self._ghosts, self._ghost_base = 0, 0.0  # finished, but in the cost of the steps of a static batch
        self.D = self._waiting = self._waiting_tokens = self._orders = 0
        self.preemptions = self.cached_tokens = self.prefix_hit_blocks = self.prefix_query_blocks = self.prefix_query_tokens = 0

    def _blocks(self) -> Blocks:
        config, spec = self.config, self.config.spec_decode
        total = None if config.policy == "slots" else config.num_blocks  # a slot owns its context
        if spec is None:
            return Blocks(config.block_size, total)
        if self._g is not None:
            return StretchedBlocks(config.block_size, total, self._g)
        return LookaheadBlocks(config.block_size, total, spec.k)

    def _head(self) -> Attempt:
        """The first in line; somebody must be waiting."""
        returned, queue = self._returned, self._queue
        while returned:
            if returned[-1].state in (WAITING, SWAPPED):
                return returned[-1]
            returned.pop()
        while queue[0].state not in (WAITING, SWAPPED):
            queue.popleft()
        return queue[0]

    def _take_head(self) -> None:
        """The first in line, just looked at, is in line no more."""
        if self._returned:
            self._returned.pop()
        else:
            self._queue.popleft()
        self._waiting -= 1

    def _put_back(self, a: Attempt) -> None:
        """In line again, ahead of who never ran; by priority, where its arrival puts it."""
        if type(self._queue) is PriorityLine:
            self._queue.append(a)
        else:
            self._to_the_front(a)
        self._waiting += 1

    def _to_the_front(self, a: Attempt) -> None:
        """Ahead of all but those who hold blocks already: behind someone who waits for blocks they could keep them for ever."""
        returned = self._returned
        i = len(returned)
        while i and returned[i - 1].computed and returned[i - 1].state == WAITING:
            i -= 1
        returned.insert(i, a)

    def _hits(self, a: Attempt) -> int:
        """Leading blocks of the prompt in the cache; at least one token is always computed."""
        if a.blocks is None or self.cache is None:
            return 0
        return self.cache.lookup(a.blocks, (a.target - 1) // self._hash_tokens)

    def _blocks_wanted(self, a: Attempt, hits: int, budget: int) -> int:
        """Free blocks that admission asks for, those of idle cache entries included."""
        tokens = a.target
        if not self._reserve_full:
            tokens = min(tokens, hits * self._hash_tokens + budget)
        wanted = -(-tokens // self.kv.size)
        if hits:
            assert self.cache is not None and a.blocks is not None
            wanted -= self.cache.referenced(a.blocks, hits) * self._per_entry
        return wanted

    def _has_room(self, a: Attempt, D: int, hits: int, budget: int) -> bool:
        """Do the free blocks at D let it in? Alone it may use the reserve too: it would wait for ever."""
        return self.kv.fits(D, self._blocks_wanted(a, hits, budget) + (self._reserve if self._running else 0))

    def _enter(self, a: Attempt, q: int, hits: int) -> None:
        """From the queue into the batch: hold the blocks that the cache has, schedule q tokens and take their blocks."""
        kv = self.kv
        if self._returned:
            self._returned.pop()
        else:
            self._queue.popleft()
        self._waiting -= 1
        self._waiting_tokens -= a.held
        a.state = RUNNING
        self._orders = a.order = order = self._orders + 1
        self._running[order] = a
        tokens, shared = q, 0
        if a.blocks is not None and self.cache is not None:
            a.refs = list(a.blocks[:hits])
            a.filled = hits
            kv.fixed += self.cache.acquire(a.refs) * self._per_entry
            a.computed = hits * self._hash_tokens
            tokens, shared = q + a.computed, hits * self._per_entry
        self._chunks.append((a, q))
        a.held = held = -(-tokens // kv.size) - shared
        kv.fixed += held
        if tokens < a.target:
            self.partial = a
        if a.started_s is None:
            a.started_s = self.agenda._now
            if a.refs is not None:
                self._count_hits(a, hits)
            if self._on_started is not None:
                self._started.append(a)
        else:
            a.recomputed_tokens -= a.computed

    def _count_hits(self, a: Attempt, hits: int) -> None:
        a.cached_blocks, a.cached_tokens = hits, hits * self._hash_tokens
        self.cached_tokens += a.cached_tokens
        self.prefix_hit_blocks += hits
        a.input_blocks = asked = min(len(a.blocks or ()), -(-a.prompt // self._hash_tokens))  # those behind the prompt are of the output
        self.prefix_query_blocks += asked
        self.prefix_query_tokens += a.prompt

    def _grow(self, a: Attempt, tokens: int) -> None:
        kv = self.kv
        held = -(-tokens // kv.size)
        if a.refs:
            held -= len(a.refs) * self._per_entry
        kv.fixed += held - a.held
        a.held = held

    def _generated(self, a: Attempt, D: int) -> int:
        """Output tokens of a decoding request at D."""
        if self._g is None:
            return a.output - (a.end_mark - D)
        return min(a.output, a.generated + tokens_after(D - a.base[1], self._g))

    def _leave(self, a: Attempt) -> None:
        """Out of the batch: its counts brought up to date, its blocks free."""
        kv, cache = self.kv, self.cache
        del self._running[a.order]
        if cache is not None and cache.idle:
            self._trim(self.D)
        refs = a.refs
        if a.end_mark >= 0:
            before = a.generated
            a.generated = self._generated(a, self.D)
            a.computed = a.base + self.D if self._g is None else a.base[0] + a.generated - before
            if refs is not None:
                self._make_findable(a)
                kv.fixed += len(refs) * self._per_entry
            if self.pieces is not None:
                self.pieces.leave(a)
            self._left_decoding(a, before)
            kv.leave(a.base)
            a.end_mark = -1
        else:
            kv.fixed -= a.held
            a.held = 0
            if a is self.partial:
                self.partial = None
        if self._padded:
            self._ghosts += 1
            self._ghost_base += a.computed - (self._g or 1) * self.D
        if refs is not None:
            assert cache is not None
            kv.fixed -= cache.release(refs) * self._per_entry
            a.refs = None

    def _left_decoding(self, a: Attempt, before: int) -> None:
        """For who counts tokens."""

    def _make_findable(self, a: Attempt) -> None:
        """Blocks that are full now can be hit by others from the next step on; one that somebody else has filled stays private."""
        cache, blocks, refs = self.cache, a.blocks, a.refs
        assert cache is not None and blocks is not None and refs is not None
        full = a.computed // self._hash_tokens
        new = cache.insert_all(blocks[a.filled : full])
        a.filled = max(a.filled, full)
        refs += new
        if a.end_mark < 0:
            a.held -= len(new) * self._per_entry

    def _trim(self, D: int) -> None:
        """Evict what the blocks in use at D have displaced."""
        cache, kv = self.cache, self.kv
        if cache is not None and cache.idle and not kv.surely_fits(D, len(cache.idle) * self._per_entry):
            assert kv.total is not None
            cache.trim((kv.total - kv.used(D)) // self._per_entry)

    def steps_to_end(self, a: Attempt) -> int:
        """Decode steps that a request which has just begun to decode still needs."""
        rest = a.output - a.generated
        return rest if self._g is None else steps_for(rest, self._g)
