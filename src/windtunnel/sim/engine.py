"""One simulated engine: continuous batching with chunked prefill and KV blocks, as vLLM v1 schedules it.

It costs per *change of batch*, not per token: between changes a run of k steps is closed form, `t0 + k·A + B·k(k-1)/2`, exact for every
step. An arrival that can be admitted cuts the run at the next step boundary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import isfinite, sqrt
from typing import Any

from windtunnel.errors import ConfigValueError, ModelStepTimeError
from windtunnel.events import fact
from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import COMPLETION, STEP_START, Agenda
from windtunnel.sim.kv import Blocks
from windtunnel.sim.stepmodels.model import Batch, StepModel


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """max_num_seqs: requests running at once; max_num_batched_tokens: tokens per step; num_blocks None: as many as are needed;
    watermark: share of blocks kept free at admission; reserve_full_input: blocks for the whole prompt must be free to admit it;
    max_queued_requests: beyond it a request is refused with `reject_status`; host_*: seconds added to every step."""

    policy: str = "vllm"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    num_blocks: int | None = None
    max_model_len: int | None = None
    watermark: float = 0.0
    reserve_full_input: bool = True
    chunked_prefill: bool = True
    max_queued_requests: int | None = None
    reject_status: int = 503
    host_step_s: float = 0.0
    host_step_per_seq_s: float = 0.0

    def __post_init__(self) -> None:
        if self.policy != "vllm":
            raise ConfigValueError("policy", f'unknown batching policy "{self.policy}"', hint='write "vllm"')
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            check_number(name, getattr(self, name), lo=1, whole=True)
        for name in ("num_blocks", "max_model_len"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), lo=1, whole=True)
        if self.max_queued_requests is not None:
            check_number("max_queued_requests", self.max_queued_requests, lo=0, whole=True)
        check_number("reject_status", self.reject_status, lo=400, hi=599, whole=True)
        check_number("watermark", self.watermark, lo=0.0, below=1.0)
        check_number("host_step_s", self.host_step_s, lo=0.0)
        check_number("host_step_per_seq_s", self.host_step_per_seq_s, lo=0.0)
        if self.max_num_batched_tokens < self.max_num_seqs:
            short = f"{self.max_num_batched_tokens} tokens a step cannot serve {self.max_num_seqs} sequences"
            raise ConfigValueError("max_num_batched_tokens", short)


@fact
class Refusal:
    """The engine did not take a request."""

    status: int
    reason: str
    retry_after_s: float | None = None


@fact
class EngineState:
    """What an engine looks like at one instant. generated: output tokens so far, of all requests ever."""

    running: int
    waiting: int
    kv_used_fraction: float | None
    generated: int


class Attempt:
    """One attempt in an engine. Token counts; times in run s, filled in by the engine."""

    __slots__ = (
        "base", "blocks", "cached_tokens", "cancelled", "computed", "dispatch", "end_mark", "finished_s", "first_token_s", "generated", "held", "id",
        "order", "output", "preemptions", "priority", "prompt", "recomputed_tokens", "started_s", "submitted_s",
    )

    def __init__(self, id: str, dispatch: int, prompt: int, output: int, priority: int = 0, blocks: tuple[int, ...] | None = None) -> None:
        self.id, self.dispatch, self.prompt, self.output, self.priority, self.blocks = id, dispatch, prompt, output, priority, blocks
        self.submitted_s = 0.0
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.finished_s: float | None = None
        self.cached_tokens = self.preemptions = self.recomputed_tokens = self.generated = 0
        self.computed = self.held = self.order = 0
        self.base = 0  # while decoding: computed = base + D
        self.end_mark = -1  # while decoding: the D at which it ends; -1 otherwise
        self.cancelled = False

    @property
    def target(self) -> int:
        """Tokens to prefill: the prompt, and after a preemption what had been generated too."""
        return self.prompt + self.generated


class SimEngine:
    """At most one live agenda entry per engine; a re-timed run leaves its old entry to be ignored by version.

    D counts steps; a decoding request keeps `base` (computed = base + D) and `end_mark`, so a step touches no request.
    """

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, *, on_finish: Callable[[Attempt], None],
                 on_cancelled: Callable[[Attempt], None], on_first: Callable[[Attempt], None] | None = None,
                 on_started: Callable[[Attempt], None] | None = None, step_every: bool = False, check: bool = False) -> None:
        self.name, self.config, self.model, self.agenda = name, config, model, agenda
        self._on_finish, self._on_cancelled, self._on_first, self._on_started = on_finish, on_cancelled, on_first, on_started
        self._step_every, self._check = step_every, check
        self.kv = Blocks(config.block_size, config.num_blocks)
        self._reserve = int(config.watermark * config.num_blocks) if config.num_blocks else 0
        self._waiting: deque[Attempt] = deque()
        self._running: dict[tuple[str, int], Attempt] = {}  # in admission order
        self._marks: list[tuple[int, int, Attempt]] = []
        self._partial: Attempt | None = None  # the one request whose prefill is not complete; always the last admitted
        self._chunks: list[tuple[Attempt, int]] = []  # of the step or run under way
        self._batch = Batch()
        self._orders = 0
        self.D = self.b = self.K = 0
        self._t0 = self._A = self._B = 0.0
        self._k = self._version = 0
        self._stepping = self._start_pending = False
        self._cancels = False
        self._speed = 1.0
        self.steps = self.events = self.preemptions = 0
        self.output_tokens = self.prompt_tokens = self.prefix_hit_blocks = self.prefix_query_blocks = 0
        self.busy_s = 0.0

    # -- from outside -------------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    @property
    def load(self) -> int:
        """Requests here, running or waiting."""
        return len(self._running) + len(self._waiting)

    def submit(self, a: Attempt) -> Refusal | None:
        """Take an attempt now, or refuse it: too long for the context or the KV cache (400), queue full (`reject_status`)."""
        config = self.config
        longest = a.prompt + max(1, a.output) - 1
        if config.max_model_len is not None and a.prompt + a.output > config.max_model_len:
            return Refusal(400, "context_length_exceeded")
        if config.num_blocks is not None and self.kv.blocks_for(longest) > config.num_blocks - self._reserve:
            return Refusal(400, "kv_capacity_exceeded")
        if not config.chunked_prefill and longest > config.max_num_batched_tokens:
            return Refusal(400, "context_length_exceeded")
        if config.max_queued_requests is not None and len(self._waiting) >= config.max_queued_requests and not self._admits_at_once(a):
            return Refusal(config.reject_status, "engine_queue_full")
        now = self.agenda.now
        a.submitted_s = now
        alone = not self._waiting
        self._waiting.append(a)
        self.prompt_tokens += a.prompt
        if self._stepping:
            if alone and self._could_admit(a):
                self._cut(now)
        elif not self._start_pending:
            self._schedule_start(now)
        return None

    def cancel(self, attempt_id: str, dispatch: int) -> bool:
        """Waiting: gone now. Running: at the end of the current step. Unknown or finished: False."""
        a = self._running.get((attempt_id, dispatch))
        if a is not None:
            a.cancelled = self._cancels = True
            if self._stepping:
                self._cut(self.agenda.now)
            return True
        for a in self._waiting:
            if a.id == attempt_id and a.dispatch == dispatch:
                self._waiting.remove(a)
                self._on_cancelled(a)
                return True
        return False

    def drop_all(self, reason: str) -> list[Attempt]:
        """The replica is lost: everything here is dropped, in admission then queue order."""
        dropped = [*self._running.values(), *self._waiting]
        self._running.clear()
        self._waiting.clear()
        self._marks.clear()
        self._chunks.clear()
        self._partial = None
        self.b = self.K = 0
        self.kv.clear()
        self._version += 1
        self._stepping = self._start_pending = self._cancels = False
        return dropped

    def set_speed(self, factor: float) -> None:
        """Step seconds are multiplied by `factor` from the next step on."""
        check_number("factor", factor, above=0.0)
        self._speed = factor
        if self._stepping:
            self._cut(self.agenda.now)

    def state_at(self, t: float) -> EngineState:
        """Closed form for any t inside the current run (or now); changes nothing."""
        j = self._steps_done_by(t) if self._stepping else 0
        used = self.kv.used + self.kv.growth(self.D, j, self.b) if j and not self._chunks else self.kv.used
        total = self.kv.total
        return EngineState(len(self._running), len(self._waiting), None if total is None else used / total, self.output_tokens + j * self.b)

    # -- one boundary after the other ---------------------------------------------------------------------------------------------

    def _schedule_start(self, now: float) -> None:
        self._start_pending = True
        version = self._version
        self.agenda.at(now, STEP_START, lambda _: self._start() if version == self._version else None)

    def _start(self) -> None:
        """Compose the next step or run: continue the partial prefill, make room for the decodes, admit who fits."""
        self._start_pending = False
        if self._cancels:
            self._let_go()
        config, chunks = self.config, self._chunks
        chunks.clear()
        preempted = self._make_room()
        budget = config.max_num_batched_tokens - self.b
        partial = self._partial
        if partial is not None:
            q = min(partial.target - partial.computed, budget)
            chunks.append((partial, q))
            self._grow(partial, partial.computed + q)
            budget -= q
        if not preempted:
            budget = self._admit(budget)
        if not self._running:
            return
        self._launch()

    def _admit(self, budget: int) -> int:
        """From the head of the queue while sequences, tokens and blocks last; the first one that does not fit stops it."""
        config, waiting, running, kv = self.config, self._waiting, self._running, self.kv
        now = self.agenda.now
        while waiting and budget > 0 and len(running) < config.max_num_seqs and self._partial_fits_behind():
            a = waiting[0]
            target = a.target
            q = target if target <= budget else budget
            if q < target and not config.chunked_prefill:
                break
            if kv.total is not None:
                free = kv.total - kv.used - self._spoken_for() - self._reserve
                if kv.blocks_for(target if config.reserve_full_input else q) > free:
                    break
            waiting.popleft()
            self._orders += 1
            a.order = self._orders
            running[(a.id, a.dispatch)] = a
            if a.started_s is None:
                a.started_s = now
                if self._on_started is not None:
                    self._on_started(a)
            self._chunks.append((a, q))
            self._grow(a, q)
            budget -= q
            if q < target:
                self._partial = a
        return budget

    def _partial_fits_behind(self) -> bool:
        """Nobody is admitted behind a prefill that will not complete in this step."""
        if self._partial is None:
            return True
        last, q = self._chunks[-1]
        return last is not self._partial or last.computed + q == last.target

    def _spoken_for(self) -> int:
        """Blocks that the decodes of this very step take."""
        return self.kv.growth(self.D, 1, self.b)

    def _grow(self, a: Attempt, tokens: int) -> None:
        """Blocks for `tokens` computed tokens of a prefilling request."""
        held = self.kv.blocks_for(tokens)
        self.kv.used += held - a.held
        a.held = held

    def _make_room(self) -> bool:
        """Preempt the last admitted while this step's decodes and partial prefill need more blocks than are free."""
        kv = self.kv
        if kv.total is None:
            return False
        preempted = False
        while self._running:
            need = kv.growth(self.D, 1, self.b)
            partial = self._partial
            if partial is not None:
                q = min(partial.target - partial.computed, self.config.max_num_batched_tokens - self.b)
                need += kv.blocks_for(partial.computed + q) - partial.held
            if need <= kv.total - kv.used:
                break
            self._preempt(next(reversed(self._running.values())))
            preempted = True
        return preempted

    def _preempt(self, a: Attempt) -> None:
        """Recompute: blocks freed, back to the front of the queue; what it had generated is prefilled again, not emitted again."""
        self._leave(a)
        a.recomputed_tokens += a.computed
        a.computed = 0
        a.preemptions += 1
        self.preemptions += 1
        self._waiting.appendleft(a)

    def _leave(self, a: Attempt) -> None:
        """Out of the running set, its counters brought up to date and its blocks free."""
        del self._running[(a.id, a.dispatch)]
        if a.end_mark >= 0:
            a.generated = a.output - (a.end_mark - self.D)
            a.computed = a.base + self.D
            self.kv.leave(a.base)
            a.held = self.kv.blocks_for(a.computed)
            self.b -= 1
            self.K -= a.prompt + a.generated
            a.end_mark = -1
        elif a is self._partial:
            self._partial = None
        self.kv.used -= a.held
        a.held = 0

    def _let_go(self) -> None:
        """Cancelled requests leave at a boundary."""
        self._cancels = False
        for a in [a for a in self._running.values() if a.cancelled]:
            self._leave(a)
            self._on_cancelled(a)

    def _launch(self) -> None:
        """Start the run: as many equal steps as nothing can change in."""
        batch, chunks, now = self._batch, self._chunks, self.agenda.now
        b = self.b
        k = 1
        batch.decode_seqs, batch.decode_kv, batch.sequences = b, self.K, b + len(chunks)
        if chunks:
            batch.prefill = [(q, a.computed) for a, q in chunks]
            tokens = b
            sampled = b
            for a, q in chunks:
                tokens += q
                sampled += a.computed + q == a.target
            batch.tokens, batch.sampled = tokens, sampled
            if len(chunks) == 1 and not self._step_every:
                k = self._prefill_run_length(*chunks[0])
        else:
            batch.prefill = []
            batch.tokens = batch.sampled = b
            if not self._step_every:
                marks = self._marks
                while marks[0][2].end_mark != marks[0][0]:
                    heappop(marks)
                k = self.kv.affordable(self.D, marks[0][0] - self.D, b)
        A, B, k = self.model.run(batch, k)
        config = self.config
        A = (A + config.host_step_s + config.host_step_per_seq_s * batch.sequences) * self._speed
        if not (isfinite(A) and A > 0.0 and isfinite(B)):
            raise ModelStepTimeError(f"{type(self.model).__name__} gave {A!r} s for a step of {batch}")
        self._t0, self._A, self._B, self._k = now, A, B * self._speed, k
        self._stepping = True
        self._time_end()

    def _prefill_run_length(self, a: Attempt, q: int) -> int:
        """A long prompt takes the whole budget of every step, so nobody can be admitted before its last chunk."""
        rest = a.target - a.computed
        if q == rest or self.b + q < self.config.max_num_batched_tokens:
            return 1
        k = (rest - 1) // q  # full chunks before the last one
        if self.b:
            marks = self._marks
            while marks[0][2].end_mark != marks[0][0]:
                heappop(marks)
            k = min(k, marks[0][0] - self.D)
        kv = self.kv
        if kv.total is not None:
            free = kv.total - kv.used
            while k > 1 and kv.growth(self.D, k, self.b) + kv.blocks_for(a.computed + q * k) - a.held > free:
                k -= 1
        return max(1, k)

    def _time_end(self) -> None:
        self._version += 1
        version, k = self._version, self._k
        self.events += 1
        self.agenda.at(self._t0 + (k * self._A + self._B * (k * (k - 1) * 0.5)), COMPLETION,
                       lambda _: self._end_run() if version == self._version else None)

    def _span(self, k: int) -> float:
        return k * self._A + self._B * (k * (k - 1) * 0.5)

    # -- cutting a run ------------------------------------------------------------------------------------------------------------

    def _admits_at_once(self, a: Attempt) -> bool:
        """Would this request be admitted at the next boundary, without waiting behind anyone?"""
        return not self._waiting and self._could_admit(a)

    def _could_admit(self, a: Attempt) -> bool:
        config, kv = self.config, self.kv
        if len(self._running) >= config.max_num_seqs:
            return False
        if not self._stepping:
            return True
        if self._k > 1 and self._chunks:
            return False  # a long prefill takes every token of these steps
        if kv.total is None:
            return True
        j = min(self._k, self._steps_needed(self.agenda.now - self._t0))
        grown = kv.growth(self.D, j, self.b)
        need = kv.blocks_for(a.target if config.reserve_full_input else min(a.target, config.max_num_batched_tokens))
        return need <= kv.total - kv.used - grown - self._reserve or bool(self._chunks)

    def _steps_needed(self, gap: float) -> int:
        """Smallest j >= 1 with T(j) >= gap."""
        A, B = self._A, self._B
        if gap <= A:
            return 1
        if B:
            p = A - B * 0.5
            inside = p * p + 2.0 * B * gap
            j = int((sqrt(inside) - p) / B) if inside > 0.0 else 1
        else:
            j = int(gap / A)
        j = max(1, j)
        while self._span(j) < gap:
            j += 1
        while j > 1 and self._span(j - 1) >= gap:
            j -= 1
        return j

    def _steps_done_by(self, t: float) -> int:
        """Whole steps of the current run that have ended at t."""
        gap = t - self._t0
        if gap <= 0.0:
            return 0
        j = self._steps_needed(gap)
        return min(self._k, j if self._span(j) <= gap else j - 1)

    def _cut(self, now: float) -> None:
        """The run ends at the first boundary that is not before `now`."""
        if self._k > 1:
            j = self._steps_needed(now - self._t0)
            if j < self._k:
                self._k = j
                self._time_end()

    # -- the end of a run ---------------------------------------------------------------------------------------------------------

    def _end_run(self) -> None:
        """Carry k steps out at once: finishes in admission order, then first tokens, then the next boundary."""
        k, now, kv = self._k, self.agenda.now, self.kv
        chunks = self._chunks
        self._stepping = False
        self._version += 1
        self.steps += k
        self.busy_s += self._span(k)
        b = self.b
        if b:
            kv.used += kv.growth(self.D, k, b)
            self.K += b * k
            self.output_tokens += b * k
        self.D += k
        finished = self._finish_marks(now) if b else []
        firsts = self._finish_chunks(k, now, finished) if chunks else ()
        chunks.clear()
        if len(finished) > 1:
            finished.sort(key=_by_order)
        on_finish = self._on_finish
        if self._on_first is not None:
            for a in finished:
                if a.first_token_s == now:
                    self._on_first(a)
        for a in finished:
            on_finish(a)
        if self._on_first is not None:
            for a in firsts:
                self._on_first(a)
        if self._check:
            self._assert_conserved()
        if not self._start_pending and not self._stepping and (self._running or self._waiting):
            self._schedule_start(now)

    def _finish_marks(self, now: float) -> list[Attempt]:
        marks, D = self._marks, self.D
        finished = []
        while marks and marks[0][0] <= D:
            mark, _, a = heappop(marks)
            if a.end_mark != mark:
                continue
            self._leave(a)
            a.finished_s = now
            finished.append(a)
        return finished

    def _finish_chunks(self, k: int, now: float, finished: list[Attempt]) -> list[Attempt]:
        """Prefills move on by k chunks; a complete one yields its next token and joins the decodes (or is done)."""
        firsts = []
        for a, q in self._chunks:
            a.computed += q * k
            if k > 1:
                self._grow(a, a.computed)
            if a.computed < a.target:
                continue
            if a is self._partial:
                self._partial = None
            a.generated += 1
            self.output_tokens += 1
            if a.first_token_s is None:
                a.first_token_s = now
                firsts.append(a)
            if a.generated >= a.output:
                self._leave(a)
                a.finished_s = now
                finished.append(a)
                if firsts and firsts[-1] is a:
                    firsts.pop()
            else:
                self._join(a)
        return firsts

    def _join(self, a: Attempt) -> None:
        a.base = a.computed - self.D
        a.end_mark = self.D + a.output - a.generated
        self.b += 1
        self.K += a.prompt + a.generated
        self.kv.join(a.base)
        heappush(self._marks, (a.end_mark, a.order, a))

    def _assert_conserved(self) -> None:
        """Blocks and counters agree with a recount."""
        decoding = [a for a in self._running.values() if a.end_mark >= 0]
        held = sum(self.kv.blocks_for(a.base + self.D) for a in decoding) + sum(a.held for a in self._running.values() if a.end_mark < 0)
        assert self.kv.used == held, (self.name, self.kv.used, held)
        assert self.b == len(decoding), (self.name, self.b, len(decoding))
        assert sum(a.prompt + a.output - (a.end_mark - self.D) for a in decoding) == self.K, self.name
        assert self.kv.total is None or self.kv.used <= self.kv.total, (self.name, self.kv.used)


def _by_order(a: Attempt) -> Any:
    return a.order
