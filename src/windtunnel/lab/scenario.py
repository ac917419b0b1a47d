"""A scenario: fleet, source, control, service objectives and seed, as one checked, frozen object with a YAML form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from windtunnel.errors import ConfigError
from windtunnel.lab import locate, overrides, registry, scenario_data
from windtunnel.lab.control_spec import preset_part
from windtunnel.lab.overrides import changes_of
from windtunnel.lab.places import placed
from windtunnel.lab.scenario_fields import ScenarioFields
from windtunnel.lab.schema import schema_text
from windtunnel.lab.sentences import close_hint, explain, one_or_all
from windtunnel.lab.source_spec import has_adapters, has_service_times, models_asked
from windtunnel.lab.yamlfile import Document, dump_yaml

if TYPE_CHECKING:
    from pandas import DataFrame

    from windtunnel.lab.run import Run
    from windtunnel.lab.world_simulated import Flight, Simulated
    from windtunnel.policy.control import Control
    from windtunnel.policy.param import PoolFacts
    from windtunnel.sim.driver import Progress
    from windtunnel.sim.fault_config import Fault
    from windtunnel.sim.fleet_config import FleetConfig
    from windtunnel.sources.source import Source


SIGNS = ("windtunnel", "fleet", "source")


class Scenario(ScenarioFields):
    """What is simulated. `Scenario.load("sims/azure-chat.yaml").run()`; change it with `with_({"fleet.pools.chat.replicas": 6})`."""

    # -- making ---------------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, where: str | Path, *, overrides: Sequence[str] = (), variant: str | None = None, allow_imports: bool = False) -> Self:
        """Read a scenario: a file, a bundled name, `file@variant`, or YAML text with line breaks.

        overrides: "path=value" texts, applied after the variant. allow_imports: let `kind: pkg.mod:Class` import code.
        Raises ConfigError (one mistake) or ScenarioErrors (several), each with file, line and dotted path.
        """
        doc, base, named = locate.open_scenario(where)
        return cls._finished(doc, base, overrides=overrides, variant=variant or named, allow_imports=allow_imports)

    @classmethod
    def _finished(cls, doc: Document, base: Path, *, overrides: Sequence[str] = (), variant: str | None = None,
                  allow_imports: bool = False) -> Self:
        if not isinstance(doc.data, dict):
            raise ConfigError("expected a mapping with windtunnel, name, fleet and source", where=doc.where(()))
        if doc.data and not doc.data.keys() & SIGNS:
            raise ConfigError(f"not a scenario: it has none of the keys {', '.join(SIGNS)}", where=doc.where(()).rpartition(":")[0],
                              hint="windtunnel scenario show overload prints one")
        if variant is not None and variant != "base":
            doc = _applied(doc, _variant(doc.data, variant), f"variant {variant}")
        if overrides:
            doc = _applied(doc, changes_of(overrides), "--set")
        return cls._checked(doc, base, allow_imports=allow_imports)

    @classmethod
    def _checked(cls, doc: Document, base: Path, *, allow_imports: bool = False) -> Self:
        with placed(doc):
            import_kinds(doc.data, allow_imports=allow_imports)
        try:
            made = cls.model_validate_json(json.dumps(doc.data), strict=True)
        except ValidationError as error:
            raise one_or_all(explain(error, doc, schema())) from None
        wrong = list(made.wrong_names(doc, base))
        if wrong:
            raise one_or_all(wrong)
        made._base, made._marks = base, doc.marks
        return made

    def with_(self, changes: Mapping[str, Any]) -> Self:
        """A new, validated scenario; keys are dotted paths as in --set, values plain data."""
        return self._changed(changes, "")

    def _changed(self, changes: Mapping[str, Any], label: str) -> Self:
        """label: what errors call the source of the changes."""
        return self._checked(_applied(self._document(), changes, label), self._base, allow_imports=True)

    def variant(self, name: str) -> Self:
        """One of `compare`'s variants; "base" is the plain scenario."""
        if name == "base":
            return self
        doc = self._document()
        return self._checked(_applied(doc, _variant(doc.data, name), f"variant {name}"), self._base, allow_imports=True)

    def fast(self) -> Self:
        """The same, at most 60 s long with at most 5 s of warm-up and of cool-down: for CI and first looks."""
        warmup_s = self.warmup_s if self.warmup_s == "mser5" else min(5.0, self.warmup_s)
        changes = {"duration_s": min(60.0, self.duration_s or 60.0), "warmup_s": warmup_s}
        return self.with_(changes | ({"cooldown_s": min(5.0, self.cooldown_s)} if self.cooldown_s else {}))

    # -- saying ---------------------------------------------------------------------------------------------------------------

    def _plain(self) -> dict[str, Any]:
        return scenario_data.kind_first(self.model_dump(mode="json", exclude_unset=True))  # type: ignore[no-any-return]

    def _document(self) -> Document:
        """What it was read from, with the places in the file."""
        return Document(self._plain(), self._marks)

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default and the preset's parts filled in."""
        data = self.model_dump(mode="json")
        data["control"] = self.control.resolved().model_dump(mode="json")
        return scenario_data.kind_first(data)  # type: ignore[no-any-return]

    def dump(self, path: str | Path | None = None, *, resolved: bool = False) -> str:
        """YAML that loads into an equal scenario; resolved: with every default written out. Also written to `path` if given."""
        text = dump_yaml(self.resolved() if resolved else self._plain())
        if path is not None:
            Path(path).write_text(text, "utf-8")
        return text

    def diff(self, other: Scenario) -> DataFrame:
        """What differs, defaults included: columns path, left, right."""
        return scenario_data.differences(self.resolved(), other.resolved())

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the result: the resolved scenario with files by content, without names, texts and the seed."""
        with placed(self._document()):
            return scenario_data.digest(self.resolved(), self._base)

    # -- flying ---------------------------------------------------------------------------------------------------------------

    def build_fleet(self) -> FleetConfig:
        """The simulated fleet; raises ConfigInfeasibleError for what cannot run."""
        from windtunnel.lab.build import build_fleet
        from windtunnel.lab.build_source import hash_tokens

        with placed(self._document()):
            return build_fleet(self.fleet, self._base, self.catalog.build(self._base), hash_tokens=hash_tokens(self.source, self._base))

    def build_faults(self) -> tuple[Fault, ...]:
        """The faults; each was checked when the scenario was read."""
        return tuple(spec.config() for spec in self.faults)  # type: ignore[attr-defined]

    def build_control(self, *, pools: Sequence[PoolFacts] | None = None, seed: int | None = None, replication: int = 0,
                      wants: frozenset[str] = frozenset()) -> Control:
        """A fresh control over the scenario's pools, or over those of a live fleet."""
        from windtunnel.lab.build import build_control

        over = self._facts(self.build_fleet()) if pools is None else pools
        with placed(self._document()):
            return build_control(self.control, over, slo=self.slo.bounds(), seed=self.seed if seed is None else seed,
                                 replication=replication, wants=wants)

    def build_source(self, *, seed: int | None = None, replication: int = 0, model: str | None = None, live: bool = False,
                     wants: frozenset[str] = frozenset()) -> Source:
        """A fresh source. model: what requests without one ask for (None: the fleet's first); live: with prompts for real engines, and
        with its notes, as live runs are always recorded in full; wants: note streams that are recorded otherwise."""
        from windtunnel.lab.build import build_source
        from windtunnel.lab.recorder import wants_of

        with placed(self._document()):
            return build_source(self.source, self._base, self.seed if seed is None else seed, replication=replication,
                                duration_s=self.duration_s, model=self.fleet.only_model if model is None else model, live=live,
                                faults=self.build_faults(), wants=wants_of("full") if live else wants)

    def build(self, *, seed: int | None = None, replication: int = 0, record: str | None = None, check: bool = False,
              ) -> tuple[Simulated, Control, Source]:
        """World, control and source, ready for `world.run(control, source)`."""
        from windtunnel.lab.build import refuse_unreachable, refuse_unread
        from windtunnel.lab.recorder import Recorder
        from windtunnel.lab.world_simulated import Simulated

        level, seed = record or self.record, self.seed if seed is None else seed
        world = Simulated(self.build_fleet(), seed=seed, replication=replication, record=level, check=check, until=self.duration_s,
                          grace_s=self.grace_s, faults=self.build_faults(), itl=self.itl or any(e.metric.startswith("itl_s") for e in self.expect))
        refuse_unreachable(world.fleet, models_asked(self.source, self.fleet.only_model))
        refuse_unread(world.fleet, labelled=has_adapters(self.source), timed=has_service_times(self.source))
        wants = Recorder(level).wants
        control = self.build_control(seed=seed, replication=replication, wants=wants)
        refuse_promises = getattr(self.control.planner, "check_simulated", None)
        if refuse_promises is not None:
            with placed(self._document()):
                refuse_promises()
        return world, control, self.build_source(seed=seed, replication=replication, wants=wants)

    def start(self, *, seed: int | None = None, replication: int = 0, record: str | None = None, check: bool = False) -> Flight:
        """A steppable flight: `advance(budget_s)` until done, then `result()`."""
        world, control, source = self.build(seed=seed, replication=replication, record=record, check=check)
        return world.start(control, source, name=self.name, scenario=self, **self.meta(self._facts(world.fleet)))

    def _facts(self, fleet: FleetConfig) -> tuple[PoolFacts, ...]:
        """What the control may know; step times only for a planner that sizes by them."""
        from windtunnel.lab.build import pool_facts

        return pool_facts(fleet, steps=hasattr(self.control.planner, "predictor"))

    def run(self, *, seed: int | None = None, replication: int = 0, record: str | None = None, check: bool = False,
            progress: Callable[[Progress], None] | bool = False) -> Run:
        """Simulate to the end. seed, record: instead of the scenario's; check: assert conservation after every event.

        progress: called with run seconds and counts at most ten times a second; True: a bar on stderr.
        """
        flight = self.start(seed=seed, replication=replication, record=record, check=check)
        return flight.watch(progress) if progress else flight.result()

    def meta(self, pools: Sequence[PoolFacts]) -> dict[str, Any]:
        """What a run's header keeps of the scenario; pools: what the control was built over."""
        from windtunnel.lab.build import header_spec

        slo = self.slo.bounds()
        return {"slo": slo, "control_spec": header_spec(self.control, pools, slo), "scenario_digest": self.digest,
                "planned_s": self.duration_s, "warmup_s": self.warmup_s, "cooldown_s": self.cooldown_s, "question": self.question}


