"""For tests: small simulated flights, and a recorder that keeps what it hears."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from windtunnel.events import Request
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.driver import SimDriver
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.fleet_config import FleetConfig, Pool
from windtunnel.sim.stepmodels.affine import Affine

TEXT = """
windtunnel: 1
name: rules
duration_s: 40
seed: 3
fleet:
  pools:
    chat:
      {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, max: 4, engine: {max_num_seqs: 16}, startup: {node_s: 4, weights_s: 2}}
source: {kind: arrivals, rate_rps: 8, input_tokens: 300, output_tokens: {kind: lognormal, mean: 60, cv: 0.5}, tenants: {a: 1, b: 1}}
control: {queue: {kind: fifo}, admission: {limit: {kind: none}}, routing: {kind: least_outstanding}}
"""
SECOND = Affine(1.0, 0.0, 0.0, 0.0)  # every step lasts one second


def scenario(**changes: Any) -> Scenario:
    return Scenario.load(TEXT).with_(changes)


class Stream:
    """Requests at given times: (id, arrived_s, prompt, output)."""

    name, loop = "s", "open"

    def __init__(self, *requests: tuple[str, float, int, int], needs: frozenset[str] = frozenset()) -> None:
        self.requests, self.needs = requests, needs
        self.heard: list[tuple[float, Any]] = []

    def stream(self) -> Iterator[Request] | None:
        for id, at, prompt, output in self.requests:
            yield Request(id, "t", "m", 0, at, prompt, output)

    def start(self, now: float) -> Sequence[Any]:
        return ()

    def handle(self, what: Any, now: float) -> Sequence[Any]:
        self.heard.append((now, what))
        return ()

    def done(self) -> bool:
        return True


class Ear:
    """A recorder that keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Any]] = []

    def step(self, seq: int, now: float, event: Any, effects: Any, verdicts: Any = None) -> None:
        self.events.append((now, event))

    def error(self, seq: int, now: float, event: Any, error: BaseException) -> None:
        self.events.append((now, error))

    def sample(self, now: float, name: str, key: str, value: float) -> None: ...

    def replica_row(self, row: Any, /) -> None: ...

    def note(self, now: float, note: Any) -> None: ...

    def of(self, *kinds: type) -> list[tuple[float, Any]]:
        return [(now, e) for now, e in self.events if type(e) in kinds]


def drive(*requests: tuple[str, float, int, int], limit: int | None = None, model: Any = SECOND, needs: frozenset[str] = frozenset(),
          network_s: float = 0.0, engine: EngineConfig | None = None, **pool: Any) -> tuple[SimDriver, Ear]:
    """One replica, one lane with a fixed limit, requests as given; flown to the end."""
    changes: dict[str, Any] = {} if limit is None else {"control.admission.limit": {"kind": "fixed", "limit": limit}}
    control = scenario(**changes).build_control(pools=None)
    control.needs |= needs
    one = Pool("chat", "Llama-3.1-8B", "h100_sxm", engine or EngineConfig(max_num_seqs=16), model, **pool)
    ear = Ear()
    driver = SimDriver(control, Stream(*requests), FleetConfig({"chat": one}, network_s=network_s), ear, check=True)
    driver.advance()
    assert driver.error is None and driver.complete
    return driver, ear
