"""One simulated engine: continuous batching, KV blocks, preemption, prefix cache, speculation, split prefill and decode.

It costs per *change of batch*, not per token: between changes a run of k steps is closed form, `t0 + k·A + B·k(k-1)/2`, exact for every
step. An arrival that can be admitted cuts the run at the next step boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from windtunnel.errors import ConfigValueError, EngineBusyError
from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import COMPLETION, STEP_START, Agenda
from windtunnel.sim.attempt import GONE, INBOUND, MOVING, RUNNING, SWAPPED, WAITING, Attempt, Callbacks, EngineState, Refusal
from windtunnel.sim.batching.egress import later
from windtunnel.sim.batching.fittings import Fittings
from windtunnel.sim.batching.intake import longest_unseen
from windtunnel.sim.batching.reports import ForwardPass, Reports
from windtunnel.sim.batching.runs import NEVER, Runs
from windtunnel.sim.engine_config import EngineConfig, HostCosts
from windtunnel.sim.jump import span, steps_ended
from windtunnel.sim.specdecode import SpecDecode
from windtunnel.sim.stepmodels.model import StepModel

__all__ = ["Attempt", "EngineConfig", "EngineState", "ForwardPass", "HostCosts", "Refusal", "SimEngine", "SpecDecode"]


class SimEngine(Runs):
    """One replica's engine on an agenda.

    told: its `Callbacks`. on_prefilled: of a prefill engine, see `HandOver`. on_report: a `ForwardPass` at most each `fpm_interval_s` (0.1).
    rng: a NumPy generator, for noise and sampled speculation. step_every: an event per step (for tests); check: assert conservation after
    every run; pieces: keep what token times are made from.
    """

    __slots__ = ("prompt_tokens",)

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, *,
                 on_prefilled: Callable[[Attempt], None] | None = None, on_report: Callable[[ForwardPass], None] | None = None,
                 fpm_interval_s: float | None = None, rng: Any = None, step_every: bool = False, check: bool = False, pieces: bool = False,
                 **told: Any) -> None:
        if rng is None and config.draws:
            raise ConfigValueError("rng", "noise and sampled speculation need a generator")
        callbacks: Callbacks = {"on_finish": told.pop("on_finish"), "on_cancelled": told.pop("on_cancelled"), **told}  # type: ignore[typeddict-item]
        egress_s = config.host.egress_s
        if egress_s:
            callbacks["on_finish"] = later(agenda, egress_s, callbacks["on_finish"], times=True)
            if (on_first := callbacks.get("on_first")) is not None:
                callbacks["on_first"] = later(agenda, egress_s, on_first, times=False)
        reports = None if on_report is None else Reports(on_report, 0.1 if fpm_interval_s is None else fpm_interval_s)
        super().__init__(name, config, model, agenda, callbacks, Fittings(on_prefilled, rng, reports, step_every, check, pieces))
        self.prompt_tokens = 0
        if self._reports is not None:
            self._reports.idle(self)

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
        return self._decode_steps + self._chunk_steps

    @property
    def evictions(self) -> int:
        """Cached prefix blocks that had to make room."""
        return 0 if self.cache is None else self.cache.evictions

    @property
    def per_step_share(self) -> float:
        """Share of the steps that had to be taken one by one, because the model or sampled drafts allow no runs."""
        return self.per_step_steps / self.steps if self.steps else 0.0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in line: for the batch, or for room for KV that is to come."""
        return self._waiting + len(self._kv_wait)

    def parts(self) -> Iterator[SimEngine]:
        """The step loops of this replica: this one."""
        yield self

    def part_of(self, a: Attempt) -> SimEngine | None:
        """The step loop that an attempt is in."""
        return self

    # -- requests -------------------------------------------------------------------------------------------------------------------

    def submit(self, a: Attempt) -> Refusal | None:
        """Take an attempt now, or refuse it: too long for the context or the KV cache (400), queue full (`reject_status`), asleep (503)."""
        if not (a.prompt > 0 <= a.output and a.prompt + a.output < self._longest):
            return self._submit_slowly(a)
        self._enqueue(a)
        return None

    def _enqueue(self, a: Attempt) -> None:
        if a.blocks is not None and self.cache is not None and len(a.blocks) < a.prompt // self._hash_tokens:
            self._wrong_hashes(a)
        now = a.submitted_s = self.agenda._now
        self._here[a.id, a.dispatch] = a
        self.prompt_tokens += a.prompt
        self._queue.append(a)
        self._waiting += 1
        if self._due != NEVER:
            if self._k > 1 and (self._waiting == 1 or self._queue[0] is a) and self._head() is a:
                self._cut_for(a, now)
        elif not self._start_pending:
            self._start_pending = True
            self.agenda.at(now, STEP_START, self._start)

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
        if a.state == MOVING:
            a.cancelled = True  # it goes when its KV arrives, or is taken back by who moves it
            return True
        if a.state == INBOUND:
            self._inbound -= 1
            self._waiting_tokens -= a.held
            first = False
        else:
            first = self._head() is a
            self._out_of_line(a)
        a.state = GONE
        del self._here[attempt_id, dispatch]
        if first and self._waiting:
            if self._due == NEVER:
                self._wake_up()  # it may have waited for its own transfer only
            elif self._k > 1:
                self._cut_for(self._head(), self.agenda._now)
        self._on_cancelled(a)
        return True

    def drop_all(self, reason: str) -> list[Attempt]:
        """The replica is lost (`reason` is for the caller's record): everything here is dropped, in admission then queue order."""
        if self._due != NEVER:
            self._due = NEVER
            self._lose(steps_ended(self._t0, self._A, self._B, self.agenda._now, self._k))
        running = list(self._running.values())
        for a in running:
            if a.end_mark >= 0:
                before, a.generated = a.generated, self._generated(a, self.D)
                self._left_decoding(a, before)
        waiting = [a for a in (*reversed(self._returned), *self._queue) if a.state in (WAITING, SWAPPED)]
        listed = {id(a) for a in (*running, *waiting)}
        others = [a for a in self._here.values() if id(a) not in listed]
        for a in (*running, *waiting, *others):
            a.state = GONE
        for store in (self._here, self._running, self._marks, self._queue, self._returned, self._chunks, self._cancels, self._started,
                      self._arrived, self._kv_wait, self._prefilled):
            store.clear()
        self.partial = None
        self._waiting = self._waiting_tokens = self._inbound = self._host_blocks = self._ghosts = 0
        self._max_seqs = self.config.max_num_seqs
        self._start_pending = self._alone = False
        self.kv.clear()
        if self.cache is not None:
            self.cache.clear()
        return running + waiting + others

    def _lose(self, k: int) -> None:
        """Count the k steps of the current run that had ended; the one under way is lost."""
        self.steps += k
        self.busy_s += self.agenda._now - self._t0
        if self._chunks:
            self.prefill_s += self.agenda._now - self._t0
        if self._alone or not k:
            return
        if self.pieces is not None:
            self.pieces.add(self.D, k, self.kv.n, self._t0, self._A, self._B)
        self.D += k
        self._decode_steps += k * self.kv.n

    # -- the replica ----------------------------------------------------------------------------------------------------------------

    def set_speed(self, factor: float) -> None:
        """Step seconds are multiplied by `factor` from the next step on."""
        check_number("factor", factor, above=0.0)
        self._speed, self._plain = factor, False
        self._cut(self.agenda._now)

    def pause(self) -> None:
        """No step starts after the current one, until `resume`. Requests are still taken."""
        self._paused, self._prepared = True, False
        self._cut(self.agenda._now)

    def resume(self) -> None:
        """Steps start again, now."""
        if self._paused and self._due == NEVER:
            if self.pieces is not None and self.kv.n:
                stopped_s = self._t0 + span(self._A, self._B, self._k)
                self.pieces.stand_still(self.D, self.kv.n, stopped_s, self.agenda._now - stopped_s)
            if self._here:
                self._wake_up()
        self._paused = False

    def sleep(self, level: int = 1) -> None:
        """Level 1 keeps the weights in host memory, 2 drops them; the prefix cache is lost on both. EngineBusyError unless idle."""
        if level not in (1, 2):
            raise ConfigValueError("level", f"expected 1 or 2, got {level!r}")
        if self._here:
            raise EngineBusyError(f"{self.name} has {len(self._here)} requests: only an idle engine can sleep")
        self.asleep, self._longest = level, -1
        if self.cache is not None:
            self.cache.clear()

    def wake(self, then: Callable[[], None] | None = None) -> float:
        """Awake after the seconds returned (0 if it was not asleep), when `then()` is called. Asleep it refuses everything with 503."""
        if not self.asleep:
            return 0.0
        seconds = float(self.config.wake_s[self.asleep - 1])

        def awake(_: object) -> None:
            self.asleep, self._longest = 0, longest_unseen(self.config)
            if then is not None:
                then()

        self.agenda.at(self.agenda._now + seconds, COMPLETION, awake)
        return seconds

    # -- looking --------------------------------------------------------------------------------------------------------------------

    def _steps_begun(self) -> int:
        if self._due == NEVER or self._alone:
            return 0
        return min(self._k, steps_ended(self._t0, self._A, self._B, self.agenda._now, self._k) + 1)

    def state_at(self, t: float) -> EngineState:
        """Closed form for any t inside the current run (or now); changes nothing."""
        kv, D, used = self.kv, self.D, 0
        ended = scheduled = 0
        if self._due != NEVER and not self._alone:
            ended = steps_ended(self._t0, self._A, self._B, t, self._k)
            scheduled = min(ended + 1, self._k)
        if kv.total is not None:
            used = kv.used(D + scheduled)
            for a, q in self._chunks if scheduled > 1 else ():
                used += kv.blocks_for(a.computed + q * scheduled) - kv.blocks_for(a.computed + q)
        fraction = None if kv.total is None else used / kv.total
        generated = self.output_tokens + ended * kv.n
        if self._g is not None and ended:
            generated += self._extra_now(D + ended) - self._extra_now(D)
        return EngineState(len(self._running), self.waiting, fraction, generated)

    def steps_at(self, t: float) -> int:
        """Steps in which decodes got on, that had ended at any t inside the current run (or now)."""
        return self.D if self._due == NEVER or self._alone else self.D + steps_ended(self._t0, self._A, self._B, t, self._k)

    def time_after(self, steps: int) -> float | None:
        """When so many more steps of the current run will have ended, or all of it if that is sooner; None: no run is under way."""
        if self._due == NEVER:
            return None
        return self._t0 + span(self._A, self._B, min(self._k, self.steps_at(self.agenda._now) - self.D + steps))

    def progress_at(self, t: float) -> tuple[tuple[str, int], ...]:
        """(request id, output tokens) of the running requests at any t inside the current run (or now); O(running), changes nothing."""
        ended = steps_ended(self._t0, self._A, self._B, t, self._k) if self._due != NEVER and not self._alone else 0
        D = self.D + ended
        return tuple((a.id, self._generated(a, D) if a.end_mark >= 0 else a.generated) for a in self._running.values())
