"""What policies see of a simulated fleet, and when: scrapes, their own dispatches, progress."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from driver_flights import SECOND, TEXT, Ear, drive, scenario

from windtunnel.effects import Dispatch
from windtunnel.events import Arrived, Failed, Finished, Progressed, ReplicaGone, ReplicaReady, Request, Scraped
from windtunnel.lab.history import violations
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.driver import SimDriver
from windtunnel.sim.fleet_config import Pool
from windtunnel.sim.followers import EVERY_TOKENS
from windtunnel.sim.stepmodels.affine import Affine


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
