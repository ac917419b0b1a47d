"""One lane over the pool `chat`, and what its effects say: for tests of how requests wait and end."""

from __future__ import annotations

from collections.abc import Mapping

from chat_request import chat_request

from windtunnel.effects import Dispatch, Effect, Reject, WakeAt
from windtunnel.events import (
    Arrived,
    Event,
    Failed,
    Finished,
    ReplicaReady,
)
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.breaker import Breaker, BreakerGate
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.settings import ControlSettings


class Bench:
    """A control with one lane over the pool `chat`; `do` handles an event and checks the books."""

    def __init__(self, *, limit: int = 1, queue: Queue | None = None, breaker: BreakerGate | None = None, aimd: Aimd | None = None,
                 replicas: int = 1, **settings: object) -> None:
        settings.setdefault("cancellation_deadline_s", None)  # tests of their own: test_control_commands.py
        factory = (aimd or Fixed(limit)).build(BuildContext())
        self.admission = RequestAdmission(factory, breaker=Breaker(breaker) if breaker else None)
        self.lane = Lane("chat", queue=FairTaskQueue() if queue is None else queue, admission=self.admission,
                         router=LeastOutstanding(pools=("chat",)), models=frozenset({"m"}))
        self.control = Control(lanes=(self.lane,), fleet=Fleet(), settings=ControlSettings(**settings))  # type: ignore[arg-type]
        for n in range(replicas):
            self.do(ReplicaReady(f"chat-{n}", "chat", slots=8), 0.0)

    def do(self, event: Event, now: float) -> list[Effect]:
        effects = list(self.control.handle(event, now))
        self.control.check()
        return effects

    def arrive(self, id: str, now: float, *, tenant: str = "t", priority: int = 0, **more: object) -> list[Effect]:
        return self.do(Arrived(chat_request(id, tenant, now, priority=priority, **more)), now)

    def finish(self, id: str, now: float, *, dispatch: int = 1, replica: str = "chat-0") -> list[Effect]:
        return self.do(Finished(id, dispatch, replica, 64, 100, 0, None, now - 0.5), now)

    def fail(self, id: str, now: float, outcome: str = "provider_failure", *, dispatch: int = 1, replica: str = "chat-0",
             reason: str = "crash", **more: object) -> list[Effect]:
        return self.do(Failed(id, dispatch, replica, outcome, reason, **more), now)  # type: ignore[arg-type]

    @property
    def counts(self) -> Mapping[str, int]:
        """Those that are not zero."""
        counts = self.control.view().counts
        return {n: v for n in type(counts).__dataclass_fields__ if (v := getattr(counts, n))}

    @property
    def in_flight(self) -> int:
        return self.admission.in_flight("chat")


def sent(effects: list[Effect]) -> list[tuple[str, int, str]]:
    return [(e.request.id, e.dispatch, e.replica) for e in effects if isinstance(e, Dispatch)]


def refused(effects: list[Effect]) -> list[tuple[str, str, str, str]]:
    """(request, reason, state, outcome)."""
    return [(e.request_id, str(e.denial.reason), e.state, e.outcome) for e in effects if isinstance(e, Reject)]


def wakes(effects: list[Effect]) -> dict[str, float | None]:
    return {e.key: e.at for e in effects if isinstance(e, WakeAt)}
