"""Adapters on an engine: resident ones, loads, who waits for a place, and what a step with them costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel import Scenario
from windtunnel.errors import ConfigError, ConfigUnknownKeyError, ConfigValueError
from windtunnel.lab.history import violations
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig
from windtunnel.sim.engine_config import Lora
from windtunnel.sim.fleet_config import Pool
from windtunnel.sim.lora import lora_engine
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.transfer import KvLink

FLAT = Affine(0.01, 0.0, 0.0, 0.0)  # 10 ms a step, whatever it holds


class Rig:
    """Requests `name-n` need adapter `name`; `base-n` none."""

    def __init__(self, lora: Lora, **engine: Any) -> None:
        self.agenda, self.done, self.cancelled, self.refused = Agenda(), dict[str, Attempt](), list[str](), list[Any]()
        self.engine = lora_engine("e", EngineConfig(lora=lora, **engine), FLAT, self.agenda, check=True,
                                 adapter_of=lambda id: None if id.startswith("base") else id.partition("-")[0],
                                 on_finish=lambda a: self.done.__setitem__(a.id, a), on_cancelled=lambda a: self.cancelled.append(a.id))

    def send(self, id: str, output: int = 5, at_s: float = 0.0, blocks: tuple[int, ...] | None = None) -> None:
        self.agenda.at(at_s, ARRIVAL, lambda _: self.refused.append(self.engine.submit(Attempt(id, 1, 33, output, 0, blocks))))

    def run(self) -> Rig:
        self.agenda.run()
        assert self.engine.idle and not self.engine._line and not self.engine._held
        assert all(not slot.users for slot in self.engine._resident.values())
        assert len(self.engine._resident) <= self.engine.config.lora.max_loras  # type: ignore[union-attr]
        return self


def test_SE_13_a_miss_waits_for_its_load_and_a_hit_does_not() -> None:
    rig = Rig(Lora(2, 0.5))
    for id, at_s in (("a-0", 0.0), ("a-1", 0.1), ("a-2", 1.0), ("base-0", 0.0)):
        rig.send(id, at_s=at_s)
    rig.run()
    assert {i: a.started_s for i, a in rig.done.items()} == pytest.approx({"base-0": 0.0, "a-0": 0.5, "a-1": 0.5, "a-2": 1.0})
    assert (rig.engine.adapter_hits, rig.engine.adapter_loads) == (1, 1)  # a-1 came while it was loaded
    assert rig.done["a-1"].submitted_s == 0.1


def test_SE_13_the_one_used_longest_ago_makes_room() -> None:
    rig = Rig(Lora(2, 0.5))
    for n, (name, at_s) in enumerate((("a", 0.0), ("b", 1.0), ("a", 2.0), ("c", 3.0), ("a", 4.0), ("b", 5.0))):
        rig.send(f"{name}-{n}", at_s=at_s)
    rig.run()
    assert (rig.engine.adapter_hits, rig.engine.adapter_loads) == (2, 4)
    assert list(rig.engine._resident) == ["a", "b"]


def test_SE_13_an_adapter_in_use_is_never_thrown_out_and_others_may_pass() -> None:
    rig = Rig(Lora(1, 0.5))
    for id, output, at_s in (("a-0", 100, 0.0), ("b-0", 5, 0.6), ("a-1", 5, 0.7), ("base-0", 5, 0.7)):
        rig.send(id, output, at_s)
    rig.run()
    assert rig.done["a-0"].finished_s == pytest.approx(1.5)
    assert rig.done["b-0"].started_s == pytest.approx(1.5 + 0.5)  # after its load
    assert rig.done["a-1"].finished_s < 0.8 and rig.done["base-0"].finished_s < 0.8


def test_SE_13_steps_with_adapters_cost_more() -> None:
    rig = Rig(Lora(2, 0.0, step_factor=1.5))
    rig.send("base-0", 50)
    rig.send("a-0", 10, at_s=1.0)
    rig.send("base-1", 10, at_s=1.0)
    rig.run()
    assert rig.done["base-0"].finished_s == pytest.approx(0.5)
    assert rig.done["a-0"].finished_s == rig.done["base-1"].finished_s == pytest.approx(1.0 + 10 * 0.015)


def test_SE_13_prefixes_are_shared_within_an_adapter_only() -> None:
    rig = Rig(Lora(4, 0.0))
    for n, id in enumerate(("a-0", "b-0", "base-0", "a-1", "base-1")):
        rig.send(id, at_s=float(n), blocks=(1, 2))
    rig.run()
    assert {i: a.cached_tokens for i, a in rig.done.items()} == {"a-0": 0, "b-0": 0, "base-0": 0, "a-1": 32, "base-1": 32}


def test_SE_13_cancel_crash_and_full_queues_while_it_loads() -> None:
    rig = Rig(Lora(1, 0.5), max_queued_requests=3)
    for n in range(5):
        rig.send(f"{'ab'[n % 2]}-{n}")
    rig.agenda.at(0.1, ARRIVAL, lambda _: [rig.engine.cancel(id, 1) for id in ("a-0", "b-1", "nobody")])
    rig.run()
    assert [r is None for r in rig.refused] == [True] * 3 + [False] * 2
    assert rig.cancelled == ["a-0", "b-1"] and set(rig.done) == {"a-2"}
    rig.send("c-0", at_s=rig.agenda.now)
    rig.agenda.at(rig.agenda.now + 0.1, ARRIVAL, lambda _: [a.id for a in rig.engine.drop_all("crash")])
    rig.agenda.run()
    assert rig.engine.idle and not rig.engine._resident


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "base"]), st.floats(0.0, 2.0), st.integers(0, 30), st.booleans()), max_size=16),
       st.integers(1, 3), st.sampled_from([0.0, 0.2]), st.sampled_from([None, 12]))
def test_SE_13_everybody_is_served_with_a_resident_adapter(jobs: Any, most: int, load_s: float, blocks: Any) -> None:
    rig = Rig(Lora(most, load_s, 1.3), num_blocks=blocks, max_num_seqs=4)
    for n, (name, at_s, output, leaves) in enumerate(jobs):
        rig.send(f"{name}-{n}", output, at_s)
        if leaves:
            rig.agenda.at(at_s + 0.05, ARRIVAL, lambda _, id=f"{name}-{n}": rig.engine.cancel(id, 1))
    rig.run()
    assert len(rig.done) + len(rig.cancelled) == len(jobs)


def test_SE_13_in_a_scenario_an_adapter_per_tenant() -> None:
    scenario = Scenario.load("overload").with_({
        "duration_s": 10.0, "warmup_s": 0.0, "source.rate_rps": 10, "source.tenants": {"a": 1, "b": 1, "c": 1},
        "fleet.pools.chat.engine.lora": {"max_loras": 2, "load_s": 0.2, "step_factor": 1.1}})
    run = scenario.run(record="full", check=True)
    assert violations(run) == []
    assert (run.replicas.adapter_loads > 2).all() and run.replicas.adapter_hits.sum() > 0
    plain = scenario.with_({"fleet.pools.chat.engine.lora": None}).run()
    assert run.metric("ttft_s.avg") > plain.metric("ttft_s.avg")
    assert plain.replicas.adapter_loads.isna().all()
    with pytest.raises(ConfigUnknownKeyError, match="load"):
        scenario.with_({"fleet.pools.chat.engine.lora": {"load": 1}})


def test_SE_13_numbers_that_cannot_be_are_refused() -> None:
    for wrong in ({"max_loras": 0}, {"load_s": -1.0}, {"load_s": float("nan")}, {"step_factor": 0.9}, {"by": "colour"}):
        with pytest.raises(ConfigValueError):
            Lora(**wrong)  # type: ignore[arg-type]
    for options in ({"pp": 2}, {"role": "decode", "link": KvLink(1e9, 1.0)}):
        with pytest.raises(ConfigValueError, match="adapters need pp 1"):
            Pool("x", "m", "g", EngineConfig(lora=Lora()), FLAT, **options)  # type: ignore[arg-type]


def test_SE_13_a_source_says_which_adapters_its_requests_ask_for() -> None:
    base = Scenario.load("overload").with_({"duration_s": 20.0, "warmup_s": 0.0, "source.rate_rps": 10, "source.tenants": {"a": 1},
                                            "fleet.pools.chat.engine.lora": {"max_loras": 1, "load_s": 0.2, "by": "label"}})
    made = base.with_({"source.adapters": {"sql": 0.5, "law": 0.25}})
    asked = [dict(r.labels).get("adapter") for r in made.build_source().stream() or ()]
    share = {name: asked.count(name) / len(asked) for name in ("sql", "law", None)}
    assert share == {"sql": pytest.approx(0.5, abs=0.1), "law": pytest.approx(0.25, abs=0.1), None: pytest.approx(0.25, abs=0.1)}
    run, plain = made.run(check=True), base.run()
    assert run.replicas.adapter_loads.sum() > 2 and plain.replicas.adapter_loads.sum() == 0
    same = ["request_id", "arrived_s", "input_tokens", "tenant"]
    rows = [r.requests.sort_values("arrived_s")[same].reset_index(drop=True) for r in (run, plain)]
    assert rows[0].equals(rows[1]), "nothing else about the traffic changes"
    with pytest.raises(ConfigValueError, match=r"source\.adapters: no pool reads them; write engine\.lora"):
        made.with_({"fleet.pools.chat.engine.lora": {}}).run()
    for wrong in ({"sql": 0.7, "law": 0.7}, {"sql": 1.5}, {"": 0.5}):
        with pytest.raises(ConfigError, match="adapters"):
            base.with_({"source.adapters": wrong}).run()
