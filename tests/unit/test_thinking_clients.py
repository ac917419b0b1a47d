"""A closed loop of clients that think, ask and wait; and the laws of service times."""

from __future__ import annotations

import numpy as np
import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.lab.validation.laws import LAWS
from windtunnel.lab.validation.station import fly
from windtunnel.sim.service import MANY, ServiceConfig
from windtunnel.sources.arrivals import ArrivalSource
from windtunnel.sources.closed import ThinkingClients
from windtunnel.sources.dist import BoundedPareto, Const, Gamma, Hyperexponential, dist_of

ONE = Const(1.0)


def clients(n: int, think: float, count: int, service: float = 1.0) -> ThinkingClients:
    return ThinkingClients(n, Const(think), count=count, input_tokens=ONE, output_tokens=ONE, service_s=Const(service))


def test_two_clients_at_one_server_take_turns() -> None:
    f = fly(clients(2, 1.0, 5), ServiceConfig())
    assert f.arrived_s.tolist() == [1.0, 1.0, 3.0, 4.0, 5.0] and f.ended_s.tolist() == [2.0, 3.0, 4.0, 5.0, 6.0]


def test_exactly_count_requests_come_and_more_clients_than_requests_do_no_harm() -> None:
    assert len(fly(clients(10, 0.5, 3), ServiceConfig(MANY)).ids) == 3
    assert fly(clients(1, 0.0, 4, 0.0), ServiceConfig()).done.all()  # neither thinking nor working takes time


def test_a_refused_client_thinks_and_asks_again() -> None:
    f = fly(clients(2, 1.0, 6), ServiceConfig(1, capacity=1))
    assert len(f.ids) == 6 and 0 < f.done.sum() < 6


@pytest.mark.parametrize(("field", "n", "count"), [("clients", 0, 1), ("count", 1, 0), ("clients", 1.5, 1)])
def test_impossible_loops_are_refused(field: str, n: float, count: int) -> None:
    with pytest.raises(ConfigValueError, match=field):
        clients(n, 1.0, count)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "cv2"), [
    ("Exp", 1.0), ("D", 0.0), ("Erlang-2", 0.5), ("U(0,2)", 1 / 3), ("H2 cv² 4", 4.0), ("lognormal cv² 2", 2.0)])
def test_SQ_3_laws_have_mean_one_and_their_variation(name: str, cv2: float) -> None:
    values = LAWS[name].sample(np.random.default_rng(1), 400_000)
    assert LAWS[name].expected() == pytest.approx(1.0) and values.mean() == pytest.approx(1.0, rel=0.02)
    assert values.var() == pytest.approx(cv2, rel=0.06, abs=1e-9) and (values >= 0).all()


def test_SQ_3_the_bounded_pareto_of_the_table() -> None:
    law = BoundedPareto(1.5, 1.0, 1000.0)
    assert law.expected() == pytest.approx(2.9052235414, rel=1e-9)
    values = law.sample(np.random.default_rng(2), 100_000)
    assert values.min() >= 1.0 and values.max() <= 1000.0
    assert np.mean(values > 10) == pytest.approx((10**-1.5 - 1000**-1.5) / (1 - 1000**-1.5), rel=0.05)
    assert BoundedPareto(1.0, 1.0, 10.0).expected() == pytest.approx(np.log(10) / 0.9)


def test_SQ_3_balanced_phases_of_the_hyperexponential() -> None:
    p = (1 + np.sqrt(3 / 5)) / 2
    assert (p, 2 * p, 2 * (1 - p)) == pytest.approx((0.8872983346, 1.7745966692, 0.2254033308))
    assert Hyperexponential(2.0, 1.0).expected() == 2.0  # cv 1 is the exponential law


@pytest.mark.parametrize(("data", "kind"), [
    ({"kind": "gamma", "mean": 2, "cv": 0.5}, Gamma), ({"kind": "hyperexp", "mean": 1, "cv": 2}, Hyperexponential),
    ({"kind": "pareto", "alpha": 1.5, "lo": 1, "hi": 10}, BoundedPareto)])
def test_new_laws_by_name(data: dict, kind: type) -> None:
    assert isinstance(dist_of(data), kind)


@pytest.mark.parametrize("law", [lambda: Hyperexponential(1.0, 0.5), lambda: Gamma(0.0, 1.0), lambda: BoundedPareto(1.5, 2.0, 2.0)])
def test_laws_that_do_not_exist(law) -> None:
    with pytest.raises(ConfigValueError):
        law()


def test_work_and_patience_do_not_move_arrivals_or_lengths() -> None:
    def drawn(**more):
        source = ArrivalSource(2.0, input_tokens={"kind": "exp", "mean": 50}, output_tokens={"kind": "exp", "mean": 9}, count=200, rng=3, **more)
        return list(source.stream())

    plain, timed = drawn(), drawn(service_s={"kind": "exp", "mean": 1}, patience_s=4.0)
    assert [(r.arrived_s, r.input_tokens, r.max_tokens) for r in plain] == [(r.arrived_s, r.input_tokens, r.max_tokens) for r in timed]
    assert all(r.truth.service_s is None and r.deadline_s is None for r in plain)
    assert all(r.truth.service_s > 0 and r.deadline_s == r.arrived_s + 4.0 for r in timed)
