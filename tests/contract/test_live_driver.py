"""The live driver against stand-in engines over real HTTP: the way of an event, what is recorded, and what a policy that raises does."""

from __future__ import annotations

import threading
from collections import Counter

import live_flights
import pytest
from live_flights import QUICK, Door, Listed, Record, Tiny, armed, fleet_of, requests

from windtunnel.effects import Close, Dispatch, WakeAt
from windtunnel.errors import ConfigNeedsError, PolicyError
from windtunnel.events import Arrived, Failed, Finished, Progressed, Request, Scraped, Woke
from windtunnel.live.driver import LiveDriver
from windtunnel.live.fake_server import FakeEngine, FakeScript, Fault

own_state, quick_looks = live_flights.own_state, live_flights.quick_looks


# -- the way of an event ----------------------------------------------------------------------------------------------------------


def test_DV_1_an_armed_run_ends_by_itself_with_every_request_told_once():
    record, source, control = Record(), Listed(requests(20, every_s=0.005)), Tiny()
    with FakeEngine(QUICK) as a, FakeEngine(QUICK) as b:
        driver = armed(control, source, a, b, record=record)
        driver.run_blocking()
        assert a.count("POST") + b.count("POST") == 20 and min(a.count("POST"), b.count("POST")) >= 5
    progress = driver.progress()
    assert driver.complete and progress.done and progress.why == "done"
    assert (progress.arrived, progress.finished, progress.ended, progress.open, progress.in_flight) == (20, 20, 20, 0, 0)
    assert source.ends() == {f"r{i}": 1 for i in range(20)}
    assert [s[0] for s in record.steps] == list(range(1, len(record.steps) + 1))
    nows = [s[1] for s in record.steps]
    assert nows == sorted(nows) and nows[0] >= 0.0
    assert len(control.threads) == 1 and threading.get_ident() not in control.threads
    assert {row["replica"]: row["requests"] for row in record.rows} == {"chat-0": a.count("POST"), "chat-1": b.count("POST")}
    assert driver.view().running == 0


def test_DV_1_recorded_before_it_is_carried_out():
    record = Record()
    seen = []
    with FakeEngine(QUICK) as engine:
        original = record.step

        def step(seq, now, event, effects, verdicts=None):
            seen.append((engine.count("POST"), sum(isinstance(e, Dispatch) for e in effects)))
            original(seq, now, event, effects, verdicts)

        record.step = step
        armed(Tiny(per=1), Listed(requests(3)), engine, record=record).run_blocking()
    sent = 0
    for posts, dispatched in seen:
        assert posts <= sent
        sent += dispatched
    assert sent == 3


def test_DV_3_times_are_taken_by_the_driver():
    record = Record()
    script = FakeScript(ttft_s=0.1, itl_s=0.02, slots=8)
    with FakeEngine(script) as engine:
        armed(Tiny(), Listed(requests(3, out=6)), engine, record=record).run_blocking()
    for done in record.events(Finished):
        arrived = next(e.request.arrived_s for e in record.events(Arrived) if e.request.id == done.request_id)
        ended = next(now for _, now, e, _, _ in record.steps if e is done)
        assert 0.1 <= done.first_token_s - arrived < 0.2
        assert ended - done.first_token_s == pytest.approx(0.1, abs=0.05)
        assert done.output_tokens == 6 and done.input_tokens > 0 and done.finish_reason == "length"


def test_KC_31_arrivals_carry_the_true_time_and_keep_their_schedule():
    record = Record()
    with FakeEngine(QUICK) as engine:
        driver = armed(Tiny(), Listed(requests(10, every_s=0.02)), engine, record=record)
        driver.run_blocking()
    for i, arrived in enumerate(record.events(Arrived)):
        assert arrived.request.intended_s == pytest.approx(i * 0.02)
        assert 0.0 <= arrived.request.arrived_s - arrived.request.intended_s < 0.05
    assert 0.0 <= driver.progress().lag_p99_s < 0.05


def test_KC_30_sources_hear_of_their_own_requests_only_and_own_wakes_are_apart():
    class Chained(Listed):
        """A request per wake; both sources use the wake key `queue`."""

        loop = "closed"

        def __init__(self, name):
            super().__init__((), name)
            self.left = 3

        def stream(self):
            return None

        def start(self, now):
            return [WakeAt(0.01, "queue")]

        def handle(self, what, now):
            super().handle(what, now)
            if isinstance(what, Woke) and self.left:
                self.left -= 1
                return [Arrived(Request(f"{self.name}-{self.left}", "t", "m", 0, now, input_tokens=4, max_tokens=2))]
            return [WakeAt(now + 0.01, "queue")] if self.left else []

        def done(self):
            return not self.left

    a, b = Chained("a"), Chained("b")
    with FakeEngine(QUICK) as engine:
        armed(Tiny(), [a, b], engine).run_blocking()
    assert a.ends() == {"a-0": 1, "a-1": 1, "a-2": 1} and b.ends() == {"b-0": 1, "b-1": 1, "b-2": 1}


def test_EE_observations_only_for_those_who_need_them():
    record, source = Record(), Listed(requests(2, out=40), needs=frozenset({"first_token"}))
    with FakeEngine(FakeScript(ttft_s=0.01, itl_s=0.02)) as engine:
        armed(Tiny(needs=frozenset({"started", "progress"})), source, engine, record=record).run_blocking()
    kinds = Counter(type(e).__name__ for _, _, e, _, _ in record.steps)
    assert kinds["Started"] == 2 and kinds["FirstToken"] == 0 and kinds["Progressed"] >= 3
    assert Counter(type(w).__name__ for w in source.told) == {"FirstToken": 2, "Finished": 2}


