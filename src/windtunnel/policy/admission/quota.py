"""What each tenant may have at once and per time: requests, tokens per minute, KV bytes, requests per second. All or nothing."""

from __future__ import annotations

from collections.abc import KeysView, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from windtunnel.errors import PolicyError
from windtunnel.events import Request, fact
from windtunnel.policy.admission.completion_rate import CompletionRate
from windtunnel.policy.admission.denial import Denial, make_denial
from windtunnel.policy.admission.gates import Gate, Used, reserved_tokens_of, used_tokens_of
from windtunnel.policy.admission.gcra import Gcra
from windtunnel.policy.param import Param, check_number

ACCOUNTS_KEPT = 65_536
Settled = Literal["settled", "duplicate"]


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """Config of one tenant; None: no bound. A minute's tokens and a second's requests (at least one) may come at once."""

    concurrent: Annotated[int | None, Param(1, 1024, 1, "requests", "at once", "requests from intake to their end", "log")] = None
    tokens_per_min: Annotated[float | None, Param(100, 1e7, 100, "tokens/min", "tokens per minute", "input and output", "log")] = None
    kv_bytes: Annotated[float | None, Param(1e6, 1e12, 1e6, "bytes", "KV cache", "held by its requests, if the model's size is known", "log")] = None
    requests_per_s: Annotated[float | None, Param(0.1, 1000, 0.1, "requests/s", "requests per second", "let in per second", "log")] = None

    def __post_init__(self) -> None:
        if self.concurrent is not None:
            check_number("concurrent", self.concurrent, lo=1, whole=True)
        for name in ("tokens_per_min", "kv_bytes", "requests_per_s"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0)


NO_QUOTA = TenantQuota()


@fact
class Need:
    """What a request asks for. tokens: input + the most it may generate; kv_bytes None: unknown, not counted."""

    tokens: int
    kv_bytes: float | None = None


@fact
class Reservation:
    """What `reserve` took; give it to `settle` once."""

    number: int
    tenant: str
    tokens: int
    kv_bytes: float


class Account:
    """One tenant. Tokens: reserved - refunded - spent = held, at every time; each of the first three only grows."""

    __slots__ = ("active", "held", "held_kv", "quota", "rate", "refunded", "requests", "reserved", "spent", "tokens")

    def __init__(self, quota: TenantQuota) -> None:
        self.quota = quota
        self.active = self.reserved = self.refunded = self.spent = self.held = 0
        self.held_kv = 0.0
        self.rate = CompletionRate()
        per_min, per_s = quota.tokens_per_min, quota.requests_per_s
        self.tokens = None if per_min is None else Gcra(per_min / 60.0, per_min)
        self.requests = None if per_s is None else Gcra(per_s, max(1.0, per_s))

    def lacking(self, need: Need, now: float) -> list[tuple[str, float | None]]:
        """What stands against it, in order: (reason, seconds until it may be gone, None if unknown)."""
        quota, lacks = self.quota, list[tuple[str, float | None]]()
        per_s = self.rate.per_s(now)
        turn_s = None if not per_s else 1.0 / per_s
        if quota.concurrent is not None and self.active >= quota.concurrent:
            lacks.append(("quota_concurrent", turn_s))
        if self.tokens is not None and (wait_s := self.tokens.wait_s(need.tokens, now)) != 0.0:
            lacks.append(("exceeds_burst" if wait_s is None else "quota_tokens", wait_s))
        if quota.kv_bytes is not None and need.kv_bytes is not None and self.held_kv + need.kv_bytes > quota.kv_bytes:
            lacks.append(("exceeds_burst" if need.kv_bytes > quota.kv_bytes else "quota_kv", turn_s))
        if self.requests is not None and (wait_s := self.requests.wait_s(1.0, now)) != 0.0:
            lacks.append(("quota_rps", wait_s))
        return lacks

    def take(self, need: Need, now: float) -> None:
        self.active += 1
        self.reserved += need.tokens
        self.held += need.tokens
        self.held_kv += need.kv_bytes or 0.0
        if self.tokens is not None:
            self.tokens.take(need.tokens, now)
        if self.requests is not None:
            self.requests.take(1.0, now)

    def give(self, r: Reservation, used_tokens: int) -> None:
        """The request ended; what it used beyond its reservation is reserved and spent in the same moment."""
        self.active -= 1
        self.held -= r.tokens
        self.held_kv = self.held_kv - r.kv_bytes if self.active else 0.0  # sums of floats must not leave a rest
        self.reserved += max(0, used_tokens - r.tokens)
        self.spent += used_tokens
        self.refunded += max(0, r.tokens - used_tokens)
        if self.tokens is not None:
            self.tokens.settle(r.tokens, used_tokens)

    def fresh(self, now: float) -> bool:
        """Would a new account decide the same?"""
        return not self.active and all(g is None or g.idle(now) for g in (self.tokens, self.requests))


