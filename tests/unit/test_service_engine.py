"""A station that serves in seconds, by hand: who starts when, who ends when, what a cancel, a crash and another speed do."""

from __future__ import annotations

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.attempt import Attempt, Refusal
from windtunnel.sim.job import Job
from windtunnel.sim.service import DISCIPLINES, ServiceConfig, Station, service_engine
from windtunnel.sources.dist import Const

Work = tuple[float, float, int]  # arrival s, seconds of work, priority


class Bench:
    def __init__(self, config: ServiceConfig, **options: object) -> None:
        self.agenda, self.ended, self.cancelled, self.refused = Agenda(), [], [], []
        self.engine: Station = service_engine("r", config, self.agenda, on_finish=self.ended.append, on_cancelled=self.cancelled.append, **options)

    def send(self, *works: Work) -> list[Job]:
        jobs = []
        for i, (at, work, priority) in enumerate(works):
            job = Job(f"q-{i}", 1, 10, 5, priority, work)
            jobs.append(job)
            self.agenda.at(at, ARRIVAL, lambda _, job=job: self._submit(job))
        return jobs

    def _submit(self, job: Job) -> None:
        refusal = self.engine.submit(job)
        if refusal is not None:
            self.refused.append((job.id, refusal))

    def at(self, when: float, do) -> None:
        self.agenda.at(when, ARRIVAL, lambda _: do())


WORKS = ((0.0, 4.0, 1), (1.0, 3.0, 1), (2.0, 1.0, 0), (3.0, 2.0, 0))


@pytest.mark.parametrize(("discipline", "ends"), [
    ("fcfs", [4, 7, 8, 10]), ("priority", [4, 10, 5, 7]), ("sjf", [4, 10, 5, 7]), ("preemptive", [7, 10, 3, 5]),
    # srpt: at 1 the first has 3 left, as the second (no change); at 2 it has 2 left, 1 is less; 3: 2 left and 2 (no change)
    ("srpt", [5, 10, 3, 7]),
    # ps, left at 3: 13/6, 13/6, 2/3, 2; four share until the third ends, then three, then the first two together
    ("ps", [10.0, 10.0, 17 / 3, 29 / 3]),
])
def test_SQ_1_disciplines_by_hand(discipline: str, ends: list[float]) -> None:
    bench = Bench(ServiceConfig(discipline=discipline))
    jobs = bench.send(*WORKS)
    bench.agenda.run()
    got = [j.finished_s for j in jobs]
    assert got == pytest.approx(ends, abs=1e-12)
    assert bench.engine.idle and bench.engine.busy_s == pytest.approx(10.0) and bench.engine.served_s == 10.0
    assert bench.engine.steps == 4 and bench.engine.output_tokens == 20 and bench.engine.prompt_tokens == 40
    assert all(j.first_token_s == j.finished_s and j.generated == 5 for j in jobs)


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_SQ_1_equal_times_two_servers_and_an_empty_one(discipline: str) -> None:
    bench = Bench(ServiceConfig(2, discipline))
    jobs = bench.send((0.0, 1.0, 0), (0.0, 1.0, 0), (0.0, 1.0, 0), (9.0, 0.0, 0))
    bench.agenda.run()
    assert [j.finished_s for j in jobs] == ([1.5, 1.5, 1.5, 9.0] if discipline == "ps" else [1.0, 1.0, 2.0, 9.0])
    assert bench.engine.load == bench.engine.running == bench.engine.waiting == 0


def test_SQ_1_preempted_ones_resume_where_they_were() -> None:
    bench = Bench(ServiceConfig(discipline="preemptive"))
    first, second = bench.send((0.0, 2.0, 1), (1.0, 1.0, 0))
    bench.agenda.run()
    assert (first.finished_s, second.finished_s, first.preemptions, bench.engine.preemptions, first.started_s) == (3.0, 2.0, 1, 1, 0.0)


