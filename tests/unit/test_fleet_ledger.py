"""The fleet ledger: own in-flight, scrapes, charges, loss of replicas."""

from __future__ import annotations

import math

import pytest

from windtunnel.errors import ConfigError, PolicyError
from windtunnel.events import ReplicaBooting, ReplicaReady, Request, Scrape, Scraped
from windtunnel.policy.routing.fleet import Fleet


def ask(id: str, tokens: int | None = 100, bound: int | None = 50, **more: object) -> Request:
    return Request(id, "t", "m", 0, 0.0, tokens, bound, **more)  # type: ignore[arg-type]


def fleet_of(*names: str, **options: object) -> Fleet:
    fleet = Fleet(**options)  # type: ignore[arg-type]
    for name in names or ("a-0",):
        fleet.ready(ReplicaReady(name, name.split("-")[0], slots=8), 0.0)
    return fleet


def three_then_four(**options: object) -> Fleet:
    """Three own at 10.0, a fourth at 10.1."""
    fleet = fleet_of(**options)
    for i, t in enumerate((8.0, 9.0, 10.0, 10.1)):
        fleet.sent(ask(f"r{i}"), "a-0", t)
    return fleet


def scraped(fleet: Fleet, at: float, sampled_s: float, running: int | None, waiting: int | None) -> None:
    fleet.scraped(Scraped("a-0", Scrape(sampled_s, running, waiting)), at)


def test_RT_11_worked_table() -> None:
    fleet = three_then_four()
    scraped(fleet, 10.2, 10.0, 3, 2)
    assert fleet.load("a-0", 10.2) == 6
    assert fleet.load("a-0", 13.0) == 6
    assert fleet.load("a-0", 13.1) == 4  # stale: own in flight alone
    for i in range(3):
        fleet.done(f"r{i}", "a-0", 10.3, success=True)
    assert fleet.load("a-0", 10.4) == 3
    fewer = three_then_four()
    scraped(fewer, 10.2, 10.0, 2, 0)
    assert fewer.load("a-0", 10.4) == 4
    unknown = three_then_four()
    scraped(unknown, 10.2, 10.0, 5, None)
    assert unknown.load("a-0", 10.4) == 4  # unknown is not zero, and adds nothing
    assert unknown.view(10.4)[0].scrape == Scrape(10.0, 5, None)


def test_RT_11_other_accountings() -> None:
    since, snapshot = three_then_four(accounting="since_scrape"), three_then_four(accounting="snapshot")
    for fleet in (since, snapshot):
        assert fleet.load("a-0", 10.2) == 4  # without a scrape: own in flight
        scraped(fleet, 10.2, 10.0, 5, 1)
        fleet.done("r0", "a-0", 10.3, success=True)
    assert since.load("a-0", 10.4) == 7  # one send after it; ends are not seen
    assert snapshot.load("a-0", 10.4) == 6
    assert since.load("a-0", 14.0) == snapshot.load("a-0", 14.0) == 3


def test_RT_12_a_delayed_scrape_counts_like_one_on_time() -> None:
    early, late = fleet_of(), fleet_of()
    for fleet in (early, late):
        fleet.sent(ask("x"), "a-0", 9.0)
    scraped(early, 10.0, 10.0, 4, 0)
    for fleet in (early, late):
        fleet.sent(ask("y"), "a-0", 10.5)
        fleet.done("x", "a-0", 11.0, success=True)
    scraped(late, 12.0, 10.0, 4, 0)
    assert early.load("a-0", 12.0) == late.load("a-0", 12.0) == 1 + 3


def test_RT_12_older_than_the_window_is_stale_and_older_than_the_last_is_ignored() -> None:
    fleet = fleet_of(stale_after_s=100.0)
    fleet.sent(ask("x"), "a-0", 1.0)
    scraped(fleet, 40.0, 9.0, 9, 0)
    assert fleet.load("a-0", 40.0) == 1
    scraped(fleet, 41.0, 20.0, 5, 0)
    assert fleet.load("a-0", 41.0) == 5
    scraped(fleet, 42.0, 15.0, 50, 0)
    assert fleet.load("a-0", 42.0) == 5


