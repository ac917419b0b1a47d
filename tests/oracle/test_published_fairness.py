"""Token fairness behind the engine of the paper, end to end through control and driver."""

from __future__ import annotations

from windtunnel.lab.validation.fairness import run_first_come, run_three_clients, run_two_clients


def test_SQ_40_two_clients_as_published() -> None:
    checks = run_two_clients(4)
    assert [c.metric for c in checks if not c.passed] == [] and len(checks) == 4


def test_SQ_40_three_clients_and_those_who_ask_for_little() -> None:
    assert [c for c in run_three_clients(4) if not c.passed] == []


def test_SQ_40_a_single_line_breaks_the_bound() -> None:
    (check,) = run_first_come()
    assert check.passed and check.got > 200_000
