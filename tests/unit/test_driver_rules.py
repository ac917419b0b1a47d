"""Rules of the simulated driver: callbacks only, slices of any size, order at equal times, the network, what policies see and when."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import simpy

from windtunnel.effects import Dispatch
from windtunnel.errors import PolicyError
from windtunnel.events import Arrived, Failed, Finished, Progressed, ReplicaGone, ReplicaReady, Request, Scraped
from windtunnel.lab.history import violations
from windtunnel.lab.logread import LogReader
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario
from windtunnel.lab.worlds import Flight, Simulated
from windtunnel.policy.control import Control
from windtunnel.sim.agenda import Agenda, Call
from windtunnel.sim.driver import Progress, SimDriver
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.followers import EVERY_TOKENS
from windtunnel.sim.stepmodels.affine import Affine

TEXT = """
windtunnel: 1
name: rules
duration_s: 40
seed: 3
fleet:
  pools:
    chat:
      {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, max: 4, engine: {max_num_seqs: 16}, startup: {node_s: 4, weights_s: 2}}
source: {kind: arrivals, rate_rps: 8, input_tokens: 300, output_tokens: {kind: lognormal, mean: 60, cv: 0.5}, tenants: {a: 1, b: 1}}
control: {queue: {kind: fifo}, admission: {limit: {kind: none}}, routing: {kind: least_outstanding}}
"""
SECOND = Affine(1.0, 0.0, 0.0, 0.0)  # every step lasts one second


def scenario(**changes: Any) -> Scenario:
    return Scenario.load(TEXT).with_(changes)


class Stream:
    """Requests at given times: (id, arrived_s, prompt, output)."""

    name, loop = "s", "open"

    def __init__(self, *requests: tuple[str, float, int, int], needs: frozenset[str] = frozenset()) -> None:
        self.requests, self.needs = requests, needs
        self.heard: list[tuple[float, Any]] = []

    def stream(self) -> Iterator[Request] | None:
        for id, at, prompt, output in self.requests:
            yield Request(id, "t", "m", 0, at, prompt, output)

    def start(self, now: float) -> Sequence[Any]:
        return ()

    def handle(self, what: Any, now: float) -> Sequence[Any]:
        self.heard.append((now, what))
        return ()

    def done(self) -> bool:
        return True


class Ear:
    """A recorder that keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Any]] = []

    def step(self, seq: int, now: float, event: Any, effects: Any, verdicts: Any = None) -> None:
        self.events.append((now, event))

    def error(self, seq: int, now: float, event: Any, error: BaseException) -> None:
        self.events.append((now, error))

    def sample(self, now: float, name: str, key: str, value: float) -> None: ...

    def replica_row(self, row: Any, /) -> None: ...

    def note(self, now: float, note: Any) -> None: ...

    def of(self, *kinds: type) -> list[tuple[float, Any]]:
        return [(now, e) for now, e in self.events if type(e) in kinds]


def drive(*requests: tuple[str, float, int, int], limit: int | None = None, model: Any = SECOND, needs: frozenset[str] = frozenset(),
          network_s: float = 0.0, engine: EngineConfig | None = None, **pool: Any) -> tuple[SimDriver, Ear]:
    """One replica, one lane with a fixed limit, requests as given; flown to the end."""
    changes: dict[str, Any] = {} if limit is None else {"control.admission.limit": {"kind": "fixed", "limit": limit}}
    control = scenario(**changes).build_control(pools=None)
    control.needs |= needs
    one = Pool("chat", "Llama-3.1-8B", "h100_sxm", engine or EngineConfig(max_num_seqs=16), model, **pool)
    ear = Ear()
    driver = SimDriver(control, Stream(*requests), FleetConfig({"chat": one}, network_s=network_s), ear, check=True)
    driver.advance()
    assert driver.error is None and driver.complete
    return driver, ear


def ends(ear: Ear) -> dict[str, tuple[float, Any]]:
    return {e.request_id: (now, e) for now, e in ear.of(Finished, Failed)}


# -- SV-1: no process per request ------------------------------------------------------------------------------------------------------


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


# -- SV-2: slices, cancel, errors --------------------------------------------------------------------------------------------------------


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
    assert max(c for _, c in over) <= 0.020
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


# -- SV-3: order at equal times ---------------------------------------------------------------------------------------------------------


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


# -- SV-4: the network ------------------------------------------------------------------------------------------------------------------


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


# -- SV-6: record levels ----------------------------------------------------------------------------------------------------------------


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


# -- SV-10: progress --------------------------------------------------------------------------------------------------------------------


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


