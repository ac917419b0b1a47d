"""What a session may use in all: tokens, seconds at engines, money. No refill; what was reserved and not used comes back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import KeysView, Mapping
from dataclasses import dataclass
from typing import Annotated

from windtunnel.errors import PolicyError
from windtunnel.events import Request
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.gates import Gate, Used, input_tokens_of, reserved_tokens_of, used_tokens_of
from windtunnel.policy.param import Param, check_number

SESSIONS_KEPT = 65_536
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Budget:
    """Config of one tenant's sessions; None: no bound. Requests outside of any session share one budget of their tenant."""

    tokens: Annotated[int | None, Param(100, 10_000_000, 100, "tokens", "tokens", "input and output in all", "log")] = None
    seconds: Annotated[float | None, Param(1, 100_000, 1, "s", "seconds", "from dispatch to end, in all", "log")] = None
    usd: Annotated[float | None, Param(0.01, 10_000, 0.01, "USD", "money", "tokens at the prices below", "log")] = None
    usd_per_1k_input: Annotated[float, Param(0, 1, 0.0001, "USD", "input price", "per 1000 prompt tokens")] = 0.0
    usd_per_1k_output: Annotated[float, Param(0, 1, 0.0001, "USD", "output price", "per 1000 generated tokens")] = 0.0

    def __post_init__(self) -> None:
        if self.tokens is not None:
            check_number("tokens", self.tokens, lo=1, whole=True)
        for name in ("seconds", "usd"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0)
        check_number("usd_per_1k_input", self.usd_per_1k_input, lo=0.0)
        check_number("usd_per_1k_output", self.usd_per_1k_output, lo=0.0)

    def price_usd(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.usd_per_1k_input + tokens_out * self.usd_per_1k_output) / 1000.0


class Purse:
    """One session. Tokens and money: what is left is the budget - spent - held by requests that have not ended."""

    __slots__ = ("active", "budget", "held", "held_usd", "spent", "spent_s", "spent_usd")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.active = self.held = self.spent = 0
        self.held_usd = self.spent_s = self.spent_usd = 0.0

    def lacking(self, tokens: int, usd: float) -> list[str]:
        """What there is too little of."""
        budget = self.budget
        lacks = []
        if budget.tokens is not None and self.spent + self.held + tokens > budget.tokens:
            lacks.append("tokens")
        if budget.seconds is not None and self.spent_s >= budget.seconds - EPSILON:
            lacks.append("seconds")
        if budget.usd is not None and self.spent_usd + self.held_usd + usd > budget.usd * (1.0 + EPSILON):
            lacks.append("usd")
        return lacks

    @property
    def tokens_left(self) -> int | None:
        """None: no bound."""
        return None if self.budget.tokens is None else max(0, self.budget.tokens - self.spent - self.held)


class BudgetGate(Gate):
    """Budgets at the door, by tenant; the entry `default` is for everyone not named. O(1) per call.

    The longest unused sessions beyond 65 536 are forgotten, and their spending with them.
    """

    def __init__(self, budgets: Mapping[str, Budget]) -> None:
        self._budgets = dict(budgets)
        self.purses: OrderedDict[tuple[str, str], Purse] = OrderedDict()
        self._held: dict[str, tuple[Purse, int, float]] = {}
        self._sent: dict[str, float] = {}

    @property
    def held(self) -> KeysView[str]:
        """Ids of requests with a reservation."""
        return self._held.keys()

    def purse(self, request: Request) -> Purse | None:
        """The request's purse; None if its tenant has no budget."""
        budget = self._budgets.get(request.tenant) or self._budgets.get("default")
        if budget is None:
            return None
        key = (request.tenant, "" if request.turn is None else request.turn.session)
        purse = self.purses.get(key)
        if purse is None:
            purse = self.purses[key] = Purse(budget)
            self._forget()
        else:
            self.purses.move_to_end(key)
        return purse

    def _forget(self) -> None:
        for _ in range(2):  # one that is in use goes to the end; looking at two for each new one keeps the number bounded
            if len(self.purses) <= SESSIONS_KEPT:
                return
            key, purse = self.purses.popitem(last=False)
            if purse.active:
                self.purses[key] = purse

    def _need(self, purse: Purse, request: Request) -> tuple[int, float]:
        tokens, tokens_in = reserved_tokens_of(request), input_tokens_of(request)
        return tokens, purse.budget.price_usd(tokens_in, tokens - tokens_in)

    def refusal(self, request: Request, now: float) -> Denial | None:
        purse = self.purse(request)
        if purse is None:
            return None
        lacks = purse.lacking(*self._need(purse, request))
        return make_denial("intake", "budget", diagnostics={"tenant": request.tenant, "lacking": lacks}) if lacks else None

    def take(self, request: Request, now: float) -> None:
        purse = self.purse(request)
        if purse is None:
            return
        tokens, usd = self._need(purse, request)
        self._held[request.id] = (purse, tokens, usd)
        purse.active += 1
        purse.held += tokens
        purse.held_usd += usd

    def _give(self, request: Request) -> Purse | None:
        held = self._held.pop(request.id, None)
        if held is None:
            return None
        purse, tokens, usd = held
        purse.active -= 1
        purse.held -= tokens
        purse.held_usd = purse.held_usd - usd if purse.active else 0.0  # sums of floats must not leave a rest
        return purse

    def give_back(self, request: Request, now: float) -> None:
        self._give(request)

    def dispatched(self, request: Request, wait_s: float, now: float) -> None:
        if request.id in self._held:
            self._sent.setdefault(request.id, now)

    def audit(self) -> None:
        """What open requests hold is what purses hold."""
        open_: dict[int, list[int]] = {}
        for purse, tokens, _ in self._held.values():
            open_.setdefault(id(purse), []).append(tokens)
        for (tenant, _), purse in self.purses.items():
            mine = open_.get(id(purse), [])
            if (purse.active, purse.held) != (len(mine), sum(mine)) or min(purse.spent, purse.spent_s, purse.spent_usd) < 0:
                raise PolicyError(f"tenant {tenant!r}: {len(mine)} requests hold {sum(mine)} tokens, its purse says {purse.active} and {purse.held}")

    def settle(self, request: Request, used: Used, now: float) -> None:
        sent_s, purse = self._sent.pop(request.id, now), self._give(request)
        if purse is None:
            return
        tokens = used_tokens_of(request, used)
        tokens_in = min(tokens, input_tokens_of(request) if used.input_tokens is None else used.input_tokens)
        purse.spent += tokens
        purse.spent_s += now - sent_s
        purse.spent_usd += purse.budget.price_usd(tokens_in, tokens - tokens_in)
