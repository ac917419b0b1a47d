"""Split prefill and decode under random traffic, crashes of both roles, drains and cancels at any time: nothing is lost, nothing leaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel import effects as fx
from windtunnel import replay
from windtunnel.events import Cancelled, Commanded, Request, Truth, Woke
from windtunnel.lab.build import build_control, pool_facts
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.lab.history import violations
from windtunnel.lab.recorder import wants_of
from windtunnel.lab.world_simulated import Simulated
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fault_config import Fault
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.transfer import KvLink

MODEL = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8)
AT_S = st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(0.0, 1.5))


class Stormy:
    """Requests (at s, prompt, output), and what happens to them: (at s, "cancel" or "drain", number)."""

    name, loop, needs = "storm", "open", frozenset[str]()

    def __init__(self, jobs: Sequence[tuple[float, int, int]], happenings: Sequence[tuple[float, str, int]]) -> None:
        self._jobs, self._happenings, self._left = sorted(jobs), happenings, len(happenings)

    def stream(self) -> Iterator[Request]:
        for n, (at_s, prompt, output) in enumerate(self._jobs):
            yield Request(f"q{n}", "t", "m", 0, at_s, prompt, output, truth=Truth(output))

    def start(self, now: float) -> list[Any]:
        return [fx.WakeAt(at_s, str(n)) for n, (at_s, _, _) in enumerate(self._happenings)]

    def handle(self, what: Any, now: float) -> list[Any]:
        if not isinstance(what, Woke):
            return []
        self._left -= 1
        _, kind, n = self._happenings[int(what.key)]
        return [Cancelled(f"q{n}")] if kind == "cancel" else [Commanded("drain", {"replica": f"{('prefill', 'decode')[n % 2]}-{n // 2 % 2}"})]

    def done(self) -> bool:
        return not self._left


@settings(max_examples=80, deadline=None)
@given(jobs=st.lists(st.tuples(AT_S, st.integers(1, 150), st.integers(0, 40)), min_size=1, max_size=14),
       happenings=st.lists(st.tuples(AT_S, st.sampled_from(["cancel", "cancel", "drain"]), st.integers(0, 13)), max_size=8),
       crashes=st.lists(st.tuples(AT_S, st.sampled_from(["prefill", "decode"]), st.integers(0, 3), st.booleans()), max_size=4),
       links=st.lists(st.tuples(AT_S, st.sampled_from(["prefill", "decode"]), st.integers(0, 1), st.booleans(), st.sampled_from([0.05, 1.0])),
                      max_size=2),
       blocks=st.integers(12, 40), first=st.sampled_from(["prefill", "decode"]), bandwidth=st.sampled_from([2e8, 5e10]),
       network_s=st.sampled_from([0.0, 0.004]), attempts=st.integers(1, 3), layers=st.sampled_from([None, 32]))
def test_SP_3_everything_ends_once_and_both_sides_are_empty(
        jobs: Any, happenings: Any, crashes: Any, links: Any, blocks: int, first: str, bandwidth: float, network_s: float, attempts: int,
        layers: Any) -> None:
    link = KvLink(bandwidth, 131_072, 0.001, layers)
    pools = {role: Pool(role, "m", "h100_sxm", EngineConfig(role=role, num_blocks=blocks, first_token=first, max_num_seqs=4), MODEL, 2, role=role,
                        link=link) for role in ("prefill", "decode")}
    config = FleetConfig(pools, network_s)
    spec = ControlSpec.model_validate({"preset": "open", "routing": {"kind": "pairs"}, "settings": {"attempts": attempts}})

    def control() -> Any:
        return build_control(spec, pool_facts(config), wants=wants_of("full"))

    faults = [Fault("crash", at_s=at_s, pool=pool, replicas=(n,), restart=restart) for at_s, pool, n, restart in crashes]
    faults += [Fault("link", at_s=at_s, for_s=0.5, pool=pool, replicas=(n,), factor=0.3, down=down, timeout_s=timeout_s)
               for at_s, pool, n, down, timeout_s in links]
    flown = control()
    flight = Simulated(config, record="full", check=True, faults=faults, until=5.0, grace_s=60.0).start(flown, Stormy(jobs, happenings))
    run = flight.result()
    assert violations(run) == []
    assert flown.open_count == 0
    for r in flown.fleet.replicas.values():
        assert (r.in_flight, r.in_flight_tokens, r.prefill_tokens) == (0, 0, 0)
    driver = flight._driver
    seq = driver.seq
    driver.agenda.over = lambda: driver.agenda.now > 70.0
    while not driver.agenda.run_some(256):
        pass  # what the control has given up may still run to its end
    handoffs = driver.handoffs
    assert handoffs is not None and not handoffs._trips and not handoffs.links._flows
    assert all(not m._moves for m in handoffs._movers.values())
    for replica in driver.fleet.replicas.values():
        engine = replica.engine
        assert engine.idle and not replica.promised and engine.kv.used(engine.D) == 0, replica.name
    agreed = replay(run, lambda header: control())
    assert agreed.events == seq
