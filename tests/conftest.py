"""Shared by all tests: guards against policies that peek at what they must not read, and the nightly profile of the state machines.

    HYPOTHESIS_PROFILE=nightly pytest tests/property    each state machine runs at least 100 000 steps; how many is said at the end
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine

os.environ.setdefault("WINDTUNNEL_QUIET", "1")

STEPS, EXAMPLES, LONGEST_S = 100, 1500, 3600
settings.register_profile("nightly", max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, print_blob=True,
                          suppress_health_check=list(HealthCheck))
if "HYPOTHESIS_PROFILE" in os.environ:
    settings.load_profile(os.environ["HYPOTHESIS_PROFILE"])

steps: Counter[str] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Machines state how little they do by day; by night the profile says how much."""
    if settings.get_current_profile_name() != "nightly":
        return
    count_steps()
    for item in items:
        machine = getattr(item, "cls", None)
        item.add_marker(pytest.mark.timeout(LONGEST_S))
        if isinstance(getattr(machine, "settings", None), settings):
            machine.settings = settings.get_profile("nightly")  # type: ignore[union-attr]


def count_steps() -> None:
    check = RuleBasedStateMachine.check_invariants

    def counted(self: RuleBasedStateMachine, *args: Any, **named: Any) -> None:
        steps[type(self).__name__] += 1  # called once after every step
        check(self, *args, **named)

    RuleBasedStateMachine.check_invariants = counted  # type: ignore[method-assign]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker process hands its count to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["steps"] = dict(steps)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    steps.update(getattr(node, "workeroutput", {}).get("steps", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, count in sorted(steps.items()):
        terminalreporter.write_line(f"{name}: {count:,} steps")
    if steps:
        terminalreporter.write_line(f"all machines: {steps.total():,} steps")
