"""windtunnel: try a control policy in simulation, then fly the very same object against real engines.

>>> from windtunnel import Scenario                                       # doctest: +SKIP
>>> run = Scenario.load("azure-chat").run()                              # doctest: +SKIP

Names are loaded when they are first used, so `import windtunnel` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from windtunnel import compiled

compiled.install()
__version__ = "0.1.0"

_HOMES = {
    "Scenario": "lab.scenario", "variants": "lab.scenario", "Run": "lab.run", "Summary": "lab.summary",
    "Comparison": "lab.compare", "Runs": "lab.compare", "compare": "lab.compare", "replicate": "lab.compare",
    "Simulated": "lab.world_simulated", "Live": "lab.world_live", "Flight": "lab.world_simulated", "LiveFleet": "live.fleet", "Caps": "live.gate",
    "capacity": "lab.capacity", "replay": "lab.replay", "register": "lab.registry", "Param": "policy.param",
    "Control": "policy.control", "ControlSettings": "policy.settings", "default_control": "policy.presets",
    "Queue": "policy.queueing.fair", "Limit": "policy.admission.limit", "Router": "policy.routing.router",
    "Source": "sources.source", "TraceSource": "sources.trace", "ArrivalSource": "sources.arrivals", "open_trace": "sources.traces.open",
    "Request": "events", "Engine": "live.engines.engine", "StepModel": "sim.stepmodels.model", "FakeEngine": "live.fake_server",
    "WindtunnelError": "errors", "ConfigError": "errors", "TraceError": "errors", "RunError": "errors", "PolicyError": "errors",
    "EngineError": "errors",
}
_MODULES = ("events", "effects")
__all__ = [*sorted(_HOMES), *_MODULES]

if TYPE_CHECKING:
    from windtunnel import effects as effects
    from windtunnel import events as events
    from windtunnel.errors import ConfigError, EngineError, PolicyError, RunError, TraceError, WindtunnelError
    from windtunnel.events import Request
    from windtunnel.lab.capacity import capacity as capacity
    from windtunnel.lab.compare import Comparison, Runs, compare, replicate
    from windtunnel.lab.registry import register
    from windtunnel.lab.replay import replay
    from windtunnel.lab.run import Run
    from windtunnel.lab.scenario import Scenario, variants
    from windtunnel.lab.summary import Summary
    from windtunnel.lab.world_live import Live
    from windtunnel.lab.world_simulated import Flight, Simulated
    from windtunnel.live.engines.engine import Engine
    from windtunnel.live.fake_server import FakeEngine
    from windtunnel.live.fleet import LiveFleet
    from windtunnel.live.gate import Caps
    from windtunnel.policy.admission.limit import Limit
    from windtunnel.policy.control import Control
    from windtunnel.policy.param import Param
    from windtunnel.policy.presets import default_control
    from windtunnel.policy.queueing.fair import Queue
    from windtunnel.policy.routing.router import Router
    from windtunnel.policy.settings import ControlSettings
    from windtunnel.sim.stepmodels.model import StepModel
    from windtunnel.sources.arrivals import ArrivalSource
    from windtunnel.sources.source import Source
    from windtunnel.sources.trace import TraceSource
    from windtunnel.sources.traces.open import open_trace


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"windtunnel.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'windtunnel' has no attribute {name!r}")
    value = getattr(import_module(f"windtunnel.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
