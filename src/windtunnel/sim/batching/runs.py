"""One run of equal steps after the other: composed, timed, cut short by what happens, carried out at once."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any

from windtunnel.errors import ModelStepTimeError
from windtunnel.sim.agenda import COMPLETION, STEP_START, Agenda, Call
from windtunnel.sim.attempt import Attempt, Callbacks
from windtunnel.sim.batching import prefill_first, sarathi, static, vllm
from windtunnel.sim.batching.conserved import assert_conserved
from windtunnel.sim.batching.fittings import Fittings
from windtunnel.sim.batching.members import NO_LIMIT
from windtunnel.sim.batching.timing import Timing
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.jump import first_boundary, span
from windtunnel.sim.stepmodels.model import Batch, StepModel

COMPOSE: dict[str, Callable[[Any], bool]] = {
    "vllm": vllm.compose, "sarathi": sarathi.compose, "prefill_first": prefill_first.compose, "static": static.compose, "slots": vllm.compose}
JOINS_AFTER: dict[str, Callable[[Any, Attempt, int], int]] = {"prefill_first": prefill_first.joins_after, "static": static.joins_after}
NEVER = -1.0
_NOTHING: list[Any] = []  # never filled


class Runs(Timing):
    """The step loop. At most one live agenda entry; that of a run that was cut short finds another `_due`."""

    __slots__ = (
        "_A", "_B", "_admitted_D", "_agenda_queue", "_check", "_compose", "_due", "_eid", "_joins_after", "_run_end",
        "_start_pending", "_step_every", "_t0", "busy_s", "events", "prefill_s", "steps",
    )

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, told: Callbacks, fittings: Fittings) -> None:
        super().__init__(name, config, model, agenda, told, fittings)
        self._step_every, self._check = fittings.step_every or self._sampled, fittings.check
        self._compose, self._joins_after = COMPOSE[config.policy], JOINS_AFTER.get(config.policy, vllm.joins_after)
        self._run_end = Call(self._end)  # one object for all entries of this engine
        self._agenda_queue: list[Any] = agenda._queue
        self._eid = agenda._eid
        self._t0 = self._A = self._B = 0.0
        self._due = NEVER  # when the current run ends
        self._start_pending = False
        self._admitted_D = -NO_LIMIT
        self.steps = self.events = 0
        self.busy_s = self.prefill_s = 0.0  # seconds of steps; of those that carried prompt tokens

    def _start(self, _: object = None) -> None:
        """Compose the next step and launch as many like it as nothing can change in. One piece and in place: every run passes here.

        k: steps of the run, as many as are alike; b: decodes in each; A + B·j: seconds of step j, answered for `lasts` of them.
        """
        if not self._start_pending:
            return
        self._start_pending = False
        if not self._prepared and not self._prepare():
            return
        if self._cancels:
            self._let_go()
        kv, chunks = self.kv, self._chunks
        once = self._step_every
        if (self._waiting or self.partial is not None) and self._compose(self):
            once = True  # somebody lost its blocks: at the next boundary it may be admitted again
        batch = self._batch
        if chunks:  # a step with prefills stands alone, unless a long prompt fills it and those after it
            k = 1 if once or self.partial is None else self._chunk_run()
            b = 0 if self._alone else kv.n
            self._fill(batch, b)
        elif kv.n:  # decodes alone: alike until the first of them ends, or the free blocks do
            marks = self._marks
            first = marks[0]
            while first[2].end_mark != first[0]:
                heappop(marks)
                first = marks[0]
            k = 1 if once else first[0] - self.D
            if kv.total is not None and (kv.stretched or kv.base_sum + kv.n * (self.D + k + kv.size) > (kv.total - kv.fixed) * kv.size):
                k = kv.affordable(self.D, k)
                if not k:
                    self._compose(self)  # somebody loses its blocks, and somebody else may come in
                    k = 1
            b = kv.n
            if chunks:
                self._fill(batch, b)
            elif not b:
                self._again()
                return
            else:
                batch.tokens = batch.sampled = batch.sequences = b
                batch.prefill = _NOTHING
        else:
            if self._emptied:
                self._again()
            return
        batch.decode_seqs = b
        if self._plain:
            batch.decode_kv = kv.base_sum + b * (self.D + 1) if b else 0  # type: ignore[assignment]
            model: Any = self.model  # its answer is judged here, not by the declared type
            law = model.run(batch, k)
            A, B, lasts = law[0], law[1], int(law[2])
        else:
            A, B, lasts = self._time(batch, k)
        if lasts != k:
            if self._plain:
                self.per_step_steps += lasts == 1
            if not 0 < lasts < k:
                raise ModelStepTimeError(f"{type(self.model).__name__} answered for {lasts} steps of the {k} asked for")
            k = lasts
        self._t0 = now = self.agenda._now
        self._A, self._B, self._k = A, B, k
        self.events += 1
        self._due = due = now + (k * A + B * (k * (k - 1) * 0.5))
        if not (A > 0.0 <= B and due < inf) and not (0.0 < A < inf and 0.0 < A + B * (k - 1) < inf):
            raise ModelStepTimeError(f"{type(self.model).__name__} gave {A!r} + {B!r}·j s for {k} steps of {batch}")
        heappush(self._agenda_queue, (due, COMPLETION, next(self._eid), self._run_end))
        if self._started:
            self._tell_started()

    def _again(self) -> None:
        """All were preempted, for KV that is on its way here has its blocks: compose once more, somebody else may go on."""
        self._emptied, self._start_pending = False, True
        self.agenda.at(self.agenda._now, STEP_START, self._start)

    def _fill(self, batch: Batch, b: int) -> None:
        """A step with prefills."""
        chunks = self._chunks
        if len(chunks) == 1:
            a, q = chunks[0]
            batch.prefill = [(q, a.computed)]
            batch.tokens, batch.sequences = b + q, b + 1
            batch.sampled = b + 1 if a.computed + q >= a.target else b
            return
        tokens = sampled = b
        batch.prefill = prefill = []
        for a, q in chunks:
            prefill.append((q, a.computed))
            tokens += q
            sampled += a.computed + q >= a.target
        batch.tokens, batch.sampled, batch.sequences = tokens, sampled, b + len(prefill)

    def _tell_started(self) -> None:
        started, self._started = self._started, []
        for a in started:
            self._on_started(a)  # type: ignore[misc]

    # -- cuts ---------------------------------------------------------------------------------------------------------------------

    def _cut_for(self, a: Attempt, now: float) -> None:
        """End the run at the next boundary at which the first in line could be admitted."""
        j = first_boundary(self._t0, self._A, self._B, now)
        if j < self._k:
            j = self._joins_after(self, a, j)
            if 0 < j < self._k:
                self._shorten(j)

    def _cut(self, now: float) -> None:
        """End the run at the first boundary that is not before `now`."""
        if self._due != NEVER and self._k > 1:
            j = first_boundary(self._t0, self._A, self._B, now)
            if j < self._k:
                self._shorten(j)

    def _shorten(self, k: int) -> None:
        self._k = k
        self.events += 1
        self._due = due = self._t0 + span(self._A, self._B, k)
        heappush(self._agenda_queue, (due, COMPLETION, next(self._eid), self._run_end))

    def _disturb(self) -> None:
        if self._due != NEVER:
            self._cut(self.agenda._now)
        else:
            self._wake_up()

    def _wake_up(self, _: object = None) -> None:
        """Start a step at this time if none runs."""
        if self._due == NEVER and not self._start_pending:
            self._start_pending = True
            self.agenda.at(self.agenda._now, STEP_START, self._start)

    # -- the end of a run ---------------------------------------------------------------------------------------------------------

    def _end(self, _: object) -> None:
        """Carry k steps out at once: finishes in admission order, then first tokens, then the next step."""
        agenda = self.agenda
        now = agenda._now
        if now != self._due:
            return  # a run that was cut short
        self._due = NEVER
        self._start_pending = True  # what the callbacks submit finds the start coming
        k, chunks = self._k, self._chunks
        self.steps += k
        self.busy_s += now - self._t0
        if chunks:
            self.prefill_s += now - self._t0
        if self._alone:
            self._alone = False
            if self.pieces is not None:
                self.pieces.stand_still(self.D, self.kv.n, self._t0, self._A)
        else:
            if self.pieces is not None:
                self.pieces.add(self.D, k, self.kv.n, self._t0, self._A, self._B)
            self.D += k
            self._decode_steps += k * self.kv.n
            if self._sampled:
                self._accept(self._rng.random, now)
        if k > 1 and chunks:
            a, q = chunks[0]
            self._grow(a, a.computed + q * k)
        marks = self._marks
        if marks and marks[0][0] <= self.D:
            finished = self._finish_marks(now)
            firsts = self._finish_chunks(now, finished) if chunks else _NOTHING
            if self._on_first is not None:
                self._tell(finished, firsts, now)
            else:
                for a in finished:
                    self._on_finish(a)
        elif chunks:
            finished = []
            firsts = self._finish_chunks(now, finished)
            if finished or self._on_first is not None:
                self._tell(finished, firsts, now)
        if self._split:
            self._tell_prefilled()
        if self._cancels:
            self._let_go()
        if self._reports is not None:
            self._reports.ended(self, now, k, self._B)
        if self._check:
            assert_conserved(self)
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
