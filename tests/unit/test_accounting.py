"""What was admitted for whom, and which deadlines were met."""

from __future__ import annotations

import pytest

from windtunnel.effects import Dispatch
from windtunnel.errors import ConfigValueError, PolicyClockError
from windtunnel.events import Arrived, Cancelled, Failed, Finished, ReplicaReady, Request, Woke
from windtunnel.policy.admission.accounting import AdmissionShare
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.control import Control
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext
from windtunnel.policy.presets import default_control
from windtunnel.policy.queueing.fair import FairTaskQueue
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.view import Deadlines


def test_AC_3_admission_shares_follow_the_weights_under_saturation() -> None:
    weights, size = {"a": 1.0, "b": 2.0, "c": 4.0}, {"a": 30, "b": 100, "c": 10}
    lane = Lane("x", queue=FairTaskQueue(), admission=RequestAdmission(Fixed(4).build(BuildContext())), router=LeastOutstanding(), cap=4,
                cost="tokens")
    control, share = Control(lanes=[lane], fleet=Fleet(), tenants=weights), AdmissionShare()
    control.handle(ReplicaReady("x-0", "x", slots=4), 0.0)
    running, now, count = [], 0.0, 0
    for _ in range(200):
        for tenant in weights:
            count += 1
            arrived = Request(f"r{count}", tenant, "", 0, now, size[tenant], 10)
            running += [e for e in control.handle(Arrived(arrived), now) if isinstance(e, Dispatch)]
    for _ in range(4000):
        now += 0.02
        done = running.pop(0)
        tenant = done.request.tenant
        effects = list(control.handle(Finished(done.request.id, 1, "x-0", 10, size[tenant]), now))
        count += 1
        effects += control.handle(Arrived(Request(f"r{count}", tenant, "", 0, now, size[tenant], 10)), now)
        running += [e for e in effects if isinstance(e, Dispatch)]
        share.update(control.admitted_tokens(), now)
    assert control.waiting() > 500
    shares = share.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    for tenant, weight in weights.items():
        assert shares[(tenant, 0)] == pytest.approx(weight / 7, rel=0.05)


def test_AC_3_shares_forget_and_are_unknown_at_first() -> None:
    share = AdmissionShare(window_s=1.0)
    assert share.shares() == {}
    share.update({("a", 0): 0}, 0.0)
    assert share.shares() == {}
    share.update({("a", 0): 100}, 1.0)
    assert share.shares() == {("a", 0): 1.0}
    share.update({("a", 0): 100, ("b", 1): 100}, 21.0)
    assert share.shares()[("b", 1)] == pytest.approx(1.0)
    with pytest.raises(PolicyClockError):
        share.update({}, 20.0)
    with pytest.raises(ConfigValueError, match="window_s"):
        AdmissionShare(0.0)


def test_AC_3_deadlines_met_over_requests_that_have_ended() -> None:
    control = default_control(["x"], cap=1)
    control.handle(ReplicaReady("x-0", "x", slots=1), 0.0)

    def arrive(n: int, deadline_s: float | None, now: float, priority: int = 0) -> None:
        control.handle(Arrived(Request(f"r{n}", "t", "", priority, now, 1, 1, deadline_s=deadline_s)), now)

    def seen(priority: int = 0) -> tuple[int, int, float | None]:
        d = control.view().deadlines.get(priority, Deadlines())
        return d.ended, d.met, d.met_ratio

    arrive(1, 5.0, 0.0)
    arrive(2, None, 0.0)
    arrive(3, 9.0, 0.0)
    arrive(4, 9.0, 0.0)
    assert seen() == (0, 0, None), "nothing has ended"
    control.handle(Finished("r1", 1, "x-0", 1), 5.0)
    assert seen() == (1, 1, 1.0), "just in time"
    control.handle(Finished("r2", 1, "x-0", 1), 6.0)
    assert seen() == (1, 1, 1.0), "one without a deadline counts nowhere"
    control.handle(Woke("queue"), 9.0)
    assert seen() == (2, 1, 0.5), "r4 waited too long, r3 runs"
    control.handle(Finished("r3", 1, "x-0", 1), 9.5)
    assert seen() == (3, 1, 1 / 3)
    arrive(5, 9.0, 10.0)
    arrive(6, 99.0, 10.0, priority=1)
    control.handle(Cancelled("r6"), 11.0)
    assert (seen(), seen(1)) == ((4, 1, 0.25), (1, 0, 0.0)), "too late at the door; stopped by its client"
    control.handle(Failed("r6", 1, "x-0", "local_cancelled", "cancelled"), 12.0)
    assert seen(1) == (1, 0, 0.0)
