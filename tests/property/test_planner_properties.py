"""The merge against an independent slow reference, and the chain, the breaker and the roster against models."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from windtunnel.errors import PluginRefusedError
from windtunnel.policy.planning.breaker import Breaker
from windtunnel.policy.planning.chain import chain_augment
from windtunnel.policy.planning.contract import (
    PREDICTED,
    Accept,
    ComponentTarget,
    Override,
    OverrideType,
    PredictionData,
    PredictResponse,
    Reject,
    Stage,
    StageResponse,
)
from windtunnel.policy.planning.merge import Ballot, type_aware_merge
from windtunnel.policy.planning.plugin import Registration
from windtunnel.policy.planning.roster import Roster

NAMES = st.sampled_from(["p", "d", "x"])
COUNTS = st.one_of(st.integers(-3, 12), st.just(2**31 - 1))
TARGETS = st.builds(ComponentTarget, NAMES, st.one_of(st.none(), COUNTS), st.sampled_from(list(OverrideType)))
ANSWERS = st.one_of(st.just(Accept()), st.builds(Override, st.lists(TARGETS, max_size=4).map(tuple)), st.none())
RESPONSES = st.builds(StageResponse, ANSWERS, st.booleans())
BASELINES = st.dictionaries(NAMES, st.one_of(st.none(), st.integers(0, 12)), max_size=3)


@st.composite
def ballots(draw: st.DrawFn, responses: st.SearchStrategy[StageResponse] = RESPONSES, distinct: bool = False) -> list[Ballot]:
    said = draw(st.lists(responses, max_size=5))
    priorities = draw(st.permutations(range(len(said)))) if distinct else [draw(st.integers(0, 3)) for _ in said]
    return [Ballot(f"plugin{i}", p, r) for i, (p, r) in enumerate(zip(priorities, said, strict=True))]


def reference(cast: list[Ballot], baseline: dict[str, int | None], set_allowed: bool) -> dict[str, int | None] | None:
    """The rule as text, component by component, with lists and sorting."""
    if any(isinstance(b.response.answer, Reject) for b in cast):
        return None
    heard = [b for b in cast if isinstance(b.response.answer, Override)]
    finals = sorted((b for b in heard if b.response.final), key=lambda b: b.priority)
    if finals and set_allowed:
        heard = finals[:1]
    said: list[tuple[int, int, ComponentTarget]] = []
    for i, b in enumerate(heard):
        for t in b.response.answer.targets:
            if t.replicas is not None and (set_allowed or t.type is not OverrideType.SET):
                said.append((b.priority, i, t))
    out: dict[str, int | None] = {}
    for name in list(dict.fromkeys([t.component for _, _, t in said] + list(baseline))):
        mine = [(p, i, t.type, max(0, t.replicas or 0)) for p, i, t in said if t.component == name]
        sets = sorted((entry for entry in mine if entry[2] is OverrideType.SET), key=lambda entry: entry[:2])
        value = sets[0][3] if sets else baseline.get(name, 0)
        if value is None:
            out[name] = None
            continue
        for *_, n in (e for e in mine if e[2] is OverrideType.AT_MOST):
            value = min(value, n)
        for *_, n in (e for e in mine if e[2] is OverrideType.AT_LEAST):
            value = max(value, n)
        out[name] = value
    return out


def merged(cast: list[Ballot], baseline: dict[str, int | None], set_allowed: bool = True) -> dict[str, int | None] | None:
    outcome = type_aware_merge(cast, baseline, set_allowed=set_allowed)
    if outcome.proposal is None:
        return None
    names = [t.component for t in outcome.proposal.targets]
    assert len(set(names)) == len(names)
    return {t.component: t.replicas for t in outcome.proposal.targets}


@settings(max_examples=300)
@given(ballots(), BASELINES, st.booleans())
def test_PL_T1_merge_agrees_with_the_reference(cast, baseline, set_allowed):
    got = merged(cast, baseline, set_allowed)
    expected = reference(cast, baseline, set_allowed)
    assert got == expected and list(got) == list(expected) and set(baseline) <= set(got)
    assert all(n is None or n >= 0 for n in got.values())


@given(ballots(distinct=True), BASELINES)
def test_PL_T1_order_does_not_matter_with_distinct_priorities(cast, baseline):
    first = merged(cast, baseline)
    for order in list(permutations(cast))[:24]:
        assert merged(list(order), baseline) == first


@given(ballots(), BASELINES, st.booleans(), st.integers(0, 3), NAMES, st.data())
def test_PL_T2_opinions_that_are_none_change_nothing(cast, baseline, set_allowed, priority, name, data):
    nothing = data.draw(st.sampled_from([Accept(), Override((ComponentTarget(name),)), Override(())]))
    at = data.draw(st.integers(0, len(cast)))
    more = [*cast[:at], Ballot("more", priority, StageResponse(nothing)), *cast[at:]]
    assert merged(more, baseline, set_allowed) == merged(cast, baseline, set_allowed)
    result = merged(cast, baseline, set_allowed)
    assert merged([], result) == result


@given(st.integers(-3, 12), st.sampled_from([OverrideType.AT_LEAST, OverrideType.AT_MOST]), st.integers(0, 12), ballots(), st.integers(0, 12))
def test_PL_T3_final_bounds_and_stages_of_bounds(n, kind, base, cast, other):
    alone = merged([Ballot("a", 1, StageResponse(Override((ComponentTarget("p", n, kind),)), True))], {"p": base})["p"]
    assert alone >= base if kind is OverrideType.AT_LEAST else alone <= base
    only_sets = [Ballot("s", 0, StageResponse(Override((ComponentTarget("p", other),)), True))]
    assert merged([*only_sets, *cast], {"p": base}, False) == merged(cast, {"p": base}, False)


@given(st.lists(st.tuples(st.lists(st.one_of(st.none(), st.floats(1, 9)), min_size=5, max_size=5), st.booleans(), st.booleans()), max_size=5).flatmap(
    lambda steps: st.tuples(st.just(steps), st.permutations(range(len(steps))))))
def test_PL_T4_first_writer_wins_per_field_in_any_order(drawn):
    steps, priorities = drawn
    made: list[tuple[str, int, Any]] = []
    for i, (values, final, failed) in enumerate(steps):
        fields = dict(zip(PREDICTED, values, strict=True))
        if fields["predicted_kv_hit_rate"] is not None:
            fields["predicted_kv_hit_rate"] /= 9
        made.append((f"q{i}", priorities[i], None if failed else PredictResponse(PredictionData(**fields), final=final)))
    outcome = chain_augment(made)
    expected: dict[str, float] = {}
    for _, _, response in sorted(made, key=lambda step: step[1]):
        if response is None:
            continue
        for name in PREDICTED:
            value = getattr(response.predictions, name)
            if value is not None:
                expected.setdefault(name, value)
        if response.final:
            break
    got = {n: getattr(outcome.predictions, n) for n in PREDICTED if outcome.predictions and getattr(outcome.predictions, n) is not None}
    assert got == expected and outcome.owner.keys() == expected.keys()


class BreakerModel(RuleBasedStateMachine):
    """Against a plain list of what happened."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.now, self.opened, self.row = Breaker(3, 10.0), 0.0, None, 0

    @rule(dt=st.sampled_from([0.0, 0.5, 4.0, 10.0, 11.0]))
    def wait(self, dt):
        self.now += dt

    def expected(self) -> str:
        if self.opened is None:
            return "closed"
        return "half_open" if self.now - self.opened >= 10.0 else "open"

    @precondition(lambda self: self.expected() != "open")
    @rule(fails=st.booleans())
    def call(self, fails):
        before = self.expected()
        if fails:
            self.row += 1
            opens = before == "half_open" or self.row >= 3
            assert (self.breaker.failed(self.now) is not None) == opens
            self.opened = self.now if opens else self.opened
        else:
            self.row = 0
            assert (self.breaker.succeeded(self.now) is not None) == (before == "half_open")
            self.opened = None

    @invariant()
    def same(self):
        assert self.breaker.callable_at(self.now) == (self.expected() != "open")
        assert self.breaker.state(self.now) == self.expected() and self.breaker.callable(self.now) == (self.expected() != "open")


