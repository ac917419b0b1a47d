"""Out of an engine: the host's way to the caller."""

from __future__ import annotations

from collections.abc import Callable

from windtunnel.sim.agenda import COMPLETION, Agenda
from windtunnel.sim.attempt import Attempt


def later(agenda: Agenda, seconds: float, tell: Callable[[Attempt], None], times: bool) -> Callable[[Attempt], None]:
    """What an engine has done reaches the caller `seconds` later. times: the attempt's times become the caller's, at its end."""

    def told(a: Attempt) -> None:
        if times:
            a.finished_s = agenda._now + seconds
            if a.first_token_s is not None:
                a.first_token_s += seconds
        agenda.at(agenda._now + seconds, COMPLETION, lambda _: tell(a))

    return told
