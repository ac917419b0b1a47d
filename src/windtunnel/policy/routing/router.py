"""What a router is: it picks a replica and learns what was sent and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from windtunnel.events import Request, fact

if TYPE_CHECKING:
    from windtunnel.policy.routing.fleet import Fleet

NEEDS = frozenset({
    "prefix_blocks", "first_token", "scrape", "kv_events", "progress", "route_key", "handover", "token_counts", "started", "fpm",
})
TRIED = "+tried_again"


@fact
class Choice:
    """Where a request goes. reason: a stable word; score: what decided, if a number did; prefill: the replica that computes its prompt,
    if another one."""

    replica: str
    reason: str
    score: float | None = None
    matched_blocks: int | None = None
    prefill: str | None = None
    epoch: int = 0


@fact
class NoReplica:
    """Nowhere to go now: no_replica, none_ready, all_draining, all_ejected, all_full, bound_full, no_prefill_replica or no_decode_replica."""

    reason: str
    retry_after_s: float | None = None


@fact
class ReplicaChange:
    """kind: ready, draining or gone; of engines that tell what they cache, also stored or removed, with the blocks."""

    kind: str
    replica: str
    blocks: tuple[int, ...] = ()


def reason_of(word: str, replica: str, request: Request) -> str:
    """A choice's reason; it says so when the replica has been tried for this request before, and there was no other."""
    return f"{word}{TRIED}" if replica in request.tried else word


class Router(Protocol):
    """Which replica. `pick` only looks, `sent` commits. needs: words of observations that the world must give."""

    needs: frozenset[str]

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        """The replica for the request, or why there is none. Leaves no trace but in the router's own generator."""

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        """The request was sent as chosen."""

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        """Its attempt there has ended; once per attempt."""

    def changed(self, change: ReplicaChange, now: float) -> None:
        """A replica is ready, drains or is gone."""