def variants(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """The plain scenario as "base", then each variant of `compare`."""
    yield "base", scenario
    for name in scenario.compare:
        yield name, scenario.variant(name)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a scenario file."""
    return dict(json.loads(schema_text(Scenario)))


def _applied(doc: Document, changes: Mapping[str, Any], label: str) -> Document:
    return overrides.apply(doc, changes, label=label, seed=preset_part)


def _variant(data: Any, name: str) -> Mapping[str, Any]:
    known = data.get("compare") if isinstance(data, dict) else None
    known = known if isinstance(known, dict) else {}
    if not isinstance(known.get(name), dict):
        raise ConfigError(f'unknown variant "{name}"', hint=close_hint(name, list(known)) or "the scenario has no compare")
    return known[name]  # type: ignore[no-any-return]


def import_kinds(data: Any, *, allow_imports: bool) -> None:
    """Register every `pkg.mod:Class` that stands as a kind in `control`; may its planner's plugins be imported?"""
    control = data.get("control") if isinstance(data, dict) else None
    registry.import_modules(registry.plugin_modules(control), allow_imports=allow_imports)
    for section in registry.SECTIONS:
        node = control
        for key in section.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        for part in node if isinstance(node, list) else [node]:
            kind = part.get("kind") if isinstance(part, dict) else None
            if isinstance(kind, str) and ":" in kind:
                registry.import_kind(section, kind, allow_imports=allow_imports)


def _rebuild(section: str) -> None:
    """A kind was registered after these models were made: make their unions again."""
    from windtunnel.lab import control_spec, kinds

    kinds.forget()
    for model in (control_spec.AdmissionSpec, control_spec.ControlSpec, Scenario):
        model.model_rebuild(force=True)
    schema.cache_clear()


registry.on_change(_rebuild)
