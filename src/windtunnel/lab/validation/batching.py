"""Continuous batching against queueing theory: a batch whose step grows with its size is a queue with a shared, load-dependent server.

With b sequences a step takes a + c·b seconds and gives each one token, so n requests of mean m tokens leave at the rate n / (m (a + c n)) while
n <= B. Source of the numbers: the birth-death chain of that rate. A request joins at the next step, half a mean step after it came.
"""

from __future__ import annotations

from dataclasses import dataclass

from windtunnel.lab.stats import batch_means
from windtunnel.lab.validation.check import Check, statistical
from windtunnel.lab.validation.station import fly
from windtunnel.sim.engine import EngineConfig
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sources.arrivals import ArrivalSource
from windtunnel.sources.dist import Const, Dist, Exponential, LogNormal

SECTION = "Continuous batching"
BASE_S, PER_SEQUENCE_S, TOKENS = 0.02, 2e-4, 200.0
WARM = 0.05
OUTPUTS: dict[str, Dist] = {"exponential lengths": Exponential(TOKENS), "equal lengths": Const(TOKENS), "log-normal lengths": LogNormal(TOKENS, 1.0)}


@dataclass(frozen=True, slots=True)
class Load:
    """`batch` sequences at most, `rate` requests per second; n requests flown."""

    batch: int
    rate: float
    lengths: str = "exponential lengths"
    n: int = 60_000
    fast: bool = False
    slow: bool = False

    @property
    def name(self) -> str:
        return f"batch {self.batch}, λ {self.rate:g}, {self.lengths}"


LOADS = (
    Load(64, 2.0, n=50_000, fast=True), Load(64, 5.0), Load(64, 5.0, "equal lengths"), Load(64, 5.0, "log-normal lengths"),
    Load(64, 8.0, n=150_000), Load(64, 9.0, n=600_000, slow=True), Load(256, 12.0),
)


def chain(batch: int, rate: float) -> tuple[float, float]:
    """(mean number present L, mean seconds between two tokens of a request) of the birth-death chain, states up to where they no longer matter."""
    weight, total, present, steps, served = 1.0, 1.0, 0.0, 0.0, 0.0
    n = 0
    while n < 100_000:
        n += 1
        b = min(n, batch)
        weight *= rate * TOKENS * (BASE_S + PER_SEQUENCE_S * b) / b
        total += weight
        present += n * weight
        served += b * weight
        steps += b / (BASE_S + PER_SEQUENCE_S * b) * weight
        if weight < 1e-15 * total and n > batch:
            break
    return present / total, served / steps


def run_load(load: Load, seed: int = 3) -> list[Check]:
    """Mean sojourn with the engine `vllm`, unlimited KV and prompts of one token."""
    source = ArrivalSource(load.rate, input_tokens=1, output_tokens=OUTPUTS[load.lengths], count=load.n, rng=seed)
    config = EngineConfig(max_num_seqs=load.batch, num_blocks=None, prefix_cache=False)
    f = fly(source, config, step_model=Affine(BASE_S, 0.0, PER_SEQUENCE_S, 0.0, 0.0))
    present, itl_s = chain(load.batch, load.rate)
    expected = present / load.rate + itl_s / 2.0
    values = f.sojourn_s[int(WARM * load.n):]
    return [statistical(SECTION, load.name, "W", expected, batch_means(values), len(values), loose=False, unit="s")]