class Quotas:
    """The accounts of all tenants; the entry `default` is the quota of everyone not named, each with an account of its own.

    O(1) per call. Beyond 65 536 tenants, accounts that are as good as new are forgotten.
    """

    def __init__(self, quotas: Mapping[str, TenantQuota]) -> None:
        self._quotas = dict(quotas)
        self.accounts: dict[str, Account] = {}
        self.open: dict[int, Reservation] = {}
        self._made = 0
        self._sweep_at = ACCOUNTS_KEPT

    def account(self, tenant: str, now: float) -> Account:
        account = self.accounts.get(tenant)
        if account is None:
            if len(self.accounts) >= self._sweep_at:
                self._forget(now)
            quota = self._quotas.get(tenant) or self._quotas.get("default") or NO_QUOTA
            account = self.accounts[tenant] = Account(quota)
        return account

    def _forget(self, now: float) -> None:
        self.accounts = {t: a for t, a in self.accounts.items() if not a.fresh(now)}
        self._sweep_at = max(ACCOUNTS_KEPT, 2 * len(self.accounts))

    def refusal(self, tenant: str, need: Need, now: float) -> Denial | None:
        """Why `reserve` would refuse, or None. The first thing that lacks is named; the wait is that of the slowest."""
        lacks = self.account(tenant, now).lacking(need, now)
        if not lacks:
            return None
        waits = [wait_s for _, wait_s in lacks]
        wait_s = None if None in waits else max(w for w in waits if w is not None)
        return make_denial("intake", lacks[0][0], retry_after_s=wait_s, diagnostics={"tenant": tenant, "lacking": [why for why, _ in lacks]})

    def reserve(self, tenant: str, need: Need, now: float, *, force: bool = False) -> Reservation | Denial:
        """Take all that is needed, or nothing. force: charge it, whatever there is."""
        if not force and (denial := self.refusal(tenant, need, now)) is not None:
            return denial
        self.account(tenant, now).take(need, now)
        self._made += 1
        made = self.open[self._made] = Reservation(self._made, tenant, need.tokens, need.kv_bytes or 0.0)
        return made

    def settle(self, reservation: Reservation, used_tokens: int, now: float, *, completed: bool = True) -> Settled:
        """The request has ended with `used_tokens`; the rest comes back. One that is not open (any more) is a `duplicate`: nothing changes."""
        if not isinstance(reservation, Reservation) or self.open.pop(reservation.number, None) is None:
            return "duplicate"
        account = self.account(reservation.tenant, now)
        account.give(reservation, used_tokens)
        if completed:
            account.rate.completed(now)
        return "settled"

    def give_back(self, reservation: Reservation, now: float) -> Settled:
        """It got no further than the door: nothing was used, and it does not count as one of this second's requests."""
        said = self.settle(reservation, 0, now, completed=False)
        if said == "settled" and (requests := self.account(reservation.tenant, now).requests) is not None:
            requests.settle(1.0, 0.0)
        return said


class QuotaGate(Gate):
    """Quotas at the door. kv_bytes_per_token: of the model, None if unknown; then no KV bytes are counted."""

    def __init__(self, quotas: Mapping[str, TenantQuota], kv_bytes_per_token: float | None = None) -> None:
        self.quotas, self.kv_bytes_per_token = Quotas(quotas), kv_bytes_per_token
        self._by_request: dict[str, Reservation] = {}

    @property
    def held(self) -> KeysView[str]:
        """Ids of requests with a reservation."""
        return self._by_request.keys()

    def _need(self, request: Request) -> Need:
        tokens = reserved_tokens_of(request)
        return Need(tokens, None if self.kv_bytes_per_token is None else tokens * self.kv_bytes_per_token)

    def refusal(self, request: Request, now: float) -> Denial | None:
        return self.quotas.refusal(request.tenant, self._need(request), now)

    def take(self, request: Request, now: float) -> None:
        made = self.quotas.reserve(request.tenant, self._need(request), now, force=True)
        assert isinstance(made, Reservation)
        self._by_request[request.id] = made

    def give_back(self, request: Request, now: float) -> None:
        made = self._by_request.pop(request.id, None)
        if made is not None:
            self.quotas.give_back(made, now)

    def settle(self, request: Request, used: Used, now: float) -> None:
        made = self._by_request.pop(request.id, None)
        if made is not None:
            self.quotas.settle(made, used_tokens_of(request, used), now, completed=bool(used.outcome))

    def audit(self) -> None:
        """What open reservations hold is what accounts hold: reserved - refunded - spent."""
        open_: dict[str, list[Reservation]] = {}
        for made in self.quotas.open.values():
            open_.setdefault(made.tenant, []).append(made)
        for tenant, account in self.quotas.accounts.items():
            mine = open_.get(tenant, [])
            tokens = sum(r.tokens for r in mine)
            if (account.active, account.held) != (len(mine), tokens) or tokens != account.reserved - account.refunded - account.spent:
                raise PolicyError(f"tenant {tenant!r}: {len(mine)} requests hold {tokens} tokens, its account says {account.active} and "
                                  f"{account.reserved} - {account.refunded} - {account.spent}")
