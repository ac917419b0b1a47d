"""A scenario: fleet, source, control, service objectives and seed, as one checked, frozen object with a YAML form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from windtunnel.errors import ConfigError, ConfigMetricError, ConfigValueError
from windtunnel.lab import locate, overrides, registry
from windtunnel.lab.catalog_spec import CatalogSpec
from windtunnel.lab.control_spec import ControlSpec, preset_part
from windtunnel.lab.expect import ExpectSpec
from windtunnel.lab.fleet_spec import FleetSpec
from windtunnel.lab.kinds import Spec, spec_of
from windtunnel.lab.places import place, placed
from windtunnel.lab.schema import schema_text
from windtunnel.lab.sentences import close_hint, explain, one_or_all
from windtunnel.lab.slo_spec import KnobSpec, SloSpec
from windtunnel.lab.source_spec import SourceSpec, is_endless
from windtunnel.lab.summary import names_of
from windtunnel.lab.yamlfile import Document, PathKey, dump_yaml
from windtunnel.sim.faults import Fault

if TYPE_CHECKING:
    from pandas import DataFrame

    from windtunnel.lab.run import Run
    from windtunnel.lab.worlds import Flight, Simulated
    from windtunnel.policy.control import Control
    from windtunnel.policy.param import PoolFacts
    from windtunnel.sim.driver import Progress
    from windtunnel.sim.fleet import FleetConfig
    from windtunnel.sources.source import Source

FaultSpec = spec_of(Fault)
SIGNS = ("windtunnel", "fleet", "source")
NOT_IN_DIGEST = ("name", "question", "compare", "expect", "knobs", "record", "itl", "seed")


class Scenario(Spec):
    """What is simulated. `Scenario.load("sims/azure-chat.yaml").run()`; change it with `with_({"fleet.pools.chat.replicas": 6})`."""

    windtunnel: Literal[1] = Field(description="Version of this file format.")
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = Field(default="", description="The question that this scenario answers, in one sentence.")
    duration_s: float | None = Field(default=None, gt=0, description="Arrivals end here (s); null: when the source is exhausted.")
    warmup_s: Annotated[float, Field(ge=0)] | Literal["mser5"] = Field(
        default=0.0, description="Requests that arrive before this (s) are marked and left out of every metric; mser5: found from TTFT.")
    cooldown_s: float = Field(default=0.0, ge=0, description="Requests that arrive in the last so many seconds are left out too (s).")
    grace_s: float = Field(default=30.0, ge=0, description="How long requests may still run after duration_s (s).")
    seed: int = Field(default=0, ge=0, lt=2**63)
    record: Literal["requests", "decisions", "full"] = "requests"
    itl: bool = Field(default=False, description="Keep what exact gaps between tokens (itl_s) are made from; on with record: full, and where "
                                                 "expect names itl_s.")
    catalog: CatalogSpec = Field(default=CatalogSpec(), description="Models and GPUs that are not shipped, or other facts of those that are.")
    fleet: FleetSpec
    source: SourceSpec
    control: ControlSpec = ControlSpec()
    faults: tuple[FaultSpec, ...] = Field(default=(), description="What breaks, when, where and for how long.")  # type: ignore[valid-type]
    slo: SloSpec = SloSpec()
    expect: tuple[ExpectSpec, ...] = Field(default=(), description="What a run should show; a variant may bring its own list.")
    compare: dict[str, dict[str, Any]] = Field(default={}, description="Named variants: dotted path to value.")
    knobs: tuple[str | KnobSpec, ...] = Field(default=(), description="Paths that a cockpit offers as controls.")
    _base: Path = PrivateAttr(default_factory=Path)
    _marks: dict[PathKey, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.duration_s is None and is_endless(self.source):
            raise ValueError("the source never ends; write duration_s, or a count in the source")
        warmup_s = 0.0 if self.warmup_s == "mser5" else self.warmup_s
        if self.duration_s is not None and warmup_s + self.cooldown_s >= self.duration_s:
            both = f" and cooldown_s {self.cooldown_s:g} leave" if self.cooldown_s else " leaves"
            raise ValueError(f"warmup_s {warmup_s:g}{both} nothing of duration_s {self.duration_s:g}")
        for n, fault in enumerate(self.faults):
            if fault.pool and fault.pool not in self.fleet.pools:  # type: ignore[attr-defined]
                known = ", ".join(self.fleet.pools)
                raise ValueError(f'faults.{n}.pool: no pool "{fault.pool}"; there are {known}')  # type: ignore[attr-defined]
        return self

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.model_dump() == other.model_dump()  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

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
        wrong = list(made._wrong_names(doc, base))
        if wrong:
            raise one_or_all(wrong)
        made._base, made._marks = base, doc.marks
        return made

    def _wrong_names(self, doc: Document, base: Path) -> Iterator[ConfigError]:
        """Names that only other parts of the file, or the catalogues, can judge."""
        wrong = list(self.catalog.wrong_entries(base, doc))
        yield from wrong or list(self.fleet.wrong_names(doc, self.catalog.build(base)))
        for n, expected in enumerate(self.expect):
            try:
                expected.parse(names_of(self.slo.bounds()))
            except ConfigMetricError as error:
                label, error.where = place(doc, ("expect", n, "metric"))
                error.message = f"{label}expect.{n}.metric: {error.message}"
                yield error
        for name, changes in self.compare.items():
            try:
                overrides.check_paths(changes, f"compare.{name}")
            except ConfigValueError as error:
                error.where = doc.where(("compare", name))
                yield error

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
        return _kind_first(self.model_dump(mode="json", exclude_unset=True))  # type: ignore[no-any-return]

    def _document(self) -> Document:
        """What it was read from, with the places in the file."""
        return Document(self._plain(), self._marks)

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default and the preset's parts filled in."""
        data = self.model_dump(mode="json")
        data["control"] = self.control.resolved().model_dump(mode="json")
        return _kind_first(data)  # type: ignore[no-any-return]

    def dump(self, path: str | Path | None = None, *, resolved: bool = False) -> str:
        """YAML that loads into an equal scenario; resolved: with every default written out. Also written to `path` if given."""
        text = dump_yaml(self.resolved() if resolved else self._plain())
        if path is not None:
            Path(path).write_text(text, "utf-8")
        return text

    def diff(self, other: Scenario) -> DataFrame:
        """What differs, defaults included: columns path, left, right."""
        import pandas as pd

        left, right = dict(_flat(self.resolved())), dict(_flat(other.resolved()))
        missing = object()
        paths = [p for p in dict.fromkeys([*left, *right]) if left.get(p, missing) != right.get(p, missing)]
        return pd.DataFrame([(p, left.get(p), right.get(p)) for p in paths], columns=["path", "left", "right"])

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the result: the resolved scenario with files by content, without names, texts and the seed."""
        with placed(self._document()):
            data = self._hashed({k: v for k, v in self.resolved().items() if k not in NOT_IN_DIGEST})
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _hashed(self, node: Any) -> Any:
        """The same data with each `path` (`file` of a law) replaced by the hash of the file it names; a plugin's kwargs are its own affair."""
        if isinstance(node, Mapping):
            return {k: {"sha256": locate.sha256(locate.data_file(v, self._base))} if k in ("path", "file") and isinstance(v, str)
                    else v if k == "kwargs" else self._hashed(v) for k, v in node.items()}
        return [self._hashed(v) for v in node] if isinstance(node, list) else node

    # -- flying ---------------------------------------------------------------------------------------------------------------

    def build_fleet(self) -> FleetConfig:
        """The simulated fleet; raises ConfigInfeasibleError for what cannot run."""
        from windtunnel.lab.build import build_fleet

        with placed(self._document()):
            return build_fleet(self.fleet, self._base, self.catalog.build(self._base))

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

    def build_source(self, *, seed: int | None = None, replication: int = 0, model: str | None = None, live: bool = False) -> Source:
        """A fresh source. model: what requests without one ask for (None: the fleet's first); live: with prompts for real engines."""
        from windtunnel.lab.build import build_source

        with placed(self._document()):
            return build_source(self.source, self._base, self.seed if seed is None else seed, replication=replication,
                                duration_s=self.duration_s, model=self.fleet.only_model if model is None else model, live=live,
                                faults=self.build_faults())

    def build(self, *, seed: int | None = None, replication: int = 0, record: str | None = None, check: bool = False,
              ) -> tuple[Simulated, Control, Source]:
        """World, control and source, ready for `world.run(control, source)`."""
        from windtunnel.lab.recorder import Recorder
        from windtunnel.lab.worlds import Simulated

        level, seed = record or self.record, self.seed if seed is None else seed
        world = Simulated(self.build_fleet(), seed=seed, replication=replication, record=level, check=check, until=self.duration_s,
                          grace_s=self.grace_s, faults=self.build_faults(), itl=self.itl or any(e.metric.startswith("itl_s") for e in self.expect))
        control = self.build_control(seed=seed, replication=replication, wants=Recorder(level).wants)
        refuse_promises = getattr(self.control.planner, "check_simulated", None)
        if refuse_promises is not None:
            with placed(self._document()):
                refuse_promises()
        return world, control, self.build_source(seed=seed, replication=replication)

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


def changes_of(texts: Sequence[str]) -> dict[str, Any]:
    """"path=value" texts as changes, left to right."""
    return overrides.changes_of(list(texts))


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


def _kind_first(node: Any) -> Any:
    """The same data as people write it: a mapping's kind before its parameters."""
    if isinstance(node, dict):
        return {k: _kind_first(node[k]) for k in sorted(node, key=lambda k: k != "kind")}
    return [_kind_first(v) for v in node] if isinstance(node, list) else node


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, (dict, list)) and node:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _rebuild(section: str) -> None:
    """A kind was registered after these models were made: make their unions again."""
    from windtunnel.lab import control_spec, kinds

    kinds.forget()
    for model in (control_spec.AdmissionSpec, control_spec.ControlSpec, Scenario):
        model.model_rebuild(force=True)
    schema.cache_clear()


registry.on_change(_rebuild)
