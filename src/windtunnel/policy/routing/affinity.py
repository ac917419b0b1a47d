"""Prefix affinity: a prompt goes where most of its beginning is cached, unless that replica has more than its share already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from windtunnel.events import Request
from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.routing.fleet import Fleet
from windtunnel.policy.routing.least import LeastOutstanding
from windtunnel.policy.routing.prefix import PrefixIndex
from windtunnel.policy.routing.replica import Replica
from windtunnel.policy.routing.router import Choice, NoReplica, ReplicaChange, reason_of
from windtunnel.policy.routing.share import Shares, bound

BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PrefixAffinityConfig:
    """Config. min_ratio, min_blocks: the part of a prompt's blocks, and their number, that a replica must hold to be preferred; a ratio of
    0 lets one shared first block draw everyone to one replica. eps: by how much it may exceed its share of the load; busy: up to which part
    of its slots it may be filled whatever the others have. index_blocks: blocks remembered of a replica that does not tell its KV capacity;
    block_tokens: tokens of a block, None: what the engines say, else 16."""

    min_ratio: Annotated[float, Param(0, 1, 0.05, label="least match", help="part of a prompt that a replica must hold")] = 0.3
    min_blocks: Annotated[int, Param(1, 64, 1, "blocks", "least blocks", "blocks of a prompt that a replica must hold")] = 1
    eps: Annotated[float, Param(0, 2, 0.05, label="excess", help="how far over its share of the load it may be")] = 0.25
    busy: Annotated[float, Param(0, 1, 0.05, label="busy", help="part of its slots that may be full whatever the others have")] = 0.5
    index_blocks: Annotated[int, Param(1000, 1_000_000, 1000, "blocks", "index", "remembered of a replica of unknown capacity", "log")] = 100_000
    block_tokens: Annotated[int | None, Param(16, 1024, 16, "tokens", "block", "tokens of a block; left out: the engines'", knob=False)] = None

    def __post_init__(self) -> None:
        check_number("min_ratio", self.min_ratio, lo=0.0, hi=1.0)
        check_number("min_blocks", self.min_blocks, lo=1, whole=True)
        check_number("eps", self.eps, lo=0.0)
        check_number("busy", self.busy, lo=0.0, hi=1.0)
        check_number("index_blocks", self.index_blocks, lo=1, whole=True)
        if self.block_tokens is not None:
            check_number("block_tokens", self.block_tokens, lo=1, whole=True)

    def build(self, ctx: BuildContext) -> PrefixAffinity:
        told = next((n for p in ctx.pools if (n := p.limits.get("block_tokens")) is not None), BLOCK_TOKENS)
        return PrefixAffinity(self, pools=tuple(p.name for p in ctx.pools), block_tokens=self.block_tokens or told)


class PrefixAffinity:
    """Replicas that hold enough of a prompt are asked one by one, the longest match first, whether they have room for it; if none has, or
    there is none, the least outstanding of all takes it.

    What a replica holds is guessed from what was sent there, as an LRU of its capacity would; exact: told by the engines instead, as
    changes of kind `stored` and `removed`. Reasons: prefix, prefix_busy (there were replicas with a match), prefix_miss.
    O(blocks + replicas with a match) per pick.
    """

    def __init__(self, config: PrefixAffinityConfig | None = None, *, pools: tuple[str, ...] = (), block_tokens: int = BLOCK_TOKENS,
                 exact: bool = False) -> None:
        check_number("block_tokens", block_tokens, lo=1, whole=True)
        self.config = config or PrefixAffinityConfig()
        self.pools, self.block_tokens, self.exact = pools, block_tokens, exact
        self.needs: frozenset[str] = frozenset({"prefix_blocks", "kv_events"} if exact else {"prefix_blocks"})
        self.index = PrefixIndex()
        self._least = LeastOutstanding(pools=pools)
        self._shares = Shares(pools)
        self._fleet: Fleet | None = None
        self._born: dict[str, float | None] = {}  # when the replicas of the index became ready

    def pick(self, request: Request, fleet: Fleet, now: float) -> Choice | NoReplica:
        self._fleet = fleet
        blocks = request.blocks
        matches = self.index.match(blocks) if blocks else {}
        candidates = self._shares.candidates(request, fleet) if matches else {}
        affine = self._affine(matches, candidates, len(blocks or ()), fleet, now)
        if affine:
            load, weight = self._shares.total(candidates, fleet, now)
            for r in affine:
                if self._has_room(r, fleet.load_of(r, now), load, weight):
                    return Choice(r.id, reason_of("prefix", r.id, request), None, matches[r.id])
        elsewhere = self._least.pick(request, fleet, now)
        if type(elsewhere) is not Choice:
            return elsewhere
        id = elsewhere.replica
        return Choice(id, reason_of("prefix_busy" if affine else "prefix_miss", id, request), elsewhere.score,
                      None if blocks is None else matches.get(id, 0))

    def sent(self, request: Request, choice: Choice, now: float) -> None:
        id, blocks, fleet = choice.replica, request.blocks, self._fleet
        self._least.sent(request, choice, now)
        self._shares.sent(id)
        if self.exact or not blocks or fleet is None:
            return
        r = fleet.replicas.get(id)
        if r is None:
            return
        self._born.setdefault(id, r.ready_s)
        self.index.insert(id, blocks, self.config.index_blocks if r.kv_tokens is None else r.kv_tokens // self.block_tokens)

    def done(self, request: Request, replica: str, outcome: str, now: float) -> None:
        self._least.done(request, replica, outcome, now)
        self._shares.done(replica)

    def changed(self, change: ReplicaChange, now: float) -> None:
        """A replica that is gone, or has started anew, holds nothing; one that drains keeps what it has."""
        id, kind = change.replica, change.kind
        self._least.changed(change, now)
        if kind == "gone" or (kind == "ready" and self._started_anew(id)):
            self.index.forget(id)
            self._born.pop(id, None)
        elif kind == "stored" and self.exact:
            self.index.insert(id, change.blocks)
        elif kind == "removed" and self.exact:
            self.index.remove(id, change.blocks)

    def _started_anew(self, id: str) -> bool:
        r = None if self._fleet is None else self._fleet.replicas.get(id)
        return r is not None and id in self._born and self._born[id] != r.ready_s

    def _affine(self, matches: Mapping[str, int], candidates: Mapping[str, Replica], blocks: int, fleet: Fleet, now: float) -> list[Replica]:
        """Candidates that hold enough, the longest match first, then the least loaded, then the one sent to longest ago."""
        least = max(self.config.min_blocks, self.config.min_ratio * blocks - 1e-9)  # 0.55 * 20 is a little over 11
        held = [r for id, n in matches.items() if n >= least and (r := candidates.get(id)) is not None]
        if len(held) > 1:
            held.sort(key=lambda r: (-matches[r.id], fleet.load_of(r, now), r.last_sent_seq, r.ordinal))
        return held

    def _has_room(self, r: Replica, load: int, total: int, weight: float) -> bool:
        config = self.config
        if r.slots is not None and load + 1 <= config.busy * r.slots:
            return True
        return load + 1 <= bound(config.eps, total, weight, r.weight)
