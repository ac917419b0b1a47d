"""Who waits in an engine, who is in its batch, and which KV blocks they hold."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from windtunnel.errors import ConfigValueError
from windtunnel.sim.agenda import Agenda
from windtunnel.sim.attempt import GONE, RUNNING, WAITING, Attempt, Refusal
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.kv import Blocks
from windtunnel.sim.prefix import PrefixCache


class Members:
    """The queue, the batch and the blocks of one engine, at a step boundary.

    D counts the engine's steps; a decoding request keeps `base` (computed = base + D) and `end_mark`, so a step touches no request. At most
    one request is `partial`: its prefill was not complete after its last chunk. It was admitted last of all.
    """

    __slots__ = (
        "D", "_cancels", "_chunks", "_hash_tokens", "_here", "_longest", "_max_seqs", "_on_cancelled", "_on_started", "_orders", "_per_entry",
        "_queue", "_reserve", "_reserve_full", "_returned", "_running", "_started", "_waiting", "_waiting_tokens", "agenda", "budget", "cache",
        "cached_tokens", "config", "kv", "name", "partial", "preemptions", "prefix_hit_blocks", "prefix_query_blocks", "prefix_unusable",
    )

    def __init__(self, name: str, config: EngineConfig, agenda: Agenda, on_cancelled: Callable[[Attempt], None],
                 on_started: Callable[[Attempt], None] | None) -> None:
        self.name, self.config, self.agenda = name, config, agenda
        self._on_cancelled, self._on_started = on_cancelled, on_started
        self.kv = Blocks(config.block_size, config.num_blocks)
        self.cache = PrefixCache() if config.prefix_cache else None
        self._hash_tokens = config.hash_tokens
        self._per_entry = config.hash_tokens // config.block_size
        self._reserve = int(config.watermark * config.num_blocks) if config.num_blocks else 0
        self._reserve_full = config.reserve_full_input
        self.budget, self._max_seqs = config.max_num_batched_tokens, config.max_num_seqs
        self._longest = _longest(config)
        self._queue: deque[Attempt] = deque()  # may hold cancelled ones
        self._returned: list[Attempt] = []  # preempted, ahead of the queue, the first of them last
        self._here: dict[tuple[str, int], Attempt] = {}
        self._running: dict[int, Attempt] = {}  # in admission order
        self.partial: Attempt | None = None
        self._chunks: list[tuple[Attempt, int]] = []  # of the step or run under way
        self._started: list[Attempt] = []
        self._cancels: list[Attempt] = []
        self.D = self._waiting = self._waiting_tokens = self._orders = 0
        self.preemptions = self.cached_tokens = self.prefix_hit_blocks = self.prefix_query_blocks = self.prefix_unusable = 0

    def _refusal(self, a: Attempt) -> Refusal | None:
        config = self.config
        if config.max_model_len is not None and a.prompt + max(1, a.output) > config.max_model_len:
            return Refusal(400, "context_length_exceeded")
        longest = a.prompt + a.output - (a.output > 0)  # the last token's KV is never stored
        if config.num_blocks is not None and self.kv.blocks_for(longest) > config.num_blocks:
            return Refusal(400, "kv_capacity_exceeded")
        if not config.chunked_prefill and longest > config.max_num_batched_tokens:
            return Refusal(400, "context_length_exceeded")
        if config.max_queued_requests is not None and self._waiting >= config.max_queued_requests:
            return Refusal(config.reject_status, "engine_queue_full")
        if config.max_queued_tokens is not None:
            a.held = a.prompt - self._hits(a) * self._hash_tokens
            if self._waiting and self._waiting_tokens + a.held > config.max_queued_tokens:
                return Refusal(config.reject_status, "engine_queue_full")
            self._waiting_tokens += a.held
        return None

    def _wrong_hashes(self, a: Attempt) -> None:
        """Too few hashes for the prompt: they are of larger blocks than this cache's. Never taken for what they are not."""
        if self.config.cache_block_tokens is not None:
            raise ConfigValueError("engine.cache_block_tokens", f"{len(a.blocks or ())} prefix hashes for a prompt of {a.prompt} tokens are not of "
                                   f"{self._hash_tokens} tokens each", hint="write the tokens per hash of the trace, such as 512")
        a.blocks = None
        self.prefix_unusable += 1

    def _head(self) -> Attempt:
        """The first in line; somebody must be waiting."""
        returned, queue = self._returned, self._queue
        while returned:
            if returned[-1].state == WAITING:
                return returned[-1]
            returned.pop()
        while queue[0].state != WAITING:
            queue.popleft()
        return queue[0]

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

    def make_room(self) -> bool:
        """Preempt the last admitted while the running requests' next step needs more blocks than are free; True if anybody was."""
        kv = self.kv
        preempted = False
        while not kv.fits(self.D + 1, self._partial_growth()):
            partial = self.partial
            for a in reversed(self._running.values()):
                # A victim that has not got on by a token since is spared: two prompts would throw each other out for ever.
                if a is not partial or a.preempted_at != a.generated:
                    break
            self._preempt(a)
            preempted = True
        return preempted

    def serve_partial(self) -> int:
        """Give the unfinished prefill its chunk; returns the tokens left of the step's budget."""
        budget, a = self.budget - self.kv.n, self.partial
        if a is None or budget <= 0:
            return budget
        q = min(a.target - a.computed, budget)
        self._chunks.append((a, q))
        self._grow(a, a.computed + q)
        return budget - q

    def admit(self, budget: int) -> None:
        """From the head of the queue while sequences, tokens and blocks last; the first one that does not fit stops it."""
        running, queue, cache, kv = self._running, self._queue, self.cache, self.kv
        while self._waiting and budget > 0 and len(running) < self._max_seqs:
            a = queue[0] if not self._returned and queue[0].state == WAITING else self._head()
            hits = 0
            if a.blocks is not None and cache is not None:
                self._trim(self.D + 1)
                hits = self._hits(a)
            q = a.target - hits * self._hash_tokens
            if q > budget:
                if not self.config.chunked_prefill:
                    return
                q = budget
            if not kv.surely_fits(self.D + 1, -(-a.target // kv.size) + self._reserve) and not self._has_room(a, self.D + 1, hits, budget):
                return
            self._enter(a, q, hits)
            budget -= q

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
        a.cached_blocks, a.cached_tokens = hits, a.computed
        self.cached_tokens += a.computed
        self.prefix_hit_blocks += hits
        self.prefix_query_blocks += len(a.blocks or ())

    def _grow(self, a: Attempt, tokens: int) -> None:
        kv = self.kv
        held = -(-tokens // kv.size)
        if a.refs:
            held -= len(a.refs) * self._per_entry
        kv.fixed += held - a.held
        a.held = held

    def _partial_growth(self) -> int:
        """Blocks that the unfinished prefill's next chunk takes."""
        a = self.partial
        if a is None:
            return 0
        q = min(a.target - a.computed, max(0, self.budget - self.kv.n))
        return self.kv.blocks_for(a.computed + q) - a.held - (len(a.refs) * self._per_entry if a.refs else 0)

    def _preempt(self, a: Attempt) -> None:
        """Recompute: blocks freed, back to the front of the queue; what it had generated is prefilled again, not emitted again."""
        if a.end_mark >= 0:
            a.lost_at = self.agenda._now
        self._leave(a)
        a.recomputed_tokens += a.computed
        a.computed = 0
        a.target = a.prompt + a.generated
        a.preempted_at = a.generated
        a.preemptions += 1
        self.preemptions += 1
        a.state = WAITING
        self._returned.append(a)
        self._waiting += 1

    def _leave(self, a: Attempt) -> None:
        """Out of the batch: its counts brought up to date, its blocks free."""
        kv, cache = self.kv, self.cache
        del self._running[a.order]
        if cache is not None and cache.idle:
            self._trim(self.D)
        refs = a.refs
        if a.end_mark >= 0:
            a.generated = a.output - (a.end_mark - self.D)
            a.computed = a.base + self.D
            if refs is not None:
                self._make_findable(a)
                kv.fixed += len(refs) * self._per_entry
            kv.leave(a.base)
            a.end_mark = -1
        else:
            kv.fixed -= a.held
            a.held = 0
            if a is self.partial:
                self.partial = None
        if refs is not None:
            assert cache is not None
            kv.fixed -= cache.release(refs) * self._per_entry
            a.refs = None

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

    def _let_go(self) -> None:
        """Cancelled requests leave at a boundary."""
        cancels, self._cancels = self._cancels, []
        for a in cancels:
            if a.state == RUNNING:
                self._leave(a)
            elif a.state == WAITING:  # preempted meanwhile
                self._waiting -= 1
            else:
                continue
            a.state = GONE
            del self._here[a.id, a.dispatch]
            self._on_cancelled(a)

    def _assert_conserved(self) -> None:
        """Blocks and counters agree with a recount."""
        kv, D, per = self.kv, self.D, self._per_entry
        decoding = [a for a in self._running.values() if a.end_mark >= 0]
        held = sum(kv.blocks_for(a.base + D) for a in decoding)
        held += sum(a.held + len(a.refs or ()) * per for a in self._running.values() if a.end_mark < 0)
        if self.cache is not None:
            counted = Counter(h for a in self._running.values() for h in a.refs or ())
            assert counted == self.cache.refs, self.name
            held -= per * (counted.total() - len(counted))
        assert kv.used(D) == held, (self.name, kv.used(D), held)
        assert kv.n == len(decoding) and kv.base_sum == sum(a.base for a in decoding), (self.name, kv.n)
        assert kv.total is None or held <= kv.total, (self.name, held)
        assert len(self._here) == len(self._running) + self._waiting, self.name


def _longest(config: EngineConfig) -> int:
    """Requests of fewer prompt and output tokens than this need no look at the limits."""
    if config.max_queued_requests is not None or config.max_queued_tokens is not None:
        return -1
    longest = 1 << 62
    if config.num_blocks is not None:
        longest = config.num_blocks * config.block_size
    if config.max_model_len is not None:
        longest = min(longest, config.max_model_len)
    return longest if config.chunked_prefill else min(longest, config.max_num_batched_tokens)