def test_VT_4_fast_streams_are_told_every_32_tokens_not_only_by_the_clock():
    record = Record()
    with FakeEngine(FakeScript(ttft_s=0.001, itl_s=0.0005)) as engine:
        armed(Tiny(needs=frozenset({"progress"})), Listed(requests(2, out=200)), engine, record=record).run_blocking()
    told = Counter()
    for event in record.events(Progressed):
        for name, tokens in event.counts:
            assert told[name] < tokens <= told[name] + 32
            told[name] = tokens
    ends = {e.request_id: e.output_tokens for e in record.events(Finished)}
    assert dict(told) == ends and set(ends.values()) == {200}, "and how far it came, right before its end"


def test_KC_18_needs_that_no_engine_gives_are_refused():
    with pytest.raises(ConfigNeedsError, match="kv_events"):
        LiveDriver(Tiny(needs=frozenset({"kv_events"})), [], fleet_of("http://127.0.0.1:9"), Record())


def test_scrapes_come_only_if_needed(quick_looks):
    for needs, some in ((frozenset({"scrape"}), True), (frozenset(), False)):
        record = Record()
        with FakeEngine(FakeScript(ttft_s=0.01, itl_s=0.02)) as engine:
            armed(Tiny(needs=needs), Listed(requests(2, out=20)), engine, record=record).run_blocking()
            assert bool(record.events(Scraped)) == some
    running = [e.scrape.running for e in record.events(Scraped)]
    assert all(n is not None for n in running)


def test_engine_failures_become_one_failed_each():
    record, source = Record(), Listed(requests(6, every_s=0.02))
    script = FakeScript(ttft_s=0.01, itl_s=0.002, slots=64, faults=(
        Fault("refuse", at=(1,), status=429, retry_after="2"), Fault("die", at=(2,)), Fault("error_frame", at=(3,), status=500),
        Fault("refuse", at=(4,), status=400), Fault("empty", at=(5,)),
    ))
    with FakeEngine(script) as engine:
        armed(Tiny(), source, engine, record=record).run_blocking()
    failed = {e.request_id: e for e in record.events(Failed)}
    assert [failed[f"r{i}"].outcome for i in range(5)] == [
        "rate_limited", "provider_failure", "provider_failure", "local_cancelled", "unexpected_exception"]
    assert failed["r0"].retry_after_s == 2.0 and failed["r0"].status == 429 and failed["r3"].reason == "invalid_request"
    assert failed["r1"].output_tokens >= 1 and failed["r1"].first_token_s is not None
    assert [e.request_id for e in record.events(Finished)] == ["r5"]
    assert source.ends() == {f"r{i}": 1 for i in range(6)}


# -- when something raises --------------------------------------------------------------------------------------------------------


def test_DV_3_an_exception_in_the_control_ends_one_request_and_the_third_stops_an_armed_world():
    control, record, source = Tiny(), Record(), Door(requests(8, every_s=0.05))
    control.raise_on = (Finished,)
    with FakeEngine(QUICK) as engine:
        driver = armed(control, source, engine, record=record)
        driver.start()
        assert driver.wait(5)
    assert len(record.errors) == driver.progress().policy_errors >= 3  # streams that end while it stops raise, too
    assert "raised 3 times" in driver.progress().why and isinstance(driver.last_policy_error, ValueError)
    ended = {w.request_id: w for w in source.told}
    assert sum(w.reason == "policy_error" for w in ended.values() if isinstance(w, Close)) >= 3
    assert all(n == 1 for n in source.ends().values())


def test_DV_3_a_dry_run_goes_on():
    control, record, source = Tiny(), Record(), Listed(requests(6, every_s=0.01))
    control.raise_on = (Finished,)
    with FakeEngine(QUICK) as engine:
        driver = LiveDriver(control, source, fleet_of(engine), record)
        driver.run_blocking()
    assert driver.complete and driver.progress().policy_errors >= 6 and source.ends().total() == 6


def test_DV_4_books_that_do_not_balance_stop_the_run():
    control, source = Tiny(), Door(requests(6, every_s=0.05))
    control.raise_on, control.balanced = (Finished,), False
    with FakeEngine(QUICK) as engine:
        driver = armed(control, source, engine)
        with pytest.raises(PolicyError, match="do not balance"):
            driver.run_blocking()
    assert "the control raised PolicyError" in driver.progress().why and all(n == 1 for n in source.ends().values())


def test_CD_7_a_record_that_is_lost_stops_and_nothing_more_leaves():
    record, source = Record(), Door(requests(500, every_s=0.005))
    record.breaks_at = 30
    with FakeEngine(QUICK) as engine:
        driver = armed(Tiny(), source, engine, record=record)
        with pytest.raises(OSError, match="disk full"):
            driver.run_blocking()
        recorded = sum(isinstance(e, Dispatch) for *_, fx, _ in record.steps for e in fx)
        assert 0 < engine.count("POST") <= recorded  # the last ones may have been cut before they were sent
    assert "the recorder raised OSError: disk full" in driver.progress().why
    assert all(n == 1 for n in source.ends().values())


def test_a_source_that_raises_stops_the_run():
    class Broken(Door):
        def handle(self, what, now):
            super().handle(what, now)
            raise KeyError("oops")

    with FakeEngine(QUICK) as engine:
        driver = armed(Tiny(), Broken(requests(3, every_s=0.05)), engine)
        with pytest.raises(KeyError):
            driver.run_blocking()
    assert "the source 'listed' raised KeyError" in driver.progress().why