# -- SO: what policies can see ----------------------------------------------------------------------------------------------------------


def looks(text: str = TEXT, **changes: Any) -> list[tuple[float, Any]]:
    made = Scenario.load(text).with_(changes)
    control, ear = made.build_control(), Ear()
    control.needs |= {"scrape"}
    driver = SimDriver(control, made.build_source(), made.build_fleet(), ear, seed=3, until=made.duration_s)
    driver.advance()
    assert driver.error is None
    return ear.events


class Through:
    """A control whose methods may be set; everything else is the control's own."""

    def __init__(self, control: Any) -> None:
        self._whole = control

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def test_SO_2_between_two_scrapes_nothing_of_the_engine_is_told() -> None:
    """A router that reads the ledger in `since_scrape` accounting sees, at each pick, the last scrape and its own dispatches, no more."""
    made = scenario(**{"control.ledger": {"accounting": "since_scrape"}, "fleet.pools.chat.scrape": {"interval_s": 10.0}})
    ear = Ear()
    control: Any = Through(made.build_control())
    seen: list[tuple[float, float | None]] = []
    whole = control.handle

    def handle(event: Any, now: float) -> Any:
        effects = whole(event, now)
        replica = control.fleet.replicas.get("chat-0")
        if replica is not None:
            seen.append((now, replica.scrape.sampled_s if replica.scrape is not None else None))
        return effects

    control.handle = handle
    driver = SimDriver(control, made.build_source(), made.build_fleet(), ear, seed=3, until=40.0)
    driver.advance()
    assert {at for _, at in seen if at is not None} == {10.0, 20.0, 30.0, 40.0}
    assert all(at is None or now - at >= 0.0 for now, at in seen)
    assert all(at is None for now, at in seen if now < 10.0)
    kinds = {type(e) for _, e in ear.events}
    assert not kinds & {Progressed}, "nobody asked"


def test_SO_2_an_oracle_sees_every_dispatch_and_every_end_at_once() -> None:
    events = looks(**{"fleet.pools.chat.scrape": {"interval_s": 1000.0, "exact": True}})
    scraped = [(now, e) for now, e in events if type(e) is Scraped]
    finished = [(now, e) for now, e in events if type(e) is Finished]
    assert len(scraped) == 2 * len(finished) and len(finished) > 250
    for (before, (now, event)) in pairwise(events):
        if type(event) is Finished:
            assert type(before[1]) is Scraped and (before[0], before[1].replica) == (now, event.replica)
    assert max(e.scrape.running + e.scrape.waiting for _, e in scraped) > 2 and all(now == e.scrape.sampled_s for now, e in scraped)
    alone = drive(("a", 0.0, 10, 3), ("b", 1.5, 10, 1), needs=frozenset({"scrape"}), scrape=replace(Pool.__dataclass_fields__["scrape"]
                  .default_factory(), interval_s=1e3, exact=True))[1]  # type: ignore[misc]
    told = [(now, e.scrape.running + e.scrape.waiting) for now, e in alone.of(Scraped) if now < 100.0]
    assert told == [(0.0, 1), (1.5, 2), (3.0, 0), (3.0, 0)]


def test_SO_2_of_a_pair_both_sides_are_told_with_the_dispatch() -> None:
    scrape = "scrape: {interval_s: 1000, exact: true}"
    other = f"    prompts: {{role: prefill, model: Llama-3.1-8B, gpu: h100_sxm, {scrape}}}\nsource:"
    text = TEXT.replace("      {model", f"      {{role: decode, {scrape}, model").replace("source:", other, 1)
    events = looks(text, duration_s=5.0, **{"control.routing": {"kind": "pairs"}})
    first = [(now, e.replica, e.scrape.running + e.scrape.waiting) for now, e in events if type(e) is Scraped][:2]
    assert first[0][0] == first[1][0] and first[0][1:] == ("prompts-0", 1) and first[1][1].startswith("chat-")


def test_SO_3_a_scrape_costs_nothing_that_grows_and_cuts_no_run() -> None:
    plain, events = [drive(("a", 0.0, 100, 5000), ("b", 3.0, 100, 4000), model=Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8), needs=needs)
                     for needs in (frozenset(), frozenset({"scrape"}))]
    engines = [driver.fleet.replicas["chat-0"].engine for driver, _ in (plain, events)]
    assert [e.events for e in engines] == [engines[0].events] * 2 and engines[0].events <= 6
    assert len(events[1].of(Scraped)) >= 30
    assert [(now, e.request_id) for now, e in plain[1].of(Finished)] == [(now, e.request_id) for now, e in events[1].of(Finished)]


