"""Rules of the simulated driver: callbacks only, slices of any size, order at equal times, the network, record levels, progress."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import simpy
from driver_flights import TEXT, Ear, drive, scenario

from windtunnel.errors import PolicyError
from windtunnel.events import Arrived, Failed, Finished
from windtunnel.lab.history import violations
from windtunnel.lab.logread import LogReader
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario
from windtunnel.lab.world_simulated import Flight, Simulated
from windtunnel.policy.control import Control
from windtunnel.sim.agenda import Agenda, Call
from windtunnel.sim.driver import Progress
from windtunnel.sim.engine import EngineConfig


def ends(ear: Ear) -> dict[str, tuple[float, Any]]:
    return {e.request_id: (now, e) for now, e in ear.of(Finished, Failed)}


# -- SV-1: no process per request -------------------------------------------------------------------------------------------------


def test_SV_1_the_request_path_is_plain_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[str] = Counter()
    whole, push = simpy.Process.__init__, Agenda.at

    def process(self: Any, *args: Any, **options: Any) -> None:
        made["process"] += 1
        whole(self, *args, **options)

    def at(self: Agenda, *args: Any) -> None:
        made["call"] += 1
        push(self, *args)

    monkeypatch.setattr(simpy.Process, "__init__", process)
    monkeypatch.setattr(Agenda, "at", at)
    flight = scenario(faults=[{"kind": "crash", "at_s": 10, "count": 1}, {"kind": "slow", "at_s": 5, "for_s": 5}]).start()
    agenda = flight._driver.agenda
    assert isinstance(agenda, simpy.Environment)
    run = flight.result()
    assert len(run.requests) > 250 and made["process"] == 0
    assert made["call"] < 4 * len(run.requests), "an arrival each, and a few of the fleet"


def test_SV_1_a_process_of_somebody_else_runs_beside_them() -> None:
    """Boots, links and faults may be processes: the agenda is a whole simpy environment."""
    driver_agenda, seen = Agenda(), []

    def slow() -> Iterator[Any]:
        yield driver_agenda.timeout(1.5)
        seen.append(("process", driver_agenda.now))

    driver_agenda.process(slow())  # type: ignore[arg-type]
    driver_agenda.at(1.0, 1, lambda _: seen.append(("call", driver_agenda.now)))
    assert driver_agenda.run_some(100) and seen == [("call", 1.0), ("process", 1.5)]
    assert not isinstance(driver_agenda.timeout(1.0), Call)


# -- SV-2: slices, cancel, errors -------------------------------------------------------------------------------------------------


def body(run: Run) -> list[bytes]:
    """The log without its header (it says when it was made) and its last line (which digests the header)."""
    assert isinstance(run.tables.log, bytes)
    return run.tables.log.splitlines()[1:-1]


@pytest.mark.parametrize("budget_s", [0.0, 0.003, 0.05])
def test_SV_2_any_split_gives_the_same_log_byte_for_byte(budget_s: float) -> None:
    whole = scenario(record="full").run()
    flight, slices = scenario(record="full").start(), 0
    while not flight.advance(budget_s).done:
        slices += 1
    sliced = flight.result()
    assert (slices > 5 or budget_s) and len(body(whole)) > 500
    assert body(sliced) == body(whole) and sliced.requests.equals(whole.requests) and sliced.replicas.equals(whole.replicas)


def test_SV_2_advance_keeps_to_its_budget() -> None:
    flight = scenario(duration_s=4000, **{"source.rate_rps": 30, "fleet.pools.chat.replicas": 4}).start()
    over = []
    for _ in range(15):
        wall, cpu = time.perf_counter(), time.thread_time()
        progress = flight.advance(0.05)
        over.append((time.perf_counter() - wall - 0.05, time.thread_time() - cpu - 0.05))
        assert not progress.done
    flight.cancel()
    assert sorted(w for w, _ in over)[len(over) // 2] <= 0.020, "the median: this machine is not ours alone"
    assert sorted(c for _, c in over)[-3] <= 0.020, "twice a collection of garbage may fall into a slice"
    assert flight.advance(0.05).done and not flight.result().complete


def test_SV_2_cancel_from_another_thread_leaves_a_valid_part_of_a_run() -> None:
    flight = scenario(duration_s=50_000, record="full", **{"source.rate_rps": 20}).start()
    thread = threading.Thread(target=flight.advance)
    thread.start()
    while flight.progress.finished < 500:
        time.sleep(0.005)
    flight.cancel()
    thread.join(5.0)
    assert not thread.is_alive()
    run = flight.result()
    assert run.complete is False and "INCOMPLETE" in repr(run)
    assert violations(run) == []
    assert run.summary().values["basis"] == "elapsed" and run.summary().values["offered_rps"] == pytest.approx(20, rel=0.3)
    rows = run.requests
    assert len(rows) >= 500 and set(rows[rows.outcome.isna()].reason) <= {"stopped"} and run.summary().values["completed"] >= 500
    assert flight.result() is run


def test_SV_2_cancelled_before_it_began_is_an_empty_run() -> None:
    flight = scenario().start()
    flight.cancel()
    flight.cancel()
    run = flight.result()
    assert not run.complete and len(run.requests) == 0 and run.summary().values["completed"] == 0


class Breaks:
    """A control that raises on its n-th event."""

    def __init__(self, control: Control, at: int, error: Exception) -> None:
        self._control, self._left, self._error = control, at, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def handle(self, event: Any, now: float) -> Any:
        self._left -= 1
        if self._left == 0:
            raise self._error
        return self._control.handle(event, now)


def test_SV_2_an_exception_in_a_policy_names_event_and_time_and_keeps_the_log() -> None:
    made = scenario(record="full")
    broken: Any = Breaks(made.build_control(), 60, KeyError("weights"))
    flight = Simulated(made.build_fleet(), seed=3, record="full", until=40.0).start(broken, made.build_source(), control_spec={})
    with pytest.raises(PolicyError, match=r"raised KeyError at seq 60, \d+\.\d+ s, on \w+\(.*'weights'") as caught:
        flight.result()
    assert isinstance(caught.value.__cause__, KeyError)
    run: Run = caught.value.run  # type: ignore[attr-defined]
    assert run.complete is False and len(list(LogReader(run.tables.log).steps())) >= 59  # type: ignore[arg-type]
    assert len(run.requests) > 10
    with pytest.raises(PolicyError):
        flight.result()


# -- SV-3: order at equal times ---------------------------------------------------------------------------------------------------


def test_SV_3_a_finish_dispatches_who_waits_into_the_step_that_starts_then() -> None:
    _, ear = drive(("a", 0.0, 10, 3), ("b", 0.0, 10, 5), ("late", 0.5, 10, 2), limit=2)
    told = ends(ear)
    assert told["a"][0] == 3.0 and told["late"][1].started_s == 3.0 and told["late"][1].first_token_s == 4.0
    assert (told["b"][0], told["late"][0]) == (5.0, 5.0), "its prompt rode with b's fourth decode"


def test_SV_3_completions_come_before_arrivals_and_both_before_the_next_step() -> None:
    _, ear = drive(("a", 0.0, 10, 3), ("b", 3.0, 10, 1), limit=1)
    at_3 = [(type(e).__name__, getattr(e, "request_id", None) or e.request.id) for now, e in ear.events if now == 3.0]
    assert at_3 == [("Finished", "a"), ("Arrived", "b")], "the place is free when b comes: it never waits"
    assert ends(ear)["b"][1].started_s == 3.0


def test_SV_3_equal_arrivals_keep_their_order_and_share_a_step() -> None:
    _, ear = drive(*((f"r{i}", 1.0, 10, 2) for i in range(8)))
    assert [e.request.id for _, e in ear.of(Arrived)] == [f"r{i}" for i in range(8)]
    assert [(now, e.request_id) for now, e in ear.of(Finished)] == [(3.0, f"r{i}") for i in range(8)]
    assert {e.started_s for _, e in ear.of(Finished)} == {1.0}


def test_SV_3_effects_without_delay_come_before_anything_else_of_that_time() -> None:
    """Two arrivals at one time: the first is dispatched, and refused by the full engine, before the second is looked at."""
    _, ear = drive(("a", 0.0, 200, 2), ("b", 0.0, 10, 2), engine=EngineConfig(max_num_seqs=16, max_model_len=100))
    told = [(type(e).__name__, getattr(e, "request_id", "") or e.request.id) for now, e in ear.of(Arrived, Failed) if now == 0.0]
    assert told == [("Arrived", "a"), ("Failed", "a"), ("Arrived", "b")]


# -- SV-4: the network ------------------------------------------------------------------------------------------------------------


def test_SV_4_each_way_costs_the_network_and_ttft_is_the_callers() -> None:
    driver, ear = drive(("a", 0.0, 10, 3), network_s=0.25)
    now, end = ends(ear)["a"]
    assert (end.started_s, end.first_token_s, now) == (0.25, 1.5, 3.5)
    assert driver.agenda.now >= 3.5
    run = scenario(**{"fleet.network_s": 0.25}).run()
    plain = scenario().run()
    rows, before = run.requests, plain.requests
    assert (rows.ttft_s - before.ttft_s).dropna().median() == pytest.approx(0.5, abs=0.02)
    assert (rows.engine_queue_s >= 0.25 - 1e-9).all(), "from the dispatch on"


def test_SV_4_a_refusal_takes_both_ways_too() -> None:
    _, ear = drive(("a", 0.0, 200, 2), network_s=0.25, engine=EngineConfig(max_num_seqs=16, max_model_len=100))
    now, end = ends(ear)["a"]
    assert (now, end.status) == (0.5, 400)


def test_SV_4_a_cancel_cannot_overtake_its_dispatch() -> None:
    text = TEXT.replace("tenants: {a: 1, b: 1}}", "tenants: {a: 1, b: 1}, clients: {timeout_s: 0.1}}")
    run = Scenario.load(text).with_({"fleet.network_s": 0.25, "record": "full", "duration_s": 5.0}).run(check=True)
    assert len(run.requests) > 20 and (run.requests.outcome == "local_timeout").all()
    assert violations(run) == [], "they leave before their request has reached the engine"
    assert (run.requests.reason != "cancelled").all() or run.replicas.requests.sum() == 0
    assert run.replicas.requests.sum() == 0, "nobody is served whom nobody waits for"


# -- SV-6: record levels ----------------------------------------------------------------------------------------------------------


def test_SV_6_each_level_holds_the_one_before() -> None:
    runs = {level: scenario(record=level).run() for level in ("requests", "decisions", "full")}
    names = {level: set(run.tables.names) for level, run in runs.items()}
    assert names["requests"] == {"requests", "replicas", "series"}
    assert names["decisions"] - names["requests"] == {"decisions", "notes"}
    assert names["full"] - names["decisions"] == {"steps", "decodes"}
    assert runs["requests"].tables.log is None and runs["full"].tables.log is not None
    for run in runs.values():
        assert run.requests.equals(runs["requests"].requests), "what is written down changes nothing"
    decisions = runs["decisions"].decisions
    assert (decisions.effect == "Dispatch").sum() == len(runs["decisions"].requests) and decisions.request_id.notna().any()


def test_SV_6_a_request_costs_at_most_160_bytes_while_it_flies() -> None:
    flight = scenario(duration_s=600, **{"source.rate_rps": 20, "fleet.pools.chat.replicas": 4}).start()
    sizes = []
    while not flight.advance(0.0).done:
        chunks = flight._recorder._originals._batches
        sizes.append((sum(c.nbytes for c in chunks), sum(c.num_rows for c in chunks), len(flight._recorder._originals._rows)))
    stored, rows, _ = sizes[-1]
    run = flight.result()
    assert rows > 8000 and stored / rows <= 160.0, f"{stored / rows:.0f} B a request"
    assert max(waiting for _, _, waiting in sizes) <= 8192, "tuples are turned into columns every few thousand"
    table = run.tables.arrow("requests")
    assert len(table) == len(run.requests) > 11_000 and table.nbytes / len(table) <= 400, "derived times included, for as long as they are looked at"


def test_SV_6_columns_that_only_some_chunks_have_are_one_table() -> None:
    """Preemptions happen late in the run: the chunks before know nothing of them."""
    made = scenario(duration_s=900, faults=[{"kind": "load", "at_s": 850, "factor": 6}], **{
        "source.rate_rps": 12, "fleet.pools.chat.engine": {"max_num_seqs": 64, "num_blocks": 300, "reserve_full_input": False}, "grace_s": 300})
    run = made.run()
    early, late = (run.requests[run.requests.arrived_s < 500], run.requests[run.requests.arrived_s > 860])
    assert early.preemptions.isna().all() and (late.preemptions.fillna(0) > 0).any() and len(run.requests) > 2 * 8192 * 0.6


def test_SV_6_the_log_holds_the_scrapes() -> None:
    heard = scenario(record="full", **{"control.ledger": {"accounting": "since_scrape"}}).run()
    kinds = Counter(step.event["e"] for step in LogReader(heard.tables.log).steps())  # type: ignore[arg-type]
    assert kinds["Scraped"] > 70 and kinds["Arrived"] == kinds["Finished"] == len(heard.requests)


# -- SV-10: progress --------------------------------------------------------------------------------------------------------------


def test_SV_10_progress_is_told_at_most_ten_times_a_second_and_at_the_end() -> None:
    told: list[tuple[float, Progress]] = []
    made = scenario(duration_s=400, **{"source.rate_rps": 20})
    run = made.run(progress=lambda p: told.append((time.perf_counter(), p)))
    gaps = [b - a for (a, _), (b, _) in pairwise(told[:-1])]
    assert all(gap >= 0.099 for gap in gaps)
    last = told[-1][1]
    assert last.done and last.finished == len(run.requests) and last.in_flight == 0
    assert [p.now for _, p in told] == sorted(p.now for _, p in told)
    assert run.requests.equals(made.run().requests), "looking changes nothing"
    with pytest.raises(AttributeError):
        last.now = 5.0  # type: ignore[misc]


def test_SV_10_a_bar_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    run = scenario(duration_s=5).run(progress=True)
    said = capsys.readouterr().err
    assert "rules" in said and "5/5" in said.replace(".0", "") and run.complete


def test_SV_10_who_watches_may_stop_it() -> None:
    flight: Flight = scenario(duration_s=50_000, **{"source.rate_rps": 20}).start()

    def enough(progress: Progress) -> None:
        if progress.finished > 300:
            flight.cancel()

    run = flight.watch(enough)
    assert not run.complete and run.summary().values["completed"] > 300
