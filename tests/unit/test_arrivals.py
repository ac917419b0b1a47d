from __future__ import annotations

from itertools import accumulate, islice
from typing import Any

import numpy as np
import pytest

from windtunnel.effects import WakeAt
from windtunnel.errors import ConfigValueError
from windtunnel.events import Arrived, Finished, Request, Woke
from windtunnel.lab.scenario import Scenario
from windtunnel.sources.arrivals import ArrivalSource, FixedSchedule, Ramp, RequestRate
from windtunnel.sources.dist import Const, LogNormal
from windtunnel.sources.mix import Mix
from windtunnel.sources.source import Source
from windtunnel.sources.trace import TraceSource
from windtunnel.sources.traces.row import TraceRow


def take(rate: RequestRate, n: int, seed: int = 0) -> np.ndarray:
    return np.fromiter(islice((t for chunk in rate.times(np.random.default_rng(seed)) for t in chunk), n), float)


def source(**options: object) -> ArrivalSource:
    return ArrivalSource(**{"rate_rps": 10.0, "input_tokens": 5, "output_tokens": 6, "rng": 1, **options})  # type: ignore[arg-type]


def test_LG_11_constant_is_exact() -> None:
    assert take(RequestRate(10.0, pattern="constant"), 5000).tolist() == [k / 10 for k in range(1, 5001)]


@pytest.mark.parametrize(("shape", "cv"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_LG_11_gamma_gaps_have_their_cv(shape: float, cv: float) -> None:
    gaps = np.diff(take(RequestRate(5.0, pattern="gamma", shape=shape), 100_001))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.02) and gaps.mean() == pytest.approx(0.2, rel=0.02)
    by_cv = take(RequestRate(5.0, pattern="gamma", cv=cv), 1000)
    assert np.allclose(by_cv, take(RequestRate(5.0, pattern="gamma", shape=1 / cv**2), 1000))


def test_LG_11_poisson_is_gamma_of_shape_one() -> None:
    gaps = np.diff(take(RequestRate(5.0), 100_001))
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.02) and gaps.mean() == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize(("ramp", "total"), [(Ramp(0, 10, 100), 500), (Ramp(10, 0, 100), 500), (Ramp(2, 8, 50), 250),
                                             (Ramp(0, 9, 100, 2), 300), (Ramp(9, 0, 100, 2), 600)])
def test_LG_11_ramps_are_exact(ramp: Ramp, total: int) -> None:
    at = take(RequestRate(ramp, pattern="constant"), total - 1)
    assert len(at) == total - 1 and at[-1] <= ramp.over_s
    share = at / ramp.over_s
    reached = ramp.over_s * (ramp.from_rps * share + (ramp.to_rps - ramp.from_rps) * share ** (ramp.exponent + 1) / (ramp.exponent + 1))
    assert np.allclose(reached, np.arange(1, total), rtol=1e-9)
    if ramp.to_rps:
        after = take(RequestRate(ramp, pattern="constant"), total + 50)[total:]
        assert np.allclose(np.diff(after), 1 / ramp.to_rps)
    else:
        assert len(take(RequestRate(ramp, pattern="constant"), 10 * total)) <= total and not RequestRate(ramp).endless


def test_LG_11_series_is_piecewise_constant_and_may_rest() -> None:
    rate = RequestRate(series=((0.0, 2.0), (2.0, 0.0), (5.0, 1.0)), pattern="constant")
    assert take(rate, 7).tolist() == [0.5, 1.0, 1.5, 2.0, 6.0, 7.0, 8.0] and rate.endless
    ends = RequestRate(series=((1.0, 2.0), (3.0, 0.0)), pattern="constant")
    assert take(ends, 100).tolist() == [1.5, 2.0, 2.5, 3.0] and not ends.endless


@pytest.mark.parametrize(("options", "field"), [
    ({"rate_rps": 0.0}, "rate_rps"), ({"rate_rps": -1.0}, "rate_rps"), ({"rate_rps": float("nan")}, "rate_rps"),
    ({"rate_rps": None}, "rate_rps"),
    ({"rate_rps": 1.0, "series": ((0.0, 1.0),)}, "rate_rps"), ({"rate_rps": None, "series": ()}, "series"),
    ({"rate_rps": None, "series": ((0.0, 0.0),)}, "series"), ({"rate_rps": None, "series": ((0.0, -1.0),)}, "series.0.rate"),
    ({"rate_rps": None, "series": ((2.0, 1.0), (1.0, 1.0))}, "series.1.t_s"), ({"rate_rps": Ramp(0, 0, 5)}, "rate_rps"),
    ({"pattern": "weibull"}, "pattern"), ({"pattern": "gamma", "shape": 0.0}, "shape"), ({"pattern": "gamma", "cv": -1.0}, "cv"),
    ({"shape": 2.0}, "shape"), ({"count": 0}, "count"), ({"duration_s": -1.0}, "duration_s"), ({"tenants": {"a": 0.0}}, "tenants"),
    ({"priorities": {"urgent": 1.0}}, "priorities"), ({"max_in_flight": 0}, "max_in_flight"),
    ({"input_tokens": float("nan")}, "input_tokens.value"),
])
def test_LG_11_bad_settings_name_their_field(options: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigValueError) as caught:
        source(**options)
    assert caught.value.field == field


