"""Latest wins: of many moves only the last one is flown to the end."""

from __future__ import annotations

import threading
import time

from windtunnel import Scenario
from windtunnel.cockpit.board import Cockpit
from windtunnel.cockpit.jobs import LatestWins


class Flight:
    """A flight of ten slices."""

    def __init__(self, value: int, flown: list[int]) -> None:
        self.value, self.left, self.flown, self.cancelled, self.done = value, 10, flown, False, False

    def advance(self, budget_s: float = 0.0) -> Flight:
        time.sleep(0.005)
        self.left -= 1
        self.done = self.left <= 0
        return self

    def cancel(self) -> None:
        self.cancelled = True

    def result(self) -> int:
        self.flown.append(self.value)
        return self.value


def wait_for(condition, limit_s: float = 10.0) -> bool:  # type: ignore[no-untyped-def]
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_CW_24_twelve_moves_one_result() -> None:
    shown: list[int] = []
    flown: list[int] = []
    jobs = LatestWins(shown.append, lambda error: None)
    for i in range(12):
        jobs.ask(lambda i=i: Flight(i, flown))
        time.sleep(0.02)
    assert wait_for(lambda: shown == [11])
    assert flown == [11] and jobs.seen == 12 and jobs.started <= 4 and jobs.finished == 1
    jobs.close()
    assert not any(t.name == "windtunnel-cockpit" for t in threading.enumerate())


def test_CW_25_a_failing_job_is_told_and_the_worker_survives() -> None:
    shown: list[int] = []
    errors: list[Exception] = []
    jobs = LatestWins(shown.append, errors.append)

    def broken() -> Flight:
        raise ValueError("no such fleet")

    jobs.ask(broken)
    assert wait_for(lambda: len(errors) == 1)
    jobs.ask(lambda: Flight(7, []))
    assert wait_for(lambda: shown == [7])
    jobs.close()


def test_CW_25_cockpit_without_a_front_end() -> None:
    scenario = Scenario.load("overload").with_({"duration_s": 15.0, "warmup_s": 0.0})
    cockpit = Cockpit(scenario)
    bundle = cockpit._repr_mimebundle_()
    assert "good" in bundle["text/plain"] and cockpit.run is not None
    first = cockpit.pin()
    cockpit.set({"control.admission.limit.decrease_factor": 0.6})
    second = cockpit.run_now()
    assert cockpit.values["control.admission.limit.decrease_factor"] == 0.6
    assert second.meta.scenario_digest != first.meta.scenario_digest
    assert "pinned" in cockpit._plots["limit"].spec["traces"][-1]["light"]["name"]
    direct = scenario.with_({"control.admission.limit.decrease_factor": 0.6}).run()
    assert second.requests.equals(direct.requests)
    started = cockpit._jobs.started
    cockpit._knobs["control.admission.limit.decrease_factor"].value = 0.7
    assert wait_for(lambda: cockpit._jobs.started > started and cockpit.run is not second)
    cockpit.close()


def test_CW_13_a_refused_value_is_a_sentence_and_keeps_the_figures() -> None:
    cockpit = Cockpit(Scenario.load("overload").with_({"duration_s": 5.0, "warmup_s": 0.0}))
    run = cockpit.run_now()
    cockpit._turned("fleet.pools.chat.model", "Llama-9")
    assert cockpit.run is run
    assert 'role="alert"' in cockpit._status.value and "Llama-9" in cockpit._status.value
    cockpit.close()