def test_SQ_1_full_stations_refuse() -> None:
    bench = Bench(ServiceConfig(1, capacity=2, reject_status=429))
    bench.send((0.0, 5.0, 0), (1.0, 5.0, 0), (2.0, 5.0, 0), (10.0, 1.0, 0))
    bench.agenda.run()
    assert bench.refused == [("q-2", Refusal(429, "engine_queue_full"))] and [a.id for a in bench.ended] == ["q-0", "q-1", "q-3"]


def test_SQ_1_batches_and_starts_after_empty() -> None:
    bench = Bench(ServiceConfig(batch=2, setup_s=3.0))
    jobs = bench.send((0.0, 1.0, 0), (1.0, 7.0, 0), (2.0, 2.0, 0), (20.0, 1.0, 0))
    bench.agenda.run()
    assert [j.finished_s for j in jobs] == [4.0, 4.0, 6.0, 24.0]  # the batch takes the first one's second
    assert (bench.engine.setups, bench.engine.batches) == (2, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_SQ_1_cancel_of_a_served_and_of_a_waiting_one(discipline: str) -> None:
    bench = Bench(ServiceConfig(discipline=discipline))
    a, b, c = bench.send((0.0, 4.0, 0), (1.0, 4.0, 0), (1.0, 4.0, 0))
    bench.at(2.0, lambda: (bench.engine.cancel("q-0", 1), bench.engine.cancel("q-2", 1)))
    bench.agenda.run()
    assert bench.cancelled == [a, c] and bench.ended == [b] and a.cancelled and a.finished_s is None
    assert b.finished_s == pytest.approx(2 + 4 - (1 / 3 if discipline == "ps" else 0))
    assert not bench.engine.cancel("q-1", 1) and not bench.engine.cancel("nobody", 1)


def test_SQ_1_cancel_in_a_batch() -> None:
    bench = Bench(ServiceConfig(batch=2))
    a, b, c = bench.send((0.0, 4.0, 0), (0.0, 1.0, 0), (0.0, 1.0, 0))
    bench.at(2.0, lambda: bench.engine.cancel("q-0", 1))
    bench.agenda.run()
    assert a.finished_s is None and (b.finished_s, c.finished_s) == (3.0, 3.0)  # alone in its batch: the server is free at once


@pytest.mark.parametrize("config", [*(ServiceConfig(1, d) for d in DISCIPLINES), ServiceConfig(batch=2), ServiceConfig(setup_s=0.0)])
def test_SQ_1_half_speed_from_the_middle_and_a_loss(config: ServiceConfig) -> None:
    bench = Bench(config)
    (job,) = bench.send((0.0, 4.0, 0))
    bench.at(1.0, lambda: bench.engine.set_speed(2.0))
    bench.agenda.run(until=2.0)
    assert bench.engine.state_at(2.0).running == 1 and bench.engine.progress_at(2.0) == (("q-0", 0),)
    bench.agenda.run()
    assert job.finished_s == 7.0
    (lost,) = bench.send((8.0, 4.0, 0))
    bench.at(9.0, lambda: bench.engine.drop_all("crash"))
    bench.agenda.run()
    assert lost.finished_s is None and bench.engine.idle and bench.engine.steps == 1


@pytest.mark.parametrize(("change", "field"), [
    ({"servers": 0}, "servers"), ({"discipline": "lifo"}, "discipline"), ({"capacity": 0}, "capacity"), ({"servers": 3, "capacity": 2}, "capacity"),
    ({"batch": 2, "servers": 2}, "batch"), ({"setup_s": 1.0, "discipline": "ps"}, "setup_s"), ({"setup_s": float("nan")}, "setup_s"),
    ({"reject_status": 200}, "reject_status")])
def test_bad_stations_are_refused(change: dict, field: str) -> None:
    with pytest.raises(ConfigValueError, match=field):
        ServiceConfig(**change)


def test_what_needs_seconds_of_work_or_a_generator_says_so() -> None:
    bench = Bench(ServiceConfig())
    with pytest.raises(ConfigValueError, match="service time"):
        bench.engine.submit(Attempt("x", 1, 10, 5))
    random = Bench(ServiceConfig(setup_s=Const(1.0)))
    with pytest.raises(ValueError, match="rng"):
        random.engine.submit(Job("x", 1, 1, 1, 0, 1.0))
