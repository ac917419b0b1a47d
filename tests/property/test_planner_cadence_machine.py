"""Ticks under random lateness, stalls, failures and registrations: nobody is called too often, no slot is lost or burnt."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from windtunnel.policy.planning.audit import Journal
from windtunnel.policy.planning.breaker import Circuit
from windtunnel.policy.planning.calls import Answer, Answers, CallError
from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    HoldPolicy,
    Override,
    OverrideType,
    PipelineContext,
    Reject,
    Stage,
    StageResponse,
)
from windtunnel.policy.planning.pipeline import Pipeline
from windtunnel.policy.planning.plugin import Registration
from windtunnel.policy.planning.roster import Roster, RosterSettings
from windtunnel.policy.planning.tick_outcome import TickOutcome

SCALE, TICK_MAX = 5.0, 30.0
SAID = {
    "accept": StageResponse(Accept()), "reject": StageResponse(Reject("no")), "empty": StageResponse(),
    "floor": StageResponse(Override((ComponentTarget("p", 6, OverrideType.AT_LEAST),))),
}


class Ticks(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster(RosterSettings(SCALE, failure_threshold=3, cooldown_s=30.0))
        self.journal = Journal(True)
        self.pipeline = Pipeline(self.roster, tick_max_s=TICK_MAX, journal=self.journal)
        self.k, self.made = 0, 0
        self.last_good: dict[int, float] = {}  # registration -> grid time of the last answer in a tick that ended well
        self.last_tried: dict[int, tuple[float, bool]] = {}
        self.held_at: dict[int, float] = {}

    @precondition(lambda self: len(self.roster.entries) < 4)
    @rule(interval=st.sampled_from([0.0, 5.0, 10.0, 17.0]), hold=st.booleans(), stage=st.sampled_from([Stage.PROPOSE, Stage.CONSTRAIN]),
          lag=st.floats(0, 4.9))
    def register(self, interval, hold, stage, lag):
        self.made += 1
        policy = HoldPolicy.HOLD_LAST if hold else HoldPolicy.ACCEPT_WHEN_IDLE
        self.roster.register(Registration(f"q{self.made}", stage, execution_interval_s=interval, hold_policy=policy, hold_max_age_s=20.0),
                             self.k * SCALE + lag, plugin=object())

    @precondition(lambda self: self.roster.entries)
    @rule(data=st.data())
    def unregister(self, data):
        self.roster.unregister(data.draw(st.sampled_from(sorted(self.roster.entries))))

    @rule(skip=st.integers(1, 3), lag=st.floats(0, 4.9), data=st.data())
    def tick(self, skip, lag, data):
        self.k += skip
        at = self.k * SCALE
        now = at + lag
        ticking = self.pipeline.tick(PipelineContext("t", "d"), {"p": 3}, tick_at=at, now=now)
        said: dict[str, str] = {}
        orders: dict[str, int] = {}
        before = {e.order: e.anchor for e in self.roster.entries.values()}
        try:
            gather = next(ticking)
            while True:
                items: list[Answer] = []
                for call in gather.calls:
                    assert call.plugin_id not in said, "called twice in a tick"
                    self.may_call(call, at)
                    said[call.plugin_id] = word = data.draw(st.sampled_from(["accept", "floor", "empty", "fails", "fails", "accept", "reject"]))
                    orders[call.plugin_id] = call.generation
                    failed = word == "fails"
                    items.append(Answer(call.plugin_id, None if failed else SAID[word], CallError("raised") if failed else None))
                if data.draw(st.integers(0, 9)) == 0:
                    gone = data.draw(st.sampled_from(sorted(said)))
                    self.roster.unregister(gone)
                stall = data.draw(st.sampled_from([0.0, 0.0, 0.0, 1.0, 31.0]))
                now += stall
                gather = ticking.send(Answers(gather.gather_id, tuple(items), now))
        except StopIteration as done:
            self.judge(done.value, at, said, orders, before)

    def may_call(self, call: Any, at: float) -> None:
        entry = self.roster.entries[call.plugin_id]
        assert entry.order == call.generation
        assert entry.breaker.state(call.request.now) is not Circuit.OPEN  # a cool-down may end between two stages of a tick
        good = self.last_good.get(entry.order)
        if good is not None and entry.interval_s:
            assert at - good >= entry.interval_s - 1e-9, "called within its interval"
        tried = self.last_tried.get(entry.order)
        assert tried is None or at >= tried[0] + SCALE - 1e-9

    def judge(self, outcome: TickOutcome, at: float, said: dict[str, str], orders: dict[str, int], before: dict[int, float]) -> None:
        for name, word in said.items():
            entry = self.roster.entries.get(name)
            self.last_tried[orders[name]] = (at, word != "fails")
            if entry is None or entry.order != orders[name]:
                continue
            if outcome.action == "skip_tick_timeout":
                assert entry.anchor == before[entry.order], "a timed-out tick used a slot"
            elif word != "fails":
                assert entry.anchor == at
                self.last_good[entry.order] = at
            if word == "floor" and entry.hold_last:
                self.held_at[entry.order] = at
            elif word in ("accept", "reject"):
                self.held_at.pop(entry.order, None)
        for merged in (outcome.propose, outcome.constrain):
            assert merged is None or merged.proposal is None or all(t.replicas in (3, 6) for t in merged.proposal.targets)
        for record in outcome.records:
            if record.kind != "held_over":
                continue
            entry = self.roster.entries.get(record.plugin_id)
            if entry is None:
                continue
            assert record.data["age_s"] <= entry.hold_max_age_s + 1e-9 and entry.hold_last
            assert at - self.held_at[entry.order] == record.data["age_s"]
            assert entry.breaker.last is not Circuit.OPEN
        assert self.journal.take() == ()


class TestPLT5Cadence(Ticks.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
