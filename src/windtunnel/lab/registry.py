"""Which config class a `kind` in a scenario means. Own and third-party policies register in the same way.

A config class is a frozen dataclass whose fields are the parameters (annotated with `Param`); `build(ctx)` makes the policy, or,
for a wrapper, `wrap(inner, ctx)`. Third-party packages offer classes through the entry point group `windtunnel.policies`: the
entry's name is the kind, the class attribute `section` says where it belongs.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from windtunnel.errors import ConfigError, ConfigImportError

SECTIONS = ("queue", "admission.limit", "admission.gates", "routing", "planner")
GROUP = "windtunnel.policies"
_kinds: dict[str, dict[str, type[Any]]] = {s: {} for s in SECTIONS}
_trusted: set[str] = set()
_listeners: list[Callable[[str], None]] = []


def register(section: str, kind: str, cls: type[Any]) -> type[Any]:
    """Make `kind: <kind>` in a section of `control` mean `cls`; returns cls.

    Raises ConfigImportError if the kind is taken by another class or cls is not a frozen dataclass with `build` or `wrap`. A frozen
    pydantic model of the lab with `config` and `build` will do too.
    """
    if section not in _kinds:
        raise ConfigError(f'unknown section "{section}"', hint=f"sections: {', '.join(SECTIONS)}")
    params = getattr(cls, "__dataclass_params__", None)
    model = getattr(cls, "model_config", {}).get("frozen", False) and hasattr(cls, "config")
    if not (model or (params is not None and params.frozen)) or not (hasattr(cls, "build") or hasattr(cls, "wrap")):
        raise ConfigImportError(f"{_name(cls)} cannot be a {section} kind: expected a frozen dataclass with build(ctx) or wrap(inner, ctx)")
    taken = _kinds[section].get(kind)
    if taken is not None and taken is not cls:
        raise ConfigImportError(f'{section} kind "{kind}" is registered twice: by {_name(taken)} and by {_name(cls)}')
    _kinds[section][kind] = cls
    for told in _listeners:
        told(section)
    return cls


def on_change(told: Callable[[str], None]) -> None:
    """Call `told(section)` after each later registration (the scenario's models are rebuilt then)."""
    _listeners.append(told)


def kinds(section: str) -> Mapping[str, type[Any]]:
    """Kind → config class, wrappers left out."""
    return {k: c for k, c in _kinds[section].items() if not hasattr(c, "wrap")}


def wrappers(section: str) -> Mapping[str, type[Any]]:
    """Block name → config class of the wrappers of a section, outermost first; empty for an unknown section."""
    return {k: c for k, c in _kinds.get(section, {}).items() if hasattr(c, "wrap")}


def import_kind(section: str, kind: str, *, allow_imports: bool) -> None:
    """Register `pkg.mod:Class` under its own text; refused unless allowed, so that opening a file runs no code of its choice."""
    if kind in _kinds[section]:
        return
    if not allow_imports:
        hint = "pass allow_imports=True (--allow-imports) if you trust it"
        raise ConfigImportError(f'{section}: kind "{kind}" would import code', hint=hint)
    module, _, name = kind.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise ConfigImportError(f'{section}: cannot import "{kind}": {e}') from None
    register(section, kind, cls)


def import_modules(modules: Iterable[str], *, allow_imports: bool) -> None:
    """Plugins of a planner name modules: those of others are refused unless allowed, and remembered as trusted if they are."""
    for module in modules:
        if module.partition(".")[0] == "windtunnel" or module in _trusted:
            continue
        if not allow_imports:
            hint = "pass allow_imports=True (--allow-imports) if you trust it"
            raise ConfigImportError(f'control.planner.plugins: module "{module}" would import code', hint=hint)
        _trusted.add(module)


def plugin_modules(control: Any) -> list[str]:
    """The modules that plain `control` data names for planner plugins."""
    node = control
    for key in ("planner", "plugins"):
        node = node.get(key) if isinstance(node, Mapping) else None
    found = []
    for name in ("in_process", "external"):
        listed = node.get(name) if isinstance(node, Mapping) else None
        for entry in listed if isinstance(listed, list) else []:
            own = entry.get("stand_in") if isinstance(entry, Mapping) and name == "external" else entry
            if isinstance(own, Mapping) and "module" in own:
                found.append(str(own["module"]))
    return found


def refuse_imports(control: Any) -> None:
    """Raise ConfigImportError if plain `control` data, say of a log, names a module that nobody has trusted yet."""
    import_modules(plugin_modules(control), allow_imports=False)


def load_entry_points() -> None:
    """Register what installed packages offer; a package that cannot be loaded is named."""
    for entry in entry_points(group=GROUP):
        try:
            cls = entry.load()
            section = cls.section
        except Exception as e:
            raise ConfigImportError(f'policy "{entry.name}" of {entry.value} cannot be loaded: {e}') from e
        register(section, entry.name, cls)


def defaults(cls: type[Any]) -> dict[str, Any]:
    """Default value per field of a config class; a field without default is left out."""
    out = {}
    for f in dataclasses.fields(cls):
        if f.default is not dataclasses.MISSING:
            out[f.name] = f.default
        elif f.default_factory is not dataclasses.MISSING:
            out[f.name] = f.default_factory()
    return out


def _name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _register_own() -> None:
    """The kinds that windtunnel brings. Wrappers stand outermost first."""
    from windtunnel.policy.admission.aimd import Aimd
    from windtunnel.policy.admission.aimd_netflix import AimdNetflix
    from windtunnel.policy.admission.bands import BandsGate
    from windtunnel.policy.admission.breaker import BreakerGate
    from windtunnel.policy.admission.envoy_gradient import EnvoyGradient
    from windtunnel.policy.admission.gcra import GcraGate
    from windtunnel.policy.admission.gradient2 import Gradient2
    from windtunnel.policy.admission.limit import Fixed, Unlimited
    from windtunnel.policy.admission.retry_budget import RetryBudgetGate
    from windtunnel.policy.admission.throttle import ThrottleGate
    from windtunnel.policy.admission.token_budget import TokenBudgetGate
    from windtunnel.policy.admission.vegas import Vegas
    from windtunnel.policy.planning.rate import RatePlanner
    from windtunnel.policy.queueing.bounded import Bounded
    from windtunnel.policy.queueing.classes import Classes
    from windtunnel.policy.queueing.codel import CoDel
    from windtunnel.policy.queueing.deadline_drop import DeadlineDrop
    from windtunnel.policy.queueing.dlpm import Dlpm
    from windtunnel.policy.queueing.drr import Drr
    from windtunnel.policy.queueing.edf import Edf
    from windtunnel.policy.queueing.fair import Fair
    from windtunnel.policy.queueing.fifo import Fifo
    from windtunnel.policy.queueing.lifo import AdaptiveLifo
    from windtunnel.policy.queueing.vtc import Vtc
    from windtunnel.policy.routing.affinity import PrefixAffinityConfig
    from windtunnel.policy.routing.choices import PowerOfTwoConfig, RandomConfig
    from windtunnel.policy.routing.least import LeastOutstandingConfig
    from windtunnel.policy.routing.pairs import PairsConfig
    from windtunnel.policy.routing.ring import BoundedHashConfig
    from windtunnel.policy.routing.roundrobin import RoundRobinConfig

    for section, kind, cls in (
        ("queue", "fifo", Fifo), ("queue", "fair", Fair), ("queue", "bounded", Bounded), ("queue", "deadline_drop", DeadlineDrop),
        ("queue", "codel", CoDel), ("queue", "classes", Classes), ("queue", "edf", Edf), ("queue", "adaptive_lifo", AdaptiveLifo),
        ("queue", "vtc", Vtc), ("queue", "dlpm", Dlpm), ("queue", "drr", Drr),
        ("admission.limit", "none", Unlimited), ("admission.limit", "fixed", Fixed), ("admission.limit", "aimd", Aimd),
        ("admission.limit", "aimd_netflix", AimdNetflix), ("admission.limit", "vegas", Vegas), ("admission.limit", "gradient2", Gradient2),
        ("admission.limit", "envoy_gradient", EnvoyGradient),
        ("admission.gates", "breaker", BreakerGate), ("admission.gates", "gcra", GcraGate), ("admission.gates", "bands", BandsGate),
        ("admission.gates", "retry_budget", RetryBudgetGate), ("admission.gates", "throttle", ThrottleGate),
        ("admission.gates", "token_budget", TokenBudgetGate),
        ("routing", "least_outstanding", LeastOutstandingConfig), ("routing", "round_robin", RoundRobinConfig),
        ("routing", "random", RandomConfig), ("routing", "power_of_two", PowerOfTwoConfig), ("routing", "pairs", PairsConfig),
        ("routing", "prefix_affinity", PrefixAffinityConfig), ("routing", "bounded_hash", BoundedHashConfig),
        ("planner", "rate", RatePlanner),
    ):
        register(section, kind, cls)


_register_own()
load_entry_points()
