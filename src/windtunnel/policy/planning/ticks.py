"""Ticks on a grid: one runs at a time, is answered here or by the driver, and those that were passed over are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from windtunnel.effects import NOTHING, Ask, Effect, WakeAt
from windtunnel.events import Answered, Woke
from windtunnel.policy.planning.cadence import pull
from windtunnel.policy.planning.calls import Answer, Answers, Gather
from windtunnel.policy.planning.contract import ObservationData, PipelineContext, WorkerState
from windtunnel.policy.planning.decision import Decision
from windtunnel.policy.planning.demand import grid_index
from windtunnel.policy.planning.pipeline import answer_inline
from windtunnel.policy.planning.plain import answer_of

KEY, DEADLINE = "planner", "planner.deadline"


class Ticks(Decision):
    """The clock of a planner and the tick that runs."""

    def _woke(self, event: Woke, now: float) -> Sequence[Effect]:
        """A tick at the newest grid time; ticks that were passed over are counted, not caught up."""
        if event.key == DEADLINE:
            return self._deadline(now)
        if event.key != KEY:
            return NOTHING
        k = grid_index(now, self._t0, self.scale_s)
        wake = WakeAt(self._t0 + (k + 1) * self.scale_s, KEY)
        if k <= self._last_k:
            return [wake]
        passed = k - self._last_k - 1 + (self._running is not None)
        if passed:
            self.missed += passed
            self.journal.counts[("ticks_missed_total",)] = self.missed
            self.journal.add("tick_missed", count=passed, first_at=self._t0 + (self._last_k + 1) * self.scale_s)
        self._last_k = k
        return [wake] if self._running is not None else [*self._tick(now, self._t0 + k * self.scale_s), wake]

    def _tick(self, now: float, tick_at: float) -> Sequence[Effect]:
        journal = self.journal
        self.ticks += 1
        journal.tick = self.ticks
        if journal.on:
            journal.add("tick_started", tick_at=tick_at, lag_s=now - tick_at)
        for entry in self.roster.sweep(now):
            self.plugins.pop(entry.plugin_id, None)
            journal.count("evictions_total")
            journal.add("evicted", entry.plugin_id, silent_s=now - entry.last_heartbeat)
        self._meter(now)
        self._look_after_pools(now)
        wanted = pull(self.roster.snapshot(), tick_at, self.scale_s)
        if journal.on:
            journal.add("pulled", traffic=wanted.traffic, fpm=wanted.fpm, windows=list(wanted.windows))
        seen = self.observer.observe(tick_at, wanted, {c: p.ready for c, p in self.pools.items()})
        workers = WorkerState({c: p.state() for c, p in self.pools.items()})
        observed = self._observed = ObservationData(next(iter(seen.windows.values()), None), seen.fpm, workers)
        baseline = {c: p.baseline for c, p in self.pools.items()}
        ctx = PipelineContext(f"tick-{self.ticks}", f"decision-{self.ticks}", observed)
        ticking = self.pipeline.tick(ctx, baseline, tick_at=tick_at, now=now, windows=seen.windows)
        self._running = (ticking, tick_at, baseline, self.generation)
        try:
            return self._ask(next(ticking), now)
        except StopIteration as done:
            return self._finish(done.value, now)

    def _ask(self, gather: Gather, now: float) -> Sequence[Effect]:
        """Answer what can be answered here; ask the driver for the rest. Raises StopIteration when the tick is over."""
        assert self._running is not None
        ticking = self._running[0]
        while True:
            inline = {call.plugin_id: answer_inline(call) for call in gather.calls if call.transport == "inline"}
            if len(inline) < len(gather.calls):
                self._open = (gather, inline)
                remote = tuple(call for call in gather.calls if call.transport != "inline")
                return [Ask(gather.gather_id, remote, gather.deadline_at), WakeAt(gather.deadline_at, DEADLINE)]
            gather = ticking.send(Answers(gather.gather_id, tuple(inline.values()), now))

    def _answered(self, event: Answered, now: float) -> Sequence[Effect]:
        """Answers to another gather than the open one are stale."""
        if self._open is None or self._open[0].gather_id != event.gather_id:
            return NOTHING
        items = [item if isinstance(item, Answer) else answer_of(item) for item in event.items]
        return self._resume({item.plugin_id: item for item in items}, now)

    def _deadline(self, now: float) -> Sequence[Effect]:
        if self._open is None:
            return NOTHING
        deadline_at = self._open[0].deadline_at
        return [WakeAt(deadline_at, DEADLINE)] if now < deadline_at else self._resume({}, now)

    def _resume(self, answers: Mapping[str, Answer], now: float) -> Sequence[Effect]:
        assert self._open is not None and self._running is not None
        (gather, inline), self._open = self._open, None
        got = {**answers, **inline}
        items = tuple(got[call.plugin_id] for call in gather.calls if call.plugin_id in got)
        try:
            return self._ask(self._running[0].send(Answers(gather.gather_id, items, now)), now)
        except StopIteration as done:
            return self._finish(done.value, now)
