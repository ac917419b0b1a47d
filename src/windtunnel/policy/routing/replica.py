"""One replica as a control knows it: its state, its last scrape, and what this control has running on it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass

from windtunnel.events import Request, Scrape

BOOTING, READY, DRAINING, GONE = "booting", "ready", "draining", "gone"
MEAN_OVER = 256  # known inputs and completed outputs behind the means of a pool
NOMINAL_OUTPUT, NOMINAL_INPUT = 256, 1024


class PoolTokens:
    """Token counts of a pool's last 256 known inputs and completed outputs; means to the nearest int, nominal before the first."""

    __slots__ = ("_outputs", "_sum", "inputs", "output")

    def __init__(self) -> None:
        self.inputs: deque[int] = deque(maxlen=MEAN_OVER)
        self._outputs: deque[int] = deque()
        self._sum = 0
        self.output = NOMINAL_OUTPUT  # mean output, kept up to date; the mean input is rarely asked for

    def saw_output(self, tokens: int) -> None:
        outputs = self._outputs
        outputs.append(tokens)
        total = self._sum + tokens
        if len(outputs) > MEAN_OVER:
            total -= outputs.popleft()
        self._sum = total
        self.output = (2 * total + len(outputs)) // (2 * len(outputs))

    def input(self) -> int:
        n = len(self.inputs)
        return (2 * sum(self.inputs) + n) // (2 * n) if n else NOMINAL_INPUT

    def charge(self, request: Request) -> int:
        """What a request counts for: input + expected output (the bound or the mean of past outputs, whichever is smaller)."""
        tokens_in, bound, mean = request.input_tokens, request.max_tokens, self.output
        return (self.input() if tokens_in is None else tokens_in) + (mean if bound is None or mean < bound else bound)


class Replica:
    """The live entry of one replica. in_flight: own dispatches without an end; others: what its last scrape adds, if it adds anything."""

    __slots__ = (
        "ended_at", "id", "in_flight", "in_flight_tokens", "kv_tokens", "last_sent_seq", "ordinal", "others", "pool", "prefill_tokens",
        "ready_s", "role", "scrape", "sent_at", "slots", "state", "tokens", "weight",
    )

    def __init__(self, id: str, pool: str, role: str, ordinal: int, tokens: PoolTokens) -> None:
        self.id, self.pool, self.role, self.ordinal, self.tokens = id, pool, role, ordinal, tokens
        self.state, self.weight = BOOTING, 1.0
        self.ready_s: float | None = None
        self.slots: int | None = None
        self.kv_tokens: int | None = None
        self.in_flight = self.in_flight_tokens = self.prefill_tokens = 0
        self.last_sent_seq = -1
        self.scrape: Scrape | None = None
        self.others: int | None = None
        self.sent_at: list[float] = []  # times of own dispatches and ends within the ledger's window
        self.ended_at: list[float] = []

    def after(self, t: float) -> tuple[int, int]:
        """Own dispatches and ends after t."""
        sent, ended = self.sent_at, self.ended_at
        return len(sent) - bisect_right(sent, t), len(ended) - bisect_right(ended, t)

    def forget(self, before: float) -> None:
        """Drop times older than the window."""
        del self.sent_at[: bisect_left(self.sent_at, before)], self.ended_at[: bisect_left(self.ended_at, before)]


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A frozen picture of one replica; ready_s None: not ready yet; scrape None: none, or stale."""

    id: str
    pool: str
    role: str
    ordinal: int
    weight: float
    slots: int | None
    kv_tokens: int | None
    state: str
    ready_s: float | None
    in_flight: int
    in_flight_tokens: int
    prefill_tokens: int
    scrape: Scrape | None
    last_sent_seq: int
