"""Exact inter-token latency from the pieces that runs leave behind."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.sim.tokens import Pieces, itl_percentiles, weighted_percentiles


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 5)), max_size=12), st.lists(st.floats(0.0, 100.0), min_size=1, max_size=4))
def test_SF_8_percentiles_are_those_of_the_multiset_written_out(weighted: list[tuple[float, int]], percents: list[float]) -> None:
    seconds, counts = np.array([s for s, _ in weighted]), np.array([n for _, n in weighted], dtype=np.int64)
    written = np.repeat(seconds, counts)
    ours = weighted_percentiles(seconds, counts, percents)
    if not len(written):
        assert ours == [None] * len(percents)
    else:
        assert ours == pytest.approx(np.percentile(written, percents).tolist(), abs=1e-9)


def test_MX_20_worked() -> None:
    seconds, counts = np.array([1.0, 0.3, 0.1, 0.4, 0.2]), np.ones(5, dtype=np.int64)
    assert weighted_percentiles(seconds, counts, [50, 90, 95, 99]) == pytest.approx([0.3, 0.76, 0.88, 0.976])


def test_SF_8_runs_of_several_engines_are_pooled() -> None:
    one, two = Pieces(), Pieces()
    one.add(0, 3, 2, 0.0, 1.0, 0.5)  # gaps of 1, 1.5 and 2 s, two requests each
    two.add(0, 1, 4, 0.0, 10.0, 0.0)
    two.add(1, 5, 0, 10.0, 99.0, 0.0)  # nobody decodes
    written = [1.0, 1.0, 1.5, 1.5, 2.0, 2.0, 10.0, 10.0, 10.0, 10.0]
    assert itl_percentiles([one, two], [0, 50, 75, 100]) == pytest.approx(np.percentile(written, [0, 50, 75, 100]).tolist())
    assert itl_percentiles([], [50]) == [None]
    assert itl_percentiles([Pieces()], [50, 99]) == [None, None]


def test_SF_8_a_gap_that_began_before_a_step_without_decodes_is_longer() -> None:
    pieces = Pieces()
    pieces.add(0, 2, 3, 0.0, 1.0, 0.0)
    pieces.stand_still(2, 3, 2.0, 5.0)
    pieces.stand_still(2, 4, 7.0, 2.0)  # one has come with the first of them
    pieces.add(2, 1, 5, 9.0, 1.0, 0.0)  # another one with the second
    seconds, counts = pieces.gaps()
    assert sorted(np.repeat(seconds, counts).tolist()) == [1.0] * 6 + [1.0, 3.0, 8.0, 8.0, 8.0]


def test_SF_8_millions_of_gaps_in_one_go() -> None:
    pieces = Pieces()
    for i in range(2000):
        pieces.add(i * 500, 500, 20, i * 10.0, 0.02, 1e-6)
    begun = time.process_time()
    assert itl_percentiles([pieces], [50.0])[0] == pytest.approx(0.02 + 1e-6 * 249.5, abs=1e-6)
    assert time.process_time() - begun < 2.0


@pytest.mark.parametrize("D", [0, 4, 9])
def test_SF_7_a_step_that_did_not_run_has_no_time(D: int) -> None:
    pieces = Pieces()
    pieces.add(0, 3, 1, 1.0, 1.0, 0.5)
    pieces.add(4, 5, 1, 9.0, 1.0, 0.0)
    if D == 9:
        assert pieces.time_of(D) == 14.0
    else:
        with pytest.raises(IndexError):
            pieces.time_of(D)
