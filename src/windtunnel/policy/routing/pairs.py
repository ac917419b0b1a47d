"""Pairs: the prompt is computed on one replica, the answer on another, and the KV moves in between.

Each side has a router of its own. With links alike everywhere the cheapest pair is the cheapest prefill replica and the cheapest decode
replica, so the two are picked one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from windtunnel.errors import ConfigValueError
from windtunnel.events import Request
from windtunnel.policy.param import BuildContext, Param, PoolFacts, check_number
from windtunnel.policy.routing.choices import PowerOfTwoConfig, RandomConfig
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstandingConfig
from windtunnel.policy.routing.roundrobin import RoundRobinConfig
from windtunnel.policy.routing.router import TRIED, Choice, NoReplica, ReplicaChange, Router

By = Literal["least_tokens", "least_requests", "round_robin", "random", "power_of_two"]
SIDES = ("least_tokens", "least_requests", "round_robin", "random", "power_of_two")


def _side(kind: str) -> Any:
    """The config of the router of one side."""
    return {"least_tokens": LeastOutstandingConfig(by="tokens"), "least_requests": LeastOutstandingConfig(), "random": RandomConfig(),
            "round_robin": RoundRobinConfig(), "power_of_two": PowerOfTwoConfig()}[kind]


@dataclass(frozen=True, slots=True)
class PairsConfig:
    """Config. prefill, decode: how each side is picked; least_tokens is the least prompt still to compute on the prefill side, and the
    least room promised on the decode side. local_prefill_max_tokens: a prompt at most so long is computed where the answer is, if that
    replica can (role agg); 0 = never."""

    prefill: Annotated[By, Param(choices=SIDES, label="prefill", help="how the replica for the prompt is picked")] = "least_tokens"
    decode: Annotated[By, Param(choices=SIDES, label="decode", help="how the replica for the answer is picked")] = "least_tokens"
    local_prefill_max_tokens: Annotated[int, Param(0, 8192, 64, "tokens", "local prefill", "a prompt at most so long does not go elsewhere")] = 0

    def __post_init__(self) -> None:
        for name in ("prefill", "decode"):
            if getattr(self, name) not in SIDES:
                raise ConfigValueError(name, f"expected one of {', '.join(SIDES)}, got {getattr(self, name)!r}")
        check_number("local_prefill_max_tokens", self.local_prefill_max_tokens, lo=0, whole=True)

    def build(self, ctx: BuildContext) -> Pairs:
        """Raises ConfigValueError if the pools of the context lack a side."""
        first, second = sides_of(ctx.pools)
        for role, pools in (("prefill", first), ("decode", second)):
            if not pools:
                raise ConfigValueError("control.routing", f"pairs need a pool of role {role}", hint=f"give a pool `role: {role}`")

        def router(kind: str, pools: tuple[PoolFacts, ...]) -> Any:
            return _side(kind).build(BuildContext(ctx.rng, ctx.tenants, pools, ctx.slo, ctx.wants))

        return Pairs(router(self.prefill, first), router(self.decode, second), self.local_prefill_max_tokens)


def sides_of(pools: tuple[PoolFacts, ...]) -> tuple[tuple[PoolFacts, ...], tuple[PoolFacts, ...]]:
    """The pools that compute prompts, and those that can go on with an answer (agg ones can, too)."""
    return tuple(p for p in pools if p.role == "prefill"), tuple(p for p in pools if p.role != "prefill")


class Pairs:
    """Composes any two routers, each over the pools of its side. `sent` and `done` reach both, each exactly once per attempt."""

    def __init__(self, prefill: Router, decode: Router, local_prefill_max_tokens: int = 0) -> None:
        self.prefill, self.decode, self.local_max = prefill, decode, local_prefill_max_tokens
        self.needs: frozenset[str] = prefill.needs | decode.needs | {"handover"}
        self._on: dict[str, str] = {}  # request id -> its prefill replica, until that is done with it

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        second = self.decode.pick(request, fleet, now)
        if type(second) is not Choice:
            return _nowhere(second, "decode")
        tokens = request.input_tokens
        if tokens is not None and tokens <= self.local_max and fleet.replicas[second.replica].role == "agg":
            return Choice(second.replica, "local_prefill", second.score, second.matched_blocks)
        anywhere = request if request.replica is None else replace(request, replica=None)  # a fixed replica is the answer's
        first = self.prefill.pick(anywhere, fleet, now)
        if type(first) is not Choice:
            return _nowhere(first, "prefill")
        again = TRIED if first.reason.endswith(TRIED) or second.reason.endswith(TRIED) else ""
        return Choice(second.replica, "pair" + again, second.score, second.matched_blocks, first.replica)

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        self.decode.sent(request, choice, now)
        if choice.prefill is not None:
            self._on[request.id] = choice.prefill
            self.prefill.sent(request, Choice(choice.prefill, choice.reason), now)

    def handed_over(self, request: Request, now: float) -> None:
        """The prefill replica has done its part, or the attempt is over; a second call changes nothing."""
        replica = self._on.pop(request.id, None)
        if replica is not None:
            self.prefill.done(request, replica, "success", now)

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        first = self._on.pop(request.id, None)
        if first is not None:
            self.prefill.done(request, first, outcome, now)
        self.decode.done(request, replica, outcome, now)

    def changed(self, change: ReplicaChange, now: float) -> None:
        self.prefill.changed(change, now)
        self.decode.changed(change, now)


def _nowhere(refused: Any, side: str) -> NoReplica:
    """Why there is no pair: nobody on a side at all, or nobody who can take it now."""
    reason = f"no_{side}_replica" if refused.reason in ("no_replica", "none_ready", "all_draining") else refused.reason
    return NoReplica(reason, refused.retry_after_s)