def test_own_history_outlives_its_trimming() -> None:
    fleet = fleet_of(ledger_window_s=5.0, stale_after_s=5.0)
    for i in range(3000):
        t = i * 0.01
        fleet.sent(ask(f"r{i}"), "a-0", t)
        if i >= 7:
            fleet.done(f"r{i - 7}", "a-0", t, success=True)
    assert len(fleet.replicas["a-0"].sent_at) < 2000
    scraped(fleet, 30.0, 26.0, 10, 0)
    assert fleet.load("a-0", 30.0) == 7 + 3


def test_RT_10_a_stale_scrape_reads_as_none() -> None:
    fleet = fleet_of(scrape_interval_s=2.0)
    scraped(fleet, 1.0, 1.0, 0, 0)
    assert fleet.view(7.0)[0].scrape is not None
    assert fleet.view(7.01)[0].scrape is None


def test_RT_13_charges() -> None:
    fleet = fleet_of()
    assert fleet.sent(ask("a", None, None), "a-0", 0.0) == 1024 + 256
    assert fleet.sent(ask("b", 10, 1000), "a-0", 0.0) == 10 + 256
    assert fleet.sent(ask("c", 30, 7), "a-0", 0.0) == 30 + 7
    fleet.done("b", "a-0", 1.0, success=True, output_tokens=100)
    fleet.done("c", "a-0", 1.0, success=False, output_tokens=1)  # not complete: says nothing of outputs
    assert fleet.sent(ask("d", None, None), "a-0", 2.0) == 20 + 100
    assert fleet.replicas["a-0"].in_flight_tokens == 1280 + 120
    fleet.done("a", "a-0", 3.0, success=True)
    fleet.done("d", "a-0", 3.0, success=True)
    r = fleet.replicas["a-0"]
    assert (r.in_flight, r.in_flight_tokens, r.prefill_tokens) == (0, 0, 0)


def test_RT_13_means_cover_the_last_256_of_a_pool() -> None:
    fleet = fleet_of("a-0", "a-1", "b-0")
    for i in range(300):
        fleet.sent(ask(f"r{i}", 10), "a-0", 0.0)
        fleet.done(f"r{i}", "a-0", 0.0, success=True, output_tokens=1000 if i < 44 else 20)
    assert fleet.sent(ask("x", None, None), "a-1", 1.0) == 10 + 20
    assert fleet.sent(ask("y", None, None), "b-0", 1.0) == 1024 + 256


def test_prefill_tokens_until_the_first_token() -> None:
    fleet = fleet_of()
    fleet.sent(ask("x", 100), "a-0", 0.0)
    fleet.sent(ask("y", 11), "a-0", 0.0)
    fleet.first_token("x", "a-0")
    fleet.first_token("x", "a-0")
    fleet.first_token("nobody", "a-0")
    assert fleet.replicas["a-0"].prefill_tokens == 11
    fleet.done("x", "a-0", 1.0, success=True)
    assert fleet.replicas["a-0"].prefill_tokens == 11


def test_RT_2_ends_that_are_late_change_nothing_and_are_counted() -> None:
    fleet = fleet_of("a-0", "a-1")
    fleet.sent(ask("x"), "a-0", 0.0)
    fleet.done("nobody", "a-0", 1.0, success=True)
    fleet.done("x", "a-1", 1.0, success=True)
    assert fleet.replicas["a-0"].in_flight == 1
    fleet.done("x", "a-0", 1.0, success=True)
    fleet.done("x", "a-0", 1.0, success=True)
    assert fleet.late_done == 3
    assert (fleet.replicas["a-0"].in_flight, fleet.replicas["a-1"].in_flight) == (0, 0)


def test_RT_2_sent_twice_is_an_error() -> None:
    fleet = fleet_of("a-0", "a-1")
    fleet.sent(ask("x"), "a-0", 0.0)
    with pytest.raises(PolicyError, match="in flight"):
        fleet.sent(ask("x"), "a-1", 0.0)
    with pytest.raises(PolicyError, match="no such replica"):
        fleet.sent(ask("y"), "a-9", 0.0)


