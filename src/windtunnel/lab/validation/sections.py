"""What the validation page holds: sections in order, each a list of jobs that fly on their own. A new section is one line of `SECTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from windtunnel.lab.validation import batching, fairness, measured, published, queueing, vidur
from windtunnel.lab.validation.check import Check

Job = Callable[[], Sequence[Check]]


@dataclass(frozen=True, slots=True)
class Section:
    """title: as in its checks; about: what is compared with what; jobs: the long ones first; slow: only in the full selection."""

    title: str
    about: str
    jobs: tuple[Job, ...]
    slow: tuple[Job, ...] = ()


SECTIONS: tuple[Section, ...] = (
    Section(queueing.PATHWISE, "Every wait (or, when the server is shared, every end) of a simulated queue against a recursion that knows no events: "
            "Lindley, Kiefer–Wolfowitz, processor sharing. Requests pass the real control, router, driver and fleet.",
            tuple(partial(queueing.run_path, p) for p in queueing.PATHS)),
    Section(queueing.STEADY, "Closed forms and numerical solutions of queueing theory, mean service time 1 s, against one long run each; 95 % "
            "intervals by batch means over what is left after the first 5 %. An interval that is too wide counts as a failure.",
            tuple(partial(queueing.run_case, c) for c in queueing.CASES if not c.slow),
            slow=tuple(partial(queueing.run_case, c) for c in queueing.CASES if c.slow)),
    Section(batching.SECTION, "The step loop of the engine `vllm` against the birth–death chain that it is when a step takes 20 ms + 0.2 ms per "
            "sequence, 200 tokens on average.", tuple(partial(batching.run_load, x) for x in batching.LOADS if not x.slow),
            slow=tuple(partial(batching.run_load, x) for x in batching.LOADS if x.slow)),
    Section(vidur.SECTION, "The same request files, batching rules and step times: steps must be equal, times equal to a millionth. It shows that "
            "the step loop does what another implementation does, not that its step times are right.",
            tuple(partial(vidur.run_vidur, r) for r in vidur.EXPECTED)),
    Section(published.PREFIX, "Hit share by block of the prefix cache alone, fed with the prompts of the trace in order, at six capacities and "
            "in both orders of touching.", (published.run_prefix,)),
    Section(fairness.SECTION, "Token fairness behind the paper's engine: the throughput, the mean waits and the bound on the gap of service, over 16 "
            "flights with phases of their own and 1.5 % jitter of step times. The paper's queue sits inside the engine; ours sits in front and lets "
            "26 requests through, what the pool holds on average. That number is ours, settled after trying others, and so are the 600 s of the "
            "three clients, which the published numbers fit and 360 s do not. The last rows show what hangs on the number.",
            (fairness.run_two_clients, fairness.run_three_clients, fairness.run_first_come, fairness.run_limits)),
    Section(measured.SECTION, "Median absolute relative error of TTFT, TPOT and throughput; each measurement predicted by a fit that did not see it.",
            (measured.run_silicon,)),
    Section(measured.RUNS_SECTION, "Two runs of vLLM 0.19.0 in overload, 300 requests each, replayed request by request. Cross-validated: blocks of "
            "20 requests are predicted by a fit that was scored on the others; they share a queue with those, so that it tests the form of the "
            "model more than a new load. The uncalibrated rows show what a roofline and measured operators give by themselves.",
            (measured.run_vllm,)),
)

NOT_VALIDATED = (
    "Request by request, only two recorded runs were at hand, both of one engine and both in overload; calm load and other engines are held "
    "against published means only.",
    "Your machine: no claim about your GPU, model or engine version holds before a calibration on them; an uncalibrated roofline is far off (see "
    "the errors above).",
    "The tail of TTFT of real engines near saturation: published points are means of closed loops.",
    "Transfer of KV blocks between prefill and decode replicas, speculative decoding and swapping: tested against their own rules, not against "
    "measurements.",
    "Boot times, spot losses and scaling: durations are assumptions of a scenario.",
    "Costs and energy: prices are examples, power is an assumed share of the rated power.",
    "The queueing checks hold for stationary Poisson arrivals; bursts and daily swings have no closed form and are tested for conservation only.",
    "Network delay is one constant each way; there is no loss and no jitter.",
)