def test_SO_3_scrapes_of_64_replicas_are_a_small_part_of_a_run() -> None:
    changes: dict[str, Any] = {"fleet.pools.chat.replicas": 64, "fleet.pools.chat.max": None, "source.rate_rps": 400, "duration_s": 10}

    def cpu_s(needs: frozenset[str]) -> float:
        made = scenario(**changes)
        control = made.build_control()
        control.needs |= needs
        driver = SimDriver(control, made.build_source(), made.build_fleet(), Ear(), seed=3, until=10.0)
        begun = time.process_time()
        driver.advance()
        assert driver.error is None
        return time.process_time() - begun

    costs = [(cpu_s(frozenset()), cpu_s(frozenset({"scrape"}))) for _ in range(3)]
    share = min(b for _, b in costs) / min(a for a, _ in costs) - 1.0
    assert share < 0.25, f"{share:.1%}: 640 scrapes beside 4000 requests; the 2 % of the rule are measured by the benchmarks"


FAST = Affine(1e-3, 1e-6, 0.0, 0.0)  # a token each millisecond: 250 between two ticks of 0.25 s


def test_SO_4_progress_only_for_who_needs_it() -> None:
    assert drive(("a", 0.0, 10, 500), model=FAST)[1].of(Progressed) == []


@pytest.mark.parametrize("model", [FAST, SECOND, Affine(1e-3, 1e-6, 1e-5, 1e-7)])
def test_SO_4_at_least_every_32_tokens_and_right_before_an_end(model: Affine) -> None:
    _, ear = drive(("a", 0.0, 100, 700), ("b", 0.1, 50, 33), ("c", 0.2, 50, 400), ("d", 2.0, 10, 100), model=model,
                        needs=frozenset({"progress"}))
    known: Counter[str] = Counter()
    told_s, most, there = -1.0, 0, set[str]()
    for now, event in ear.events:
        if type(event) is Arrived:
            there.add(event.request.id)
        if type(event) is Progressed:
            told_s = now
            for name, tokens in event.counts:
                assert tokens >= known[name]
                most, known[name] = max(most, tokens - known[name]), tokens
        if type(event) is Finished:
            there.remove(event.request_id)
            assert told_s == now or not there, "how far the others are"
            most = max(most, event.output_tokens - known[event.request_id])
    assert 0 < most <= EVERY_TOKENS
    assert set(known) == set("abcd")


def test_SO_4_progress_cuts_no_run_and_changes_no_time() -> None:
    sent = (("a", 0.0, 100, 3000), ("b", 0.7, 50, 900))
    (plain, before), (told, after) = drive(*sent, model=FAST), drive(*sent, model=FAST, needs=frozenset({"progress"}))
    engines = [d.fleet.replicas["chat-0"].engine for d in (plain, told)]
    assert engines[0].events == engines[1].events and len(after.of(Progressed)) >= 3000 // 32
    assert [now for now, _ in before.of(Finished)] == [now for now, _ in after.of(Finished)]


def test_SO_4_who_stands_still_is_not_told_again_and_again() -> None:
    run = scenario(duration_s=20, record="full", **{"control.queue": {"kind": "vtc"}, "source.rate_rps": 1,
                                                    "faults": [{"kind": "pause", "at_s": 5, "for_s": 10}]}).run(check=True)
    assert violations(run) == [] and (run.requests.outcome == "success").all()


def flown(**changes: Any) -> Ear:
    made, ear = scenario(**{"control.queue": {"kind": "vtc"}, **changes}), Ear()
    driver = SimDriver(made.build_control(), made.build_source(), made.build_fleet(), ear, seed=3, until=made.duration_s, faults=made.build_faults(),
                       check=True)
    driver.advance()
    assert driver.error is None
    return ear


@pytest.mark.parametrize("network_s", [0.0, 0.02])
def test_VT_4_what_a_lost_replica_had_produced_is_told_before_its_loss(network_s: float) -> None:
    ear = flown(duration_s=20.0, faults=[{"kind": "crash", "at_s": 10.003, "count": 1}], **{"fleet.network_s": network_s})
    lost = [i for i, (_, e) in enumerate(ear.events) if type(e) is ReplicaGone]
    assert lost
    (told_s, told), (gone_s, gone) = ear.events[lost[0] - 1], ear.events[lost[0]]
    assert type(told) is Progressed and (told_s, told.replica) == (gone_s, gone.replica) and len(told.counts) > 0