class RosterModel(RuleBasedStateMachine):
    """Against a dict of last heartbeats."""

    def __init__(self) -> None:
        super().__init__()
        self.roster, self.now, self.alive = Roster(), 0.0, {}

    @rule(dt=st.sampled_from([0.0, 5.0, 14.9, 30.0, 30.5]))
    def wait(self, dt):
        self.now += dt

    @rule(name=st.sampled_from(["a", "b", "c", "bad id"]), outside=st.booleans(), priority=st.sampled_from([0, 100, -1]))
    def register(self, name, outside, priority):
        before = self.roster.snapshot()
        try:
            self.roster.register(Registration(name, Stage.PROPOSE, priority), self.now, external=outside)
        except PluginRefusedError:
            assert (name in self.alive or name == "bad id" or priority < 0) and self.roster.snapshot() is before
        else:
            assert name not in self.alive and name != "bad id" and priority >= 0
            self.alive[name] = (self.now, outside)

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def unregister(self, name):
        assert (self.roster.unregister(name) is not None) == (self.alive.pop(name, None) is not None)

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def beat(self, name):
        assert self.roster.heartbeat(name, self.now) == (name in self.alive)
        if name in self.alive:
            self.alive[name] = (self.now, self.alive[name][1])

    @rule()
    def sweep(self):
        gone = {n for n, (beat, outside) in self.alive.items() if outside and self.now - beat > 30.0}
        assert {e.plugin_id for e in self.roster.sweep(self.now)} == gone
        for name in gone:
            del self.alive[name]

    @invariant()
    def same(self):
        assert set(self.roster.entries) == set(self.alive)
        orders = [e.order for e in self.roster.snapshot().entries]
        assert orders == sorted(set(orders)) and len(orders) == len(self.alive)


class TestPLT6Breaker(BreakerModel.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


class TestPLT6Roster(RosterModel.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
