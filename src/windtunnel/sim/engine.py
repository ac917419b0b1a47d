"""One simulated engine: continuous batching with chunked prefill, KV blocks, preemption and prefix cache.

It costs per *change of batch*, not per token: between changes a run of k steps is closed form, `t0 + k·A + B·k(k-1)/2`, exact for every
step. An arrival that can be admitted cuts the run at the next step boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any

from windtunnel.errors import ModelStepTimeError
from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import COMPLETION, STEP_START, Agenda, Call
from windtunnel.sim.attempt import GONE, RUNNING, WAITING, Attempt, EngineState, Refusal
from windtunnel.sim.batching import sarathi, vllm
from windtunnel.sim.batching.members import Members
from windtunnel.sim.batching.progress import Progress
from windtunnel.sim.engine_config import EngineConfig, HostCosts
from windtunnel.sim.jump import first_boundary, span, steps_ended
from windtunnel.sim.stepmodels.model import Batch, StepModel

__all__ = ["Attempt", "EngineConfig", "EngineState", "HostCosts", "Refusal", "SimEngine"]

COMPOSE: dict[str, Callable[[Members], bool]] = {"vllm": vllm.compose, "sarathi": sarathi.compose}
_NEVER = -1.0
_NOTHING: list[Any] = []  # never filled


class SimEngine(Progress):
    """One replica's engine on an agenda. At most one live agenda entry; that of a run that was cut short finds another `_due`.

    on_finish, on_cancelled, on_first, on_started are called with the attempt, when the engine is consistent; they may submit and cancel.
    step_every: an event per step (for tests); check: assert conservation after every run; pieces: keep what token times are made from.
    """

    __slots__ = (
        "_A", "_B", "_agenda_queue", "_batch", "_check", "_compose", "_due", "_eid", "_host_seq_s", "_host_step_s", "_on_finish",
        "_on_first", "_run_end", "_slowed", "_speed", "_start_pending", "_step_every", "_t0", "busy_s", "events", "model", "prompt_tokens",
        "steps",
    )

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, *, on_finish: Callable[[Attempt], None],
                 on_cancelled: Callable[[Attempt], None], on_first: Callable[[Attempt], None] | None = None,
                 on_started: Callable[[Attempt], None] | None = None, step_every: bool = False, check: bool = False,
                 pieces: bool = False) -> None:
        super().__init__(name, config, agenda, on_cancelled, on_started, pieces=pieces)
        self.model, self._on_finish, self._on_first = model, on_finish, on_first
        self._step_every, self._check = step_every, check
        self._compose = COMPOSE[config.policy]
        self._host_step_s, self._host_seq_s = config.host.step_s, config.host.step_per_seq_s
        self._speed = 1.0
        self._slowed = bool(self._host_step_s or self._host_seq_s)
        self._run_end = Call(self._end)  # one object for all entries of this engine
        self._agenda_queue: list[Any] = agenda._queue
        self._eid = agenda._eid
        self._batch = Batch()
        self._t0 = self._A = self._B = 0.0
        self._due = _NEVER  # when the current run ends
        self._start_pending = False
        self.steps = self.events = self.prompt_tokens = 0
        self.busy_s = 0.0

    # -- from outside -------------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self._here

    @property
    def load(self) -> int:
        """Requests here, running or waiting."""
        return len(self._here)

    @property
    def sequence_steps(self) -> int:
        """Σ over steps of the requests in the batch; divided by `steps`, the mean batch."""
        return self.output_tokens - self._prefills + self._chunk_steps

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return self._waiting

    def submit(self, a: Attempt) -> Refusal | None:
        """Take an attempt now, or refuse it: too long for the context or the KV cache (400), queue full (`reject_status`)."""
        if a.prompt + a.output >= self._longest:
            refusal = self._refusal(a)
            if refusal is not None:
                return refusal
        if a.blocks is not None and self.cache is not None and len(a.blocks) < a.prompt // self._hash_tokens:
            self._wrong_hashes(a)
        now = a.submitted_s = self.agenda._now
        self._here[a.id, a.dispatch] = a
        self.prompt_tokens += a.prompt
        self._queue.append(a)
        self._waiting += 1
        if self._due != _NEVER:
            if self._k > 1 and self._waiting == 1:
                self._cut_for(a, now)
        elif not self._start_pending:
            self._start_pending = True
            self.agenda.at(now, STEP_START, self._start)
        return None

    def cancel(self, attempt_id: str, dispatch: int) -> bool:
        """Waiting: gone now. Running: at the end of the current step. Unknown or finished: False."""
        a = self._here.get((attempt_id, dispatch))
        if a is None:
            return False
        if a.state == RUNNING:
            if not a.cancelled:
                a.cancelled = True
                self._cancels.append(a)
                self._cut(self.agenda._now)
            return True
        first = self._head() is a
        a.state = GONE
        del self._here[attempt_id, dispatch]
        self._waiting -= 1
        self._waiting_tokens -= a.held
        if first and self._waiting and self._due != _NEVER and self._k > 1:
            self._cut_for(self._head(), self.agenda._now)
        self._on_cancelled(a)
        return True

    def drop_all(self, reason: str) -> list[Attempt]:
        """The replica is lost (`reason` is for the caller's record): everything here is dropped, in admission then queue order."""
        if self._due != _NEVER:
            self._due = _NEVER
            self._lose(steps_ended(self._t0, self._A, self._B, self.agenda._now, self._k))
        running = list(self._running.values())
        for a in running:
            if a.end_mark >= 0:
                a.generated = a.output - (a.end_mark - self.D)
        waiting = [a for a in (*reversed(self._returned), *self._queue) if a.state == WAITING]
        for store in (self._here, self._running, self._marks, self._queue, self._returned, self._chunks, self._cancels, self._started):
            store.clear()
        self.partial = None
        self._waiting = self._waiting_tokens = 0
        self._start_pending = False
        self.kv.clear()
        if self.cache is not None:
            self.cache.clear()
        return running + waiting

    def _lose(self, k: int) -> None:
        """Count the k steps of the current run that had ended; the one under way is lost."""
        if self.pieces is not None:
            self.pieces.add(self.D, k, self.kv.n, self._t0, self._A, self._B)
        self.D += k
        self.steps += k
        self.output_tokens += k * self.kv.n
        self.busy_s += self.agenda._now - self._t0

    def set_speed(self, factor: float) -> None:
        """Step seconds are multiplied by `factor` from the next step on."""
        check_number("factor", factor, above=0.0)
        self._speed, self._slowed = factor, True
        self._cut(self.agenda._now)

    def state_at(self, t: float) -> EngineState:
        """Closed form for any t inside the current run (or now); changes nothing."""
        kv, D, used = self.kv, self.D, 0
        ended = 0
        if self._due != _NEVER:
            ended = steps_ended(self._t0, self._A, self._B, t, self._k)
        if kv.total is not None:
            scheduled = min(ended + 1, self._k) if self._due != _NEVER else 0
            used = kv.used(D + scheduled)
            for a, q in self._chunks if scheduled > 1 else ():
                used += kv.blocks_for(a.computed + q * scheduled) - kv.blocks_for(a.computed + q)
        fraction = None if kv.total is None else used / kv.total
        return EngineState(len(self._running), self._waiting, fraction, self.output_tokens + ended * kv.n)

    def progress_at(self, t: float) -> tuple[tuple[str, int], ...]:
        """(request id, output tokens) of the running requests at any t inside the current run (or now); O(running), changes nothing."""
        D = self.D + (steps_ended(self._t0, self._A, self._B, t, self._k) if self._due != _NEVER else 0)
        return tuple((a.id, a.output - (a.end_mark - D) if a.end_mark >= 0 else a.generated) for a in self._running.values())

    # -- one run after the other ----------------------------------------------------------------------------------------------------

    def _start(self, _: object = None) -> None:
        """Compose the next step and launch as many like it as nothing can change in."""
        if not self._start_pending:
            return
        self._start_pending = False
        if self._cancels:
            self._let_go()
        kv = self.kv
        once = self._step_every
        if (self._waiting or self.partial is not None) and self._compose(self):
            once = True  # somebody lost its blocks: at the next boundary it may be admitted again
        batch = self._batch
        if self._chunks:
            k = 1 if once or self.partial is None else self._chunk_run()
            b = kv.n
            self._fill(batch, b)
        elif kv.n:
            marks = self._marks
            while marks[0][2].end_mark != marks[0][0]:
                heappop(marks)
            k = 1 if once else marks[0][0] - self.D
            if kv.total is not None and kv.base_sum + kv.n * (self.D + k + kv.size) > (kv.total - kv.fixed) * kv.size:
                k = kv.affordable(self.D, k)
                if not k:
                    self._compose(self)  # somebody loses its blocks
                    k = 1
            b = kv.n
            if self._chunks:
                self._fill(batch, b)
            else:
                batch.tokens = batch.sampled = batch.sequences = b
                batch.prefill = _NOTHING
        else:
            return
        batch.decode_seqs = b
        batch.decode_kv = kv.base_sum + b * (self.D + 1)
        A, B, k = self.model.run(batch, k)
        if self._slowed:
            A = (A + self._host_step_s + self._host_seq_s * batch.sequences) * self._speed
            B *= self._speed
        if not (0.0 < A < inf and 0.0 < A + B * (k - 1) < inf):
            raise ModelStepTimeError(f"{type(self.model).__name__} gave {A!r} + {B!r}·j s for {k} steps of {batch}")
        self._t0 = now = self.agenda._now
        self._A, self._B, self._k = A, B, k
        self.events += 1
        self._due = due = now + (k * A + B * (k * (k - 1) * 0.5))
        heappush(self._agenda_queue, (due, COMPLETION, next(self._eid), self._run_end))
        if self._started:
            self._tell_started()

    def _fill(self, batch: Batch, b: int) -> None:
        """Describe a step with prefill."""
        tokens = sampled = b
        batch.prefill = prefill = []
        for a, q in self._chunks:
            prefill.append((q, a.computed))
            tokens += q
            if a.computed + q == a.target:
                sampled += 1
        batch.tokens, batch.sampled, batch.sequences = tokens, sampled, b + len(prefill)

    def _tell_started(self) -> None:
        started, self._started = self._started, []
        for a in started:
            self._on_started(a)  # type: ignore[misc]

    def _chunk_run(self) -> int:
        """Steps of a long prompt that takes the whole budget of each: nobody can be admitted before its last chunk."""
        a, q = self._chunks[0]
        kv = self.kv
        k = (a.target - a.computed - 1) // q
        if len(self._chunks) > 1 or k < 2 or kv.n + q < self.budget:
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

    def _cut_for(self, a: Attempt, now: float) -> None:
        """End the run at the next boundary if the first in line could be admitted there. Blocks only get fewer while the run lasts."""
        kv = self.kv
        if self._chunks or len(self._running) >= self._max_seqs or kv.n >= self.budget:
            return
        j = first_boundary(self._t0, self._A, self._B, now)
        if j >= self._k:
            return
        if not self.config.chunked_prefill and a.target - self._hits(a) * self._hash_tokens > self.budget - kv.n:
            return
        D = self.D + j + 1  # blocks that the step after the boundary takes for those who run come first
        if kv.surely_fits(D, -(-a.target // kv.size) + self._reserve) or self._has_room(a, D, self._hits(a), self.budget - kv.n):
            self._shorten(j)

    def _cut(self, now: float) -> None:
        """End the run at the first boundary that is not before `now`."""
        if self._due != _NEVER and self._k > 1:
            j = first_boundary(self._t0, self._A, self._B, now)
            if j < self._k:
                self._shorten(j)

    def _shorten(self, k: int) -> None:
        self._k = k
        self.events += 1
        self._due = due = self._t0 + span(self._A, self._B, k)
        heappush(self._agenda_queue, (due, COMPLETION, next(self._eid), self._run_end))

    # -- the end of a run ---------------------------------------------------------------------------------------------------------

    def _end(self, _: object) -> None:
        """Carry k steps out at once: finishes in admission order, then first tokens, then the next step."""
        agenda = self.agenda
        now = agenda._now
        if now != self._due:
            return  # a run that was cut short
        self._due = _NEVER
        self._start_pending = True  # what the callbacks submit finds the start coming
        k = self._k
        if self.pieces is not None:
            self.pieces.add(self.D, k, self.kv.n, self._t0, self._A, self._B)
        self.D += k
        self.steps += k
        self.output_tokens += k * self.kv.n
        self.busy_s += now - self._t0
        if k > 1 and self._chunks:
            a, q = self._chunks[0]
            self._grow(a, a.computed + q * k)
        marks = self._marks
        if marks and marks[0][0] <= self.D:
            finished = self._finish_marks(now)
            firsts = self._finish_chunks(now, finished) if self._chunks else _NOTHING
            if self._on_first is not None:
                self._tell(finished, firsts, now)
            else:
                for a in finished:
                    self._on_finish(a)
        elif self._chunks:
            finished = []
            firsts = self._finish_chunks(now, finished)
            if finished or self._on_first is not None:
                self._tell(finished, firsts, now)
        if self._cancels:
            self._let_go()
        if self._check:
            self._assert_conserved()
        if not self._here:
            self._start_pending = False
        elif self._agenda_queue and self._agenda_queue[0][0] <= now:
            agenda.at(now, STEP_START, self._start)  # others happen at this very time, and may submit
        else:
            self._start()

    def _tell(self, finished: list[Attempt], firsts: list[Attempt], now: float) -> None:
        on_finish, on_first = self._on_finish, self._on_first
        for a in finished:
            if on_first is not None and a.first_token_s == now:
                on_first(a)
            on_finish(a)
        if on_first is not None:
            for a in firsts:
                on_first(a)
