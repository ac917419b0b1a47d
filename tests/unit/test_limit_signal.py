"""Which latency a limit learns from."""

from __future__ import annotations

from typing import Any

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.events import Arrived, Finished, ReplicaReady, Request
from windtunnel.lab.build import build_control
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.request import RequestAdmission
from windtunnel.policy.lane import Lane
from windtunnel.policy.param import BuildContext, PoolFacts
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.routing.roundrobin import RoundRobin


def learned(signal: str | None, output_tokens: int | None = 11, first_token_s: float | None = 3.0) -> float | None:
    """The mean latency of an AIMD limit after one answer: sent at 1.0, first token at 3.0, end at 8.0."""
    admission: dict[str, Any] = {} if signal is None else {"signal": signal}
    control = build_control(ControlSpec.model_validate({"admission": admission}), [PoolFacts("x")])
    control.handle(ReplicaReady("x-0", "x", slots=1), 0.0)
    control.handle(Arrived(Request("r", "t", "", 0, 1.0, 1, 20)), 1.0)
    control.handle(Finished("r", 1, "x-0", output_tokens, first_token_s=first_token_s), 8.0)
    limit: Any = control.lanes[0].admission._resources["x"].limit
    rtt_s: float | None = limit.rtt_s
    return rtt_s


@pytest.mark.parametrize(("signal", "seconds"), [(None, 2.0), ("ttft", 2.0), ("per_token", 0.5), ("rtt", 7.0)])
def test_LM_2_the_signal_is_the_time_to_the_first_token_unless_told_otherwise(signal: str | None, seconds: float) -> None:
    assert learned(signal) == pytest.approx(seconds)


def test_LM_2_an_answer_that_does_not_say_teaches_nothing() -> None:
    assert learned("ttft", first_token_s=None) is None
    for tokens, first_s in ((1, 3.0), (0, 3.0), (None, 3.0), (11, None)):
        assert learned("per_token", tokens, first_s) is None
    assert learned("rtt", None, None) == 7.0


def test_LM_2_a_signal_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigValueError, match="signal"):
        Lane("x", queue=FifoQueue(), admission=RequestAdmission(Fixed(1).build(BuildContext())), router=RoundRobin(), signal="e2e")  # type: ignore[arg-type]
    with pytest.raises(Exception, match="signal"):
        ControlSpec.model_validate({"admission": {"signal": "e2e"}})