def test_lost_replica_gives_back_its_attempts_in_dispatch_order() -> None:
    fleet = fleet_of("a-0", "a-1")
    for id, replica, dispatch in (("x", "a-0", 1), ("y", "a-1", 1), ("z", "a-0", 2), ("w", "a-0", 1)):
        fleet.sent(ask(id), replica, 0.0, dispatch)
    fleet.done("x", "a-0", 0.5, success=True)
    fleet.sent(ask("x"), "a-0", 0.6, 2)
    assert fleet.in_flight_of("a-0") == [("z", 2), ("w", 1), ("x", 2)]
    assert fleet.gone("a-0", 1.0) == [("z", 2), ("w", 1), ("x", 2)]
    assert fleet.in_flight_of("a-0") == [] and fleet.gone("a-0", 1.0) == []
    fleet.done("z", "a-0", 2.0, success=False)
    assert fleet.late_done == 1
    fleet.sent(ask("z"), "a-1", 2.0, 3)  # free to be sent again
    assert fleet.replicas["a-1"].in_flight == 2


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_bad_weights_are_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"a-0\.weight"):
        Fleet().ready(ReplicaReady("a-0", "a", weight=weight), 0.0)


@pytest.mark.parametrize("options", [
    {"scrape_interval_s": 0.0}, {"stale_after_s": math.nan}, {"ledger_window_s": -1.0}, {"accounting": "x"},
])
def test_bad_numbers_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Fleet(**options)  # type: ignore[arg-type]


def test_states_counts_and_slots() -> None:
    fleet = fleet_of("a-0", "b-0")
    fleet.booting(ReplicaBooting("a-1", "a"), 0.0)
    assert (fleet.ready_count(("a",)), fleet.coming_count(("a",)), fleet.slots(("a",)), fleet.slots(())) == (1, 1, 8, 16)
    fleet.draining("a-0", 1.0)
    assert (fleet.ready_count(("a",)), fleet.coming_count(("a",)), fleet.slots(("a",))) == (0, 2, None)
    assert fleet.absence(("a",)) == "none_ready"
    fleet.gone("a-1", 1.0)
    assert fleet.absence(("a",)) == "all_draining"
    fleet.undrain("a-0", 2.0)
    fleet.undrain("b-0", 2.0)
    assert [r.id for r in fleet.serving(())] == ["a-0", "b-0"]
    fleet.ready(ReplicaReady("a-2", "a"), 3.0)
    assert fleet.slots(("a",)) is None  # one does not say
    assert [v.ordinal for v in fleet.view(3.0)] == [0, 1, 3]
    assert fleet.absence(("c",)) == "no_replica"


def test_undrained_before_it_ever_served_goes_on_booting() -> None:
    fleet = Fleet()
    fleet.booting(ReplicaBooting("a-0", "a"), 0.0)
    fleet.draining("a-0", 1.0)
    fleet.undrain("a-0", 2.0)
    assert (fleet.replicas["a-0"].state, fleet.ready_count(())) == ("booting", 0)


def test_version_grows_with_every_change() -> None:
    fleet, seen = Fleet(), [0]
    steps = (
        lambda: fleet.booting(ReplicaBooting("a-0", "a"), 0.0), lambda: fleet.ready(ReplicaReady("a-0", "a"), 1.0),
        lambda: fleet.sent(ask("x"), "a-0", 1.0), lambda: scraped(fleet, 2.0, 2.0, 1, 0),
        lambda: fleet.done("x", "a-0", 3.0, success=True),
        lambda: fleet.draining("a-0", 4.0), lambda: fleet.undrain("a-0", 4.0), lambda: fleet.gone("a-0", 5.0),
    )
    for step in steps:
        step()
        assert fleet.version > seen[-1]
        seen.append(fleet.version)


def test_RT_4_candidates() -> None:
    fleet = fleet_of("a-0", "a-1", "b-0")
    fleet.booting(ReplicaBooting("a-2", "a"), 0.0)

    def ids(**more: object) -> list[str]:
        return [r.id for r in fleet.candidates(("a", "b"), ask("x", **more))]

    assert ids() == ["a-0", "a-1", "b-0"]
    assert ids(pool="a") == ["a-0", "a-1"]
    assert ids(tried=frozenset({"a-0", "b-0"})) == ["a-1"]
    assert ids(tried=frozenset({"a-0", "a-1", "b-0"})) == ["a-0", "a-1", "b-0"]
    assert ids(replica="a-1") == ["a-1"]
    assert ids(replica="a-2") == []
    assert fleet.absence(("a", "b"), "a-2") == "none_ready"