def test_arrivals_are_requests_with_truth_and_bound() -> None:
    made = list(source(count=3, pattern="constant", name="a", model="m").stream() or ())
    assert [(r.id, r.arrived_s, r.intended_s) for r in made] == [("a-0", 0.1, 0.1), ("a-1", 0.2, 0.2), ("a-2", 0.3, 0.3)]
    first = made[0]
    assert (first.tenant, first.model, first.priority, first.input_tokens, first.max_tokens) == ("default", "m", 0, 5, 6)
    assert first.truth is not None and first.truth.output_tokens == 6 and first.phase == "profiling" and first.attempt == 1
    assert next(iter(source(bound=None).stream() or ())).max_tokens is None


def test_arrivals_end_by_count_duration_or_not_at_all() -> None:
    assert len(list(source(count=5000).stream() or ())) == 5000
    timed = source(duration_s=3.0, pattern="constant")
    assert not timed.endless and not timed.done() and len(list(timed.stream() or ())) == 29 and timed.done()
    assert source().endless and not source(count=1).endless


def test_one_draw_does_not_change_another() -> None:
    plain = list(source(count=3000).stream() or ())
    shares = {"tenants": {"a": 1, "b": 1}, "priorities": {"interactive": 1, "batch": 1}}
    other = list(source(count=3000, input_tokens=LogNormal(100, 1), **shares).stream() or ())
    assert [r.arrived_s for r in plain] == [r.arrived_s for r in other] and len({r.input_tokens for r in other}) > 50
    assert {r.tenant for r in other} == {"a", "b"} and {r.priority for r in other} == {0, 1}
    again = source(count=3000)
    assert list(again.stream() or ()) == list(again.stream() or ()) == plain
    assert [r.arrived_s for r in source(count=9, rng=2).stream() or ()] != [r.arrived_s for r in plain[:9]]


def test_LG_20_and_LG_22_a_schedule_is_never_moved() -> None:
    """One server of 0.05 s that serves nothing in [1.0, 2.0); one request at a time; 10 a second."""
    ended = serve(source(pattern="constant", count=30, max_in_flight=1))
    assert ended[0.1] == (0.1, pytest.approx(0.15))
    assert ended[1.0] == (1.0, pytest.approx(2.05))
    sent, end = ended[1.1]
    assert sent == pytest.approx(2.05) and end == pytest.approx(2.10)
    assert sent - 1.1 == pytest.approx(0.95) and end - sent == pytest.approx(0.05) and end - 1.1 == pytest.approx(1.0)
    assert list(ended) == [k / 10 for k in range(1, 31)]  # sent in order


def test_LG_20_limits_hold_for_traces_too() -> None:
    rows = [TraceRow(str(i), i / 10, 1, 1, deadline_in_s=1.0) for i in range(10, 14)]
    limited = TraceSource(rows, load=FixedSchedule(0.0, max_in_flight=1))
    assert limited.stream() is None
    ended = serve(limited)
    assert ended[1.0] == (1.0, pytest.approx(2.05)) and ended[1.1][0] == pytest.approx(2.05) and limited.done()
    other = TraceSource(rows, load=FixedSchedule(0.0, max_in_flight=1))
    other.start(0.0)
    late = [ask.request for ask in other.handle(Woke("trace/next"), 1.5) if isinstance(ask, Arrived)]
    assert [(r.arrived_s, r.intended_s, r.deadline_s) for r in late] == [(1.5, 1.0, 2.5)]


def serve(one: Source) -> dict[float, tuple[float, float]]:
    """Intended time -> (sent, ended) on the server of LG-22."""
    ended: dict[float, tuple[float, float]] = {}
    now, asks = 0.0, list(one.start(0.0))
    while asks:
        ask = asks.pop(0)
        if isinstance(ask, WakeAt):
            now = ask.at or now
            asks += one.handle(Woke(ask.key), now)
        elif isinstance(ask, Arrived):
            request = ask.request
            end = now + 0.05 if not 1.0 <= now < 2.0 else 2.05
            ended[request.intended_s or 0.0] = (request.arrived_s, end)
            now = end
            asks += one.handle(Finished(request.id, 1, "r", 1), now)
    return ended


