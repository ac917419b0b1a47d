"""Refuse at the door what could not have its first token in time: queued prompt tokens over the rate at which prompts are computed."""

from __future__ import annotations

from collections.abc import KeysView
from dataclasses import dataclass
from math import exp
from typing import Annotated

from windtunnel.events import Request
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.gates import Gate, Used, input_tokens_of
from windtunnel.policy.param import BuildContext, Param, check_number

RATE_WINDOW_S = 10.0
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class TokenBudgetGate:
    """Config. Time to first token = transfer_s + prompt tokens (queued and own) / prefill rate; the rate is measured unless given.

    ttft_slo_s None: the scenario's bound on ttft_s, if any. Deadlines of requests count in any case. While the rate is unknown all pass.
    """

    slack: Annotated[float, Param(0.1, 5, 0.1, "× SLO", "slack", "refuse beyond this multiple of the SLO")] = 1.0
    ttft_slo_s: Annotated[float | None, Param(0.05, 60, 0.05, "s", "TTFT SLO", "longest time to first token", "log")] = None
    ttft_target_s: Annotated[float | None, Param(0.05, 60, 0.05, "s", "queue cap", "most prompt work that may queue, as time", "log")] = None
    prefill_tokens_per_s: Annotated[float | None, Param(100, 1e6, 100, "tokens/s", "prefill rate", "of the lane; measured if absent", "log")] = None
    transfer_s: Annotated[float, Param(0, 1, 0.001, "s", "transfer", "added to every prediction")] = 0.0

    def __post_init__(self) -> None:
        check_number("slack", self.slack, above=0.0)
        check_number("transfer_s", self.transfer_s, lo=0.0)
        for name in ("ttft_slo_s", "ttft_target_s", "prefill_tokens_per_s"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0)

    def build(self, ctx: BuildContext) -> TokenBudget:
        slo_s = ctx.slo.get("ttft_s") if self.ttft_slo_s is None else self.ttft_slo_s
        return TokenBudget(self, slo_s)


class PrefillRate:
    """Prompt tokens computed per second of time in which any waited, weighted over 10 s; None before the first.

    A lone request measures one replica only, so under light traffic the rate of a pool is too low; it is right when it matters.
    """

    __slots__ = ("_at", "_busy_s", "_tokens")

    def __init__(self) -> None:
        self._at: float | None = None  # since when the prompts now waiting keep somebody busy
        self._tokens = self._busy_s = 0.0

    def busy(self, now: float) -> None:
        """A prompt waits; before, none did."""
        self._at = now

    def computed(self, tokens: int, now: float) -> None:
        if self._at is None:
            return
        gap_s = now - self._at
        fade = exp(-gap_s / RATE_WINDOW_S)
        self._tokens = self._tokens * fade + tokens
        self._busy_s = self._busy_s * fade + gap_s
        self._at = now

    @property
    def per_s(self) -> float | None:
        return self._tokens / self._busy_s if self._busy_s > 0 else None


class TokenBudget(Gate):
    """queued: prompt tokens of all requests that were let in and have no first token yet. O(1) per call."""

    needs = frozenset({"first_token"})

    def __init__(self, config: TokenBudgetGate | None = None, ttft_slo_s: float | None = None) -> None:
        self.config = config or TokenBudgetGate()
        self.ttft_slo_s = self.config.ttft_slo_s if ttft_slo_s is None else ttft_slo_s
        self.queued = 0
        self.rate = PrefillRate()
        self._open: dict[str, int] = {}
        self._sent: set[str] = set()

    @property
    def held(self) -> KeysView[str]:
        """Ids of requests whose prompt is still counted."""
        return self._open.keys()

    @property
    def prefill_tokens_per_s(self) -> float | None:
        given = self.config.prefill_tokens_per_s
        return self.rate.per_s if given is None else given

    def ttft_s(self, own_tokens: int) -> float | None:
        """The predicted time to first token of a request that comes now; None while the rate is unknown."""
        per_s = self.prefill_tokens_per_s
        return None if per_s is None else self.config.transfer_s + (self.queued + own_tokens) / per_s

    def refusal(self, request: Request, now: float) -> Denial | None:
        own, per_s = input_tokens_of(request), self.prefill_tokens_per_s
        ttft_s = self.ttft_s(own)
        if ttft_s is None or per_s is None:
            return None
        late = request.deadline_s is not None and now + ttft_s > request.deadline_s + EPSILON
        if late or (self.ttft_slo_s is not None and ttft_s > self.ttft_slo_s * self.config.slack + EPSILON):
            return make_denial("intake", "deadline_infeasible", diagnostics=self._why(ttft_s, own, per_s))
        target_s = self.config.ttft_target_s
        if target_s is not None and self.queued + own > target_s * per_s + EPSILON:
            return make_denial("intake", "token_budget", diagnostics=self._why(ttft_s, own, per_s))
        return None

    def _why(self, ttft_s: float, own: int, per_s: float) -> dict[str, float]:
        return {"ttft_s": ttft_s, "queued_tokens": self.queued, "own_tokens": own, "prefill_tokens_per_s": per_s}

    def take(self, request: Request, now: float) -> None:
        tokens = input_tokens_of(request)
        self._open[request.id] = tokens
        self.queued += tokens

    def _drop(self, request_id: str) -> int:
        tokens = self._open.pop(request_id, 0)
        self.queued -= tokens
        self._sent.discard(request_id)
        return tokens

    def give_back(self, request: Request, now: float) -> None:
        self._drop(request.id)

    def dispatched(self, request: Request, wait_s: float, now: float) -> None:
        if request.id in self._open:
            if not self._sent:
                self.rate.busy(now)
            self._sent.add(request.id)

    def first_token(self, request: Request, now: float) -> None:
        if request.id in self._sent:
            self.rate.computed(self._drop(request.id), now)

    def settle(self, request: Request, used: Used, now: float) -> None:
        self._drop(request.id)
