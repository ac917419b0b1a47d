"""Exact gaps between tokens of a run: all together, by tenant, across preemptions, transfers and stops; steps taken one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel import Run, Scenario
from windtunnel.errors import RunNotRecordedError
from windtunnel.events import Request, Truth
from windtunnel.lab import itl
from windtunnel.lab.build import build_control, pool_facts
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.lab.metrics import Requests
from windtunnel.lab.world_simulated import Simulated
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fault_config import Fault
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.specdecode import SpecDecode
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.tokens import itl_percentiles
from windtunnel.sim.transfer import KvLink

MODEL = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8)
ENGINES: dict[str, dict[str, Any]] = {
    "plain": {}, "tight": {"num_blocks": 14}, "swap": {"num_blocks": 14, "preemption": "swap", "swap_blocks": 100, "pcie_bw": 1e9,
                                                       "kv_bytes_per_token": 131_072.0},
    "prefill_first": {"policy": "prefill_first"}, "noise": {"noise_cv": 0.1},
    "expected": {"spec_decode": SpecDecode(3, 0.7)}, "sampled": {"spec_decode": SpecDecode(3, 0.7, mode="sampled"), "num_blocks": 16},
}


class Jobs:
    name, loop, needs = "jobs", "open", frozenset[str]()

    def __init__(self, jobs: Sequence[tuple[float, int, int]]) -> None:
        self._jobs = sorted(jobs)

    def stream(self) -> Iterator[Request]:
        for n, (at_s, prompt, output) in enumerate(self._jobs):
            yield Request(f"q{n}", "ab"[n % 2], "m", 0, at_s, prompt, output, truth=Truth(output))

    def start(self, now: float) -> Sequence[Any]:
        return ()

    def handle(self, what: Any, now: float) -> Sequence[Any]:
        return ()

    def done(self) -> bool:
        return True


def config(engine: dict[str, Any], replicas: int = 1) -> FleetConfig:
    return FleetConfig({"chat": Pool("chat", "m", "h100_sxm", EngineConfig(max_num_seqs=8, **engine), MODEL, replicas)})


def split(engine: dict[str, Any]) -> FleetConfig:
    return FleetConfig({role: Pool(role, "m", "h100_sxm", EngineConfig(max_num_seqs=8, role=role, **engine), MODEL, 1, role=role,
                                   link=KvLink(1e9, 131_072.0)) for role in ("prefill", "decode")})


def fly(fleet: FleetConfig, jobs: Sequence[tuple[float, int, int]], **world: Any) -> tuple[Run, Any]:
    kind = "pairs" if "decode" in fleet.pools else "least_outstanding"
    control = build_control(ControlSpec.model_validate({"preset": "open", "routing": {"kind": kind}}), pool_facts(fleet))
    flight = Simulated(fleet, itl=True, **world).start(control, Jobs(jobs))
    return flight.result(), flight._driver


def by_tokens(driver: Any, run: Run, attempts: dict[str, Any]) -> dict[str, list[float]]:
    """Gaps from token times, one by one; several tokens of one step are one gap."""
    out: dict[str, list[float]] = {}
    for id, (a, pieces) in attempts.items():
        times = [pieces.token_time(a, n) for n in range(1, a.generated + 1)]
        out[id] = [float(g) for g in np.diff(times) if g > 0]
    return out


JOBS = st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=14)


@settings(max_examples=60, deadline=None)
@given(JOBS, st.sampled_from(sorted(ENGINES)), st.booleans())
def test_SF_8_pooled_and_by_tenant_are_the_gaps_of_every_token(jobs: Any, engine: str, apart: bool) -> None:
    from windtunnel.sim.decodes import Decodes

    fleet = split(ENGINES[engine]) if apart else config(ENGINES[engine])
    attempts: dict[str, Any] = {}
    note = Decodes._note

    def keep(self: Decodes, name: str, a: Any) -> None:
        attempts[a.id] = (a, self._fleet.replicas[name].engine.pieces)
        note(self, name, a)

    Decodes._note = keep  # type: ignore[method-assign]
    try:
        run, driver = fly(fleet, jobs)
    finally:
        Decodes._note = note  # type: ignore[method-assign]
    rows = Requests(run.tables.arrow("requests"))
    gaps = itl.Gaps(run.tables, rows)
    wanted = by_tokens(driver, run, attempts)
    for keep_ids in (set(wanted), {i for i in wanted if int(i[1:]) % 2}):
        seconds, counts = gaps.of(np.array([i in keep_ids for i in rows.ids]))
        found = np.sort(np.repeat(seconds, counts))
        each = np.sort(np.array([g for i in sorted(keep_ids) for g in wanted[i]]))
        assert len(found) == len(each)
        assert np.allclose(found, each, rtol=0, atol=1e-9)
    if engine != "sampled":
        pooled = itl_percentiles([r.engine.pieces for r in driver.fleet.replicas.values()], [50, 90, 99])
        summary = run.summary().values
        assert [summary[f"itl_s.p{p}"] for p in (50, 90, 99)] == pytest.approx(pooled, abs=1e-9)


def test_SF_8_worked_one_request() -> None:
    run, _ = fly(FleetConfig({"chat": Pool("chat", "m", "h", EngineConfig(), MODEL, 1)}), [(0.0, 100, 4)])
    times = [0.008620, 0.014642424, 0.020664872, 0.026687344]
    gaps = np.diff(times)
    assert run.metric("itl_s.min") == pytest.approx(gaps.min(), abs=1e-12)
    assert run.metric("itl_s.p50") == pytest.approx(float(np.median(gaps)), abs=1e-12)
    assert run.metric("itl_s.count") == 3.0
    assert run.metric("itl_s.p99[tenant=nobody]") is None


def test_SF_8_a_transfer_is_one_gap_and_by_tenant_in_the_summary() -> None:
    run, _ = fly(split({}), [(0.0, 100, 3), (1.0, 100, 3)])
    by = run.summary(by="tenant").by.set_index("tenant")
    assert list(by["itl_s.n"]) == [2, 2]
    step_s = 6e-3 + 2e-5
    assert run.metric("itl_s.max") == pytest.approx(100 * 131_072 / 1e9 + step_s + 2.4e-8 * 101, abs=1e-9)
    assert by["itl_s.p99"]["a"] == pytest.approx(run.metric("itl_s.p99[tenant=a]"))
    assert "itl_s" in run.summary().text
    assert run.summary().table.loc["itl_s", "n"] == 4
    assert run.summary().to_dict()["itl_s"]["n"] == 4


def test_SF_8_a_lost_replica_keeps_what_was_yielded() -> None:
    run, _ = fly(config({}), [(0.0, 100, 50)], faults=[Fault("crash", at_s=0.1, pool="chat")])
    assert run.metric("itl_s.count") == (0.1 - 0.00862) // 0.00603


def test_SF_8_survives_saving_and_is_not_there_unless_asked(tmp_path: Any) -> None:
    scenario = Scenario.load("overload").with_({"duration_s": 5.0, "warmup_s": 0.0})
    run = scenario.run(record="full")
    loaded = Run.load(run.save(tmp_path / "run"))
    assert loaded.summary().values["itl_s.p99"] == run.summary().values["itl_s.p99"] > 0
    plain = scenario.run()
    assert "itl_s.p99" not in plain.summary().values
    with pytest.raises(RunNotRecordedError, match="record: full"):
        plain.metric("itl_s.p99")


def test_SF_8_a_scenario_that_expects_an_itl_records_it() -> None:
    scenario = Scenario.load("overload").with_({"duration_s": 5.0, "warmup_s": 0.0, "expect": [{"metric": "itl_s.p99", "op": ">", "value": 0.0}]})
    run = scenario.run()
    assert run.metric("itl_s.p99") > 0
    assert run.tables.level == "requests"


def test_SF_8_nothing_recorded_is_no_number() -> None:
    run, _ = fly(config({}), [(0.0, 100, 1)])
    assert run.metric("itl_s.p50") is None
    assert run.summary().values["itl_s.p50"] is None


def test_SF_10_steps_taken_one_by_one_have_their_share() -> None:
    sampled, _ = fly(config({"spec_decode": SpecDecode(3, 0.7, mode="sampled")}), [(0.0, 100, 40)])
    plain, _ = fly(config({}), [(0.0, 100, 40)])
    assert sampled.summary().values["per_step_share"] > 0.9
    assert plain.summary().values["per_step_share"] == 0.0


def test_SK_6_swapped_blocks_are_a_column() -> None:
    run, _ = fly(config(ENGINES["swap"]), [(0.0, 60, 40)] * 4)
    swapped = run.requests.swapped_blocks
    assert swapped.notna().any() and (swapped.dropna() > 0).all()
