"""What may refuse a request at the door, and the one place where such gates are put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from windtunnel.events import Request, fact
from windtunnel.policy.admission.denial import Denial

NOMINAL_INPUT_TOKENS, NOMINAL_OUTPUT_TOKENS = 1024, 256  # of requests that do not say
ORDER = ("quota", "budget", "gcra", "retry_budget", "bands", "throttle", "breaker", "token_budget")


@fact
class Used:
    """How a request ended that was let in. outcome: its lease outcome, "" if it was never dispatched; wait_s: in the queue until its
    first dispatch or its end; tokens None: unknown."""

    outcome: str
    wait_s: float
    input_tokens: int | None = None
    output_tokens: int | None = None


class Gate(Protocol):
    """One reason to refuse. A gate overrides what it needs; each request that it has taken is settled or given back exactly once.

    refusal: would it refuse now? It takes nothing. take: the request is in, charge it. give_back: as if it had never been in.
    settle: the request has ended, and so has its last attempt. dispatched, first_token: on its way. may_retry: may an attempt that
    failed be repeated? Granting it charges it. audit: raise PolicyError if its own books do not balance (for tests; may be slow).
    """

    needs: frozenset[str] = frozenset()

    def refusal(self, request: Request, now: float) -> Denial | None:
        return None

    def take(self, request: Request, now: float) -> None:
        return None

    def give_back(self, request: Request, now: float) -> None:
        return None

    def settle(self, request: Request, used: Used, now: float) -> None:
        return None

    def dispatched(self, request: Request, wait_s: float, now: float) -> None:
        return None

    def first_token(self, request: Request, now: float) -> None:
        return None

    def may_retry(self, now: float) -> bool:
        return True

    def audit(self) -> None:
        return None


class Gates:
    """Gates in order; the first refusal wins, and then none has taken anything: all are asked before any of them takes.

    A recovered request is charged and never refused. Cost per request: one call per gate and moment that the gate cares for.
    """

    def __init__(self, gates: Iterable[Gate]) -> None:
        self.gates = tuple(gates)
        self.needs: frozenset[str] = frozenset().union(*(g.needs for g in self.gates))
        self._refuse = self._those("refusal")
        self._take = self._those("take")
        self._settle = self._those("settle")
        self._sent = self._those("dispatched")
        self._heard = self._those("first_token")
        self._retry = self._those("may_retry")

    def _those(self, moment: str) -> tuple[Gate, ...]:
        """The gates that care for a moment."""
        return tuple(g for g in self.gates if getattr(type(g), moment) is not getattr(Gate, moment))

    def check(self, request: Request, now: float) -> Denial | None:
        """Let the request in and charge it (None), or say why not."""
        if not request.recovered:
            for gate in self._refuse:
                denial = gate.refusal(request, now)
                if denial is not None:
                    return denial
        for gate in self._take:
            gate.take(request, now)
        return None

    def give_back(self, request: Request, now: float) -> None:
        """The request got no further than the door."""
        for gate in reversed(self._take):
            gate.give_back(request, now)

    def settle(self, request: Request, used: Used, now: float) -> None:
        for gate in self._settle:
            gate.settle(request, used, now)

    def dispatched(self, request: Request, wait_s: float, now: float) -> None:
        for gate in self._sent:
            gate.dispatched(request, wait_s, now)

    def first_token(self, request: Request, now: float) -> None:
        for gate in self._heard:
            gate.first_token(request, now)

    def may_retry(self, now: float) -> bool:
        """May a failed attempt be repeated? The first gate that refuses decides; at most one gate should charge for it."""
        return all(gate.may_retry(now) for gate in self._retry)


def input_tokens_of(request: Request) -> int:
    """Prompt tokens, nominal if unknown."""
    return NOMINAL_INPUT_TOKENS if request.input_tokens is None else request.input_tokens


def reserved_tokens_of(request: Request) -> int:
    """The most that a request may use: input + max_tokens; unknown parts nominal."""
    most = request.max_tokens or request.expected_tokens or NOMINAL_OUTPUT_TOKENS
    return input_tokens_of(request) + most


def used_tokens_of(request: Request, used: Used) -> int:
    """What a request did use; the reserved amount where that is unknown, 0 if it was never dispatched."""
    if not used.outcome:
        return 0
    if used.output_tokens is None:
        return reserved_tokens_of(request)
    tokens_in = used.input_tokens if used.input_tokens is not None else input_tokens_of(request)
    return tokens_in + used.output_tokens