def test_KC_30_a_mix_merges_by_time_and_routes_ends() -> None:
    first, second = source(name="a", count=3, pattern="constant"), source(name="b", count=3, pattern="constant")
    mix = Mix([first, second])
    assert [r.id for r in mix.stream() or ()] == ["a-0", "b-0", "a-1", "b-1", "a-2", "b-2"]
    assert mix.loop == "open" and mix.done() and mix.handle(Finished("b-1", 1, "r", 1), 1.0) == () and not mix.endless
    with pytest.raises(ConfigValueError, match="the name 'a'"):
        Mix([first, source(name="a")])
    with pytest.raises(ConfigValueError, match="at least one"):
        Mix([])


def test_KC_30_a_mix_keeps_wakes_and_requests_of_its_sources_apart() -> None:
    slow = source(name="slow", count=3, pattern="constant", max_in_flight=1)
    mix = Mix([source(name="fast", count=2, pattern="constant"), slow])
    assert mix.start(0.0) == [WakeAt(0.1, "1:slow/next")]
    sent = mix.handle(Woke("1:slow/next"), 0.1)
    assert [ask.request.id for ask in sent if isinstance(ask, Arrived)] == ["slow-0"]
    assert mix.handle(Finished("fast-0", 1, "r", 1), 0.15) == ()
    assert mix.handle(Finished("slow-0", 1, "r", 1), 0.15) == [WakeAt(0.2, "1:slow/next")]
    assert [r.id for r in mix.stream() or ()] == ["fast-0", "fast-1"] and not mix.done()


def test_KC_30_a_mix_refuses_equal_request_ids() -> None:
    one, two = (TraceSource([TraceRow("x", 0.0, 1, 1)], name=name) for name in "ab")
    with pytest.raises(ConfigValueError, match="both have a request 'x'"):
        list(Mix([one, two]).stream() or ())


def test_sources_fit_the_protocol() -> None:
    fitting: list[Source] = [source(count=1), TraceSource([TraceRow("x", 0.0, 1, 1)]), Mix([source(count=1)])]
    for one in fitting:
        assert one.loop == "open" and one.needs == frozenset() and one.start(0.0) == ([] if isinstance(one, Mix) else ())
        assert all(isinstance(r, Request) for r in one.stream() or ())
    assert isinstance(source(input_tokens=Const(3)), ArrivalSource)


LIMITED = """windtunnel: 1
name: limited
question: Who waits for whom?
duration_s: 20
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm}}}
source: SOURCE
control: {queue: {kind: fifo}, admission: {limit: {kind: none}}}
"""
ONE = "{kind: arrivals, name: NAME, rate_rps: 60, pattern: constant, input_tokens: 200, output_tokens: 50, max_in_flight: MOST}"


def most_open(rows: Any) -> int:
    """The largest number of requests open at once; one that is sent when another ends follows it."""
    steps = sorted([(t, 1) for t in rows.arrived_s] + [(t, -1) for t in rows.ended_s])
    return max(accumulate(by for _, by in steps))


@pytest.mark.parametrize(("text", "served", "most"), [
    (ONE.replace("NAME", "a").replace("MOST", "5"), 310, 5),
    (ONE.replace("NAME", "a").replace("MOST", "5").replace("50, max", "50, clients: {timeout_s: 60}, max"), 310, 5),
    ("{kind: mix, sources: [" + ONE.replace("NAME", "a").replace("MOST", "5") + ", " + ONE.replace("NAME", "b").replace("MOST", "1") + "]}", 372, 6),
    ("{kind: mix, sources: [" + ONE.replace("NAME", "a").replace("MOST", "5")
     + ", {kind: arrivals, name: b, rate_rps: 1, pattern: constant, input_tokens: 200, output_tokens: 50}]}", 330, 6)])
def test_LG_20_a_simulated_fleet_gets_the_next_request_when_one_ends(text: str, served: int, most: int) -> None:
    run = Scenario.load(LIMITED.replace("SOURCE", text)).run(check=True)
    rows = run.requests
    assert (rows.outcome == "success").all() and len(rows) == pytest.approx(served, rel=0.05)
    assert most_open(rows) == most
    assert rows.arrived_s.max() < 20 and run.tables.end_s < 21  # what was scheduled and not sent is not sent later
    assert rows[rows.arrived_s > 10].lag_s.max() > 1  # it would have been sent long before
