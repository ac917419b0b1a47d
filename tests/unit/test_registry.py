"""Kinds of policies: registering, refusing, and that every kind's fields are the scenario's keys."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from windtunnel.errors import ConfigError, ConfigImportError, ConfigUnknownKeyError
from windtunnel.lab import registry
from windtunnel.lab.control_spec import ControlSpec
from windtunnel.lab.kinds import spec_of
from windtunnel.lab.scenario import Scenario, schema
from windtunnel.policy.param import BuildContext
from windtunnel.policy.queueing.fifo import FifoQueue

ALL = [(s, kind, cls) for s in registry.SECTIONS for kind, cls in (dict(registry.kinds(s)) | dict(registry.wrappers(s))).items()]


@dataclass(frozen=True)
class Patient:
    """A queue of a third party."""

    patience_s: float = 3.0

    def build(self, ctx: BuildContext) -> FifoQueue:
        return FifoQueue()


@pytest.fixture()
def clean() -> Any:
    before = {s: dict(k) for s, k in registry._kinds.items()}
    yield
    for section, kinds in before.items():
        registry._kinds[section].clear()
        registry._kinds[section].update(kinds)
        for told in registry._listeners:
            told(section)


def test_RG_1_the_kinds_of_this_version() -> None:
    assert set(registry.kinds("queue")) >= {"fifo", "fair", "classes", "edf", "adaptive_lifo", "vtc", "dlpm"}
    assert list(registry.wrappers("queue")) == ["bounded", "deadline_drop", "codel"]
    assert set(registry.kinds("admission.limit")) >= {"none", "fixed", "aimd", "aimd_netflix", "vegas", "gradient2", "envoy_gradient"}
    assert set(registry.kinds("admission.gates")) >= {"breaker", "gcra", "retry_budget", "bands", "throttle", "token_budget"}
    assert set(registry.kinds("routing")) >= {"least_outstanding", "round_robin", "random", "power_of_two", "prefix_affinity", "bounded_hash"}
    assert set(registry.kinds("planner")) >= {"rate", "pipeline"}
    assert registry.wrappers("no.such.section") == {}


@pytest.mark.parametrize(("section", "kind", "cls"), ALL, ids=[f"{s}.{k}" for s, k, _ in ALL])
def test_RG_1_the_scenarios_keys_are_the_fields(section: str, kind: str, cls: type[Any]) -> None:
    if not dataclasses.is_dataclass(cls):  # the lab's own model: its keys are its fields
        model = spec_of(cls, kind, section)
        assert set(model.model_fields) == {"kind", *cls.model_fields}
        made = model(kind=kind)
        assert made.config() is made and {**made.model_dump(), "kind": None} == {**cls().model_dump(), "kind": None}
        return
    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    model = spec_of(cls, kind, section) if kind in registry.kinds(section) else spec_of(cls)
    assert set(model.model_fields) - {"kind", *registry.wrappers(section)} == fields
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    given = {"kind": kind} if "kind" in model.model_fields else {}
    assert required == [], "every kind builds with its defaults"
    assert model(**given).config() == cls()


def test_RG_1_a_registered_kind_is_a_key_at_once(clean: None) -> None:
    with pytest.raises(Exception, match="patient"):
        ControlSpec.model_validate({"queue": {"kind": "patient"}})
    assert registry.register("queue", "patient", Patient) is Patient
    made = ControlSpec.model_validate({"queue": {"kind": "patient", "patience_s": 5, "bounded": {"capacity": 3}}})
    assert made.queue is not None
    assert made.queue.config() == Patient(5.0)
    text = "windtunnel: 1\nname: x\nduration_s: 5\nfleet: {pools: {c: {model: Llama-3.1-8B, gpu: h100_sxm}}}\n"
    text += "source: {kind: arrivals, rate_rps: 1, input_tokens: 5, output_tokens: 5}\ncontrol: {queue: {kind: patient, patience: 5}}\n"
    with pytest.raises(ConfigUnknownKeyError, match="patience: unknown key"):
        Scenario.load(text)
    assert any("Patient" in name for name in schema()["$defs"])
    registry.register("queue", "patient", Patient)  # the same class again is nothing new


def test_RG_1_a_kind_registered_twice_names_both(clean: None) -> None:
    with pytest.raises(ConfigImportError, match=r'"fifo" is registered twice: by windtunnel.policy.queueing.fifo.Fifo and by .*Patient'):
        registry.register("queue", "fifo", Patient)


def test_RG_1_what_cannot_be_a_kind(clean: None) -> None:
    with pytest.raises(ConfigError, match='unknown section "queues"'):
        registry.register("queues", "x", Patient)
    with pytest.raises(ConfigImportError, match="expected a frozen dataclass with build"):
        registry.register("queue", "x", int)
    with pytest.raises(ConfigImportError, match="cannot import"):
        registry.import_kind("queue", "no.such.module:Thing", allow_imports=True)


def test_entry_points_register_and_a_broken_one_is_named(clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Offered(Patient):
        section = "queue"

    class Entry:
        name, value = "offered", "pkg:Offered"

        def load(self) -> Any:
            return Offered

    class Broken(Entry):
        name, value = "broken", "pkg:Broken"

        def load(self) -> Any:
            raise ImportError("no module pkg")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()])
    registry.load_entry_points()
    assert registry.kinds("queue")["offered"] is Offered
    monkeypatch.setattr(registry, "entry_points", lambda group: [Broken()])
    with pytest.raises(ConfigImportError, match='policy "broken" of pkg:Broken cannot be loaded: no module pkg'):
        registry.load_entry_points()
