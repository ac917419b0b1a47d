"""Service curves, gaps and Jain's index, by hand-made requests."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.lab.fairness import jain, service_curves, service_gap


def table(*rows: tuple[str, float | None, float | None, float | None, int, int | None, str]) -> pd.DataFrame:
    names = ["tenant", "dispatched_s", "first_token_s", "ended_s", "input_tokens", "output_tokens", "outcome"]
    return pd.DataFrame(rows, columns=names)


def test_input_counts_at_once_and_output_evenly() -> None:
    curves = service_curves(table(("A", 1.0, 2.0, 4.0, 10, 20, "success")), [0.0, 1.0, 2.0, 3.0, 4.0, 9.0])
    assert curves["A"].tolist() == [0, 10, 10, 30, 50, 50]


def test_requests_without_success_count_their_input_alone_and_waiting_ones_nothing() -> None:
    curves = service_curves(table(("A", 1.0, 2.0, 4.0, 10, 20, "provider_failure"), ("B", None, None, 5.0, 99, None, "rate_limited")), [9.0])
    assert curves.loc[9.0].to_dict() == {"A": 10.0, "B": 0.0}


def test_an_output_of_one_token_is_a_step() -> None:
    curves = service_curves(table(("A", 0.0, 2.0, 2.0, 0, 1, "success")), [1.999, 2.0])
    assert curves["A"].tolist() == [0.0, 2.0]


def test_many_overlapping_requests_equal_the_sum_of_each() -> None:
    rng = np.random.default_rng(5)
    rows = [("A", float(t), float(t + a), float(t + a + b), int(i), int(o), "success")
            for t, a, b, i, o in zip(rng.uniform(0, 10, 50), rng.uniform(0, 2, 50), rng.choice([0.0, 1.5, 3.0], 50),
                                     rng.integers(0, 99, 50), rng.integers(1, 99, 50))]
    grid = np.linspace(0, 16, 33)
    naive = np.zeros(33)
    for _, sent, first, last, i, o, _ in rows:
        for n, t in enumerate(grid):
            naive[n] += i * (t >= sent) + 2 * (o * (t >= first) if first == last else o * min(1.0, max(0.0, (t - first) / (last - first))))
    assert np.allclose(service_curves(table(*rows), grid)["A"], naive)


def test_the_gap_counts_from_a_time_on_and_by_weight() -> None:
    curves = pd.DataFrame({"A": [5.0, 10.0, 30.0], "B": [0.0, 0.0, 5.0]}, index=[0.0, 1.0, 2.0])
    assert service_gap(curves, "A", "B", weights=(2.0, 1.0), since_s=1.0).tolist() == [0.0, 5.0]
    with pytest.raises(ConfigValueError, match="no tenant 'C'"):
        service_gap(curves, "A", "C")


def test_jain() -> None:
    assert jain([3, 3, 3]) == 1.0 and jain([1, 0, 0, 0]) == 0.25 and math.isclose(jain([1, 19]), 0.5525, abs_tol=1e-4)
    assert math.isnan(jain([])) and math.isnan(jain([0.0, 0.0]))