def test_VT_4_a_pipeline_of_stages_tells_every_32_tokens_too() -> None:
    ear = flown(duration_s=5.0, **{"fleet.pools.chat.pp": 2, "fleet.pools.chat.profile": {"kind": "affine", "c0": 0.001},
                                   "source.output_tokens": 300})
    known, most = Counter[str](), 0
    for _, event in ear.of(Progressed, Finished):
        for name, tokens in event.counts if type(event) is Progressed else ((event.request_id, event.output_tokens),):
            most, known[name] = max(most, tokens - known[name]), tokens
    assert len(known) > 20 and 0 < most <= EVERY_TOKENS


def test_VT_4_progress_of_an_attempt_that_is_over_charges_nothing() -> None:
    """It comes late over a network, when the request already runs elsewhere."""
    control = scenario(**{"control.queue": {"kind": "vtc"}, "control.settings": {"attempts": 2}}).build_control(pools=None)
    for name in ("chat-0", "chat-1"):
        control.handle(ReplicaReady(name, "chat", slots=4), 0.0)
    (sent,) = control.handle(Arrived(Request("a", "t", "Llama-3.1-8B", 0, 0.0, 100, 50)), 0.0)
    (again,) = control.handle(Failed("a", 1, sent.replica, "provider_failure", "crash"), 1.0)  # type: ignore[union-attr]
    assert isinstance(again, Dispatch) and again.replica != sent.replica  # type: ignore[union-attr]
    queue: Any = control.lanes[0].queue
    while hasattr(queue, "inner"):
        queue = queue.inner
    before = queue.counter("t")
    control.handle(Progressed(sent.replica, (("a", 40),)), 1.1)  # type: ignore[union-attr]
    assert queue.counter("t") == before
    control.handle(Progressed(again.replica, (("a", 7),)), 1.2)
    assert queue.counter("t") == before + 2 * 7


# -- SJ-2: histories --------------------------------------------------------------------------------------------------------------------


RECOVERS: dict[str, list[dict[str, Any]]] = {
    "crash": [{"kind": "crash", "at_s": 10, "count": 1}], "spot": [{"kind": "spot", "at_s": 10, "count": 1, "notice_s": 3, "unavailable_s": 5}],
    "slow": [{"kind": "slow", "at_s": 10, "for_s": 8, "factor": 6}], "pause": [{"kind": "pause", "at_s": 10, "for_s": 6}],
    "errors": [{"kind": "errors", "at_s": 10, "for_s": 6, "p": 0.7}], "load": [{"kind": "load", "at_s": 10, "for_s": 6, "factor": 5}],
    "overlap": [{"kind": "slow", "at_s": 8, "for_s": 8, "factor": 4}, {"kind": "slow", "at_s": 10, "for_s": 8, "factor": 2},
                {"kind": "pause", "at_s": 12, "for_s": 2}, {"kind": "errors", "at_s": 9, "for_s": 8, "p": 0.3}],
}


@pytest.mark.parametrize("name", RECOVERS)
def test_SJ_2_the_history_is_sound_and_the_fleet_recovers_when_the_trigger_is_gone(name: str) -> None:
    run = scenario(record="full", duration_s=60, faults=RECOVERS[name]).run(check=True)
    plain = scenario(duration_s=60).run()
    assert violations(run) == []
    late, usual = (r.requests[r.requests.arrived_s > 40] for r in (run, plain))
    assert (late.outcome == "success").all()
    assert late.ttft_s.median() == pytest.approx(usual.ttft_s.median(), rel=0.25)
    assert late.tpot_s.median() == pytest.approx(usual.tpot_s.median(), rel=0.25)


def test_SJ_2_a_broken_history_is_said_sentence_by_sentence() -> None:
    run = scenario(record="full", duration_s=3).run()
    assert isinstance(run.tables.log, bytes)
    lines = run.tables.log.splitlines(keepends=True)
    finish = next(i for i, line in enumerate(lines) if b'"Finished"' in line)
    arrive = next(i for i, line in enumerate(lines) if b'"Arrived"' in line)
    later = next(i for i, line in enumerate(lines) if i > finish and b'"Finished"' in line)
    for at, event, sentence in ((later, lines[finish], "after its end"), (finish, b'{"s":0,"t":0.0,"e":"Woke","key":"x"}', "ended 0 times"),
                                (arrive, b'{"s":0,"t":0.0,"e":"Woke","key":"x"}', "never arrived")):
        where = {key: json.loads(lines[at])[key] for key in "st"}
        forged = json.dumps({**json.loads(event), **where}).encode() + b"\n"
        run.tables.log = b"".join([*lines[:at], forged, *lines[at + 1 : -1]])  # without the digest at its end
        assert any(sentence in said for said in violations(run)), sentence
