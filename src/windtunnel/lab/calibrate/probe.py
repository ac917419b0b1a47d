"""Measure a running engine from outside: waves and closed loops of random prompts, timed by the client's clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from windtunnel.errors import EngineUnavailableError
from windtunnel.lab.calibrate.observe import RequestObs
from windtunnel.live.engines.engine import Delta, Ended, Engine, EngineCall, Failed, Usage

VOCABULARY = (300, 1900)  # token ids that any model has; random ones share no prefix
CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Cell:
    """`concurrency` clients, each of which sends `rounds` requests one after the other; open_rps: Poisson arrivals instead."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    rounds: int = 3
    open_rps: float | None = None

    @property
    def name(self) -> str:
        how = f"{self.concurrency} at once" if self.open_rps is None else f"{self.open_rps:.2g} a second"
        return f"{how}, {self.input_tokens} in / {self.output_tokens} out"


@dataclass(slots=True)
class Measured:
    """What a cell gave. requests: in order of sending, seconds from the cell's start; step_s: decode steps of full waves; took_s."""

    cell: Cell
    requests: list[RequestObs] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    took_s: float = 0.0
    failed: list[str] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second over the whole cell."""
        return sum(r.output_tokens for r in self.requests) / self.took_s if self.took_s else 0.0


@dataclass(slots=True)
class _Stream:
    sent: float
    first: float = 0.0
    last: float = 0.0
    stamps: list[tuple[float, int]] = field(default_factory=list)  # (when, tokens so far)
    error: str = ""


class Probe:
    """Asks one engine. seed: of prompts and arrivals. Every request streams, is greedy and runs to its full length."""

    def __init__(self, engine: Engine, seed: int = 7) -> None:
        self._engine, self._rng, self._n = engine, np.random.default_rng(seed), 0

    async def check(self) -> None:
        """Raises EngineUnavailableError unless a short request is answered."""
        health = await self._engine.health()
        if not health.ok:
            raise EngineUnavailableError(f"the engine cannot be measured: {health.message or health.status}")
        stream = await self._ask(16, 16)
        if stream.error:
            raise EngineUnavailableError(f"the engine cannot be measured: {stream.error}")

    async def measure(self, cell: Cell) -> Measured:
        """Run one cell. Requests that fail are listed and left out."""
        measured, begun = Measured(cell), time.perf_counter()
        if cell.open_rps is not None:
            streams = await self._open(cell)
        elif cell.rounds == 1:
            streams = list(await asyncio.gather(*(self._ask(cell.input_tokens, cell.output_tokens) for _ in range(cell.concurrency))))
        else:
            loops = await asyncio.gather(*(self._client(cell) for _ in range(cell.concurrency)))
            streams = [stream for loop in loops for stream in loop]
        measured.took_s = time.perf_counter() - begun
        good = [s for s in streams if not s.error]
        measured.failed = [s.error for s in streams if s.error]
        for s in sorted(good, key=lambda s: s.sent):
            measured.requests.append(RequestObs(s.sent - begun, cell.input_tokens, cell.output_tokens, s.first - begun, s.last - begun))
        if cell.rounds == 1 and len(good) == cell.concurrency:
            measured.step_s = _steps_of_wave(good)
        return measured

    async def _client(self, cell: Cell) -> list[_Stream]:
        return [await self._ask(cell.input_tokens, cell.output_tokens) for _ in range(cell.rounds)]

    async def _open(self, cell: Cell) -> list[_Stream]:
        gaps = self._rng.exponential(1.0 / (cell.open_rps or 1.0), cell.concurrency * cell.rounds)
        tasks = []
        for gap in gaps:
            await asyncio.sleep(float(gap))
            tasks.append(asyncio.create_task(self._ask(cell.input_tokens, cell.output_tokens)))
        return list(await asyncio.gather(*tasks))

    async def _ask(self, input_tokens: int, output_tokens: int) -> _Stream:
        self._n += 1
        prompt = [int(t) for t in self._rng.integers(*VOCABULARY, input_tokens)]
        call = EngineCall(f"probe-{self._n}/1", prompt, max_tokens=output_tokens, temperature=0.0, seed=1, ignore_eos=True,
                          options={"cache_prompt": False} if self._engine.facts.kind == "llamacpp" else {})
        stream = _Stream(time.perf_counter())
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._listen(call, stream, output_tokens)
        except TimeoutError:
            stream.error = f"no answer within {CALL_TIMEOUT_S:g} s"
        return stream

    async def _listen(self, call: EngineCall, stream: _Stream, output_tokens: int) -> None:
        tokens = 0
        async with self._engine.stream(call) as events:
            async for event in events:
                now = time.perf_counter()
                if isinstance(event, Delta):
                    tokens += event.n or 1
                    stream.first = stream.first or now
                    stream.last = now
                    stream.stamps.append((now, tokens))
                elif isinstance(event, Usage):  # tokens that end in the middle of a character bring no text of their own
                    tokens = max(tokens, event.output_tokens or 0)
                elif isinstance(event, Failed):
                    stream.error = event.message or event.reason
                elif isinstance(event, Ended) and not stream.stamps:
                    stream.error = "the answer was empty"
        if not stream.error and tokens < output_tokens // 2:
            stream.error = f"{tokens} of {output_tokens} tokens came: the engine does not ignore its end-of-text token"


def _steps_of_wave(streams: Sequence[_Stream]) -> list[float]:
    """Seconds per decode step while all of a wave were decoding, one number per stream; empty if that was hardly ever so."""
    begin, end = max(s.first for s in streams), min(s.last for s in streams)
    out = []
    for s in streams:
        inside = [(t, n) for t, n in s.stamps if begin <= t <= end]
        if len(inside) >= 4 and inside[-1][1] > inside[0][1]:
            out.append((inside[-1][0] - inside[0][0]) / (inside[-1][1] - inside[0][1]))
    return out
