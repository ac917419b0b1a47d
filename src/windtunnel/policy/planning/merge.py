"""Many opinions, one number per component: bounds and values by type, the smallest priority first. Pure functions.

result = max(floor, min(ceiling, recommendation)): floor = largest AT_LEAST, ceiling = smallest AT_MOST, recommendation = the SET of the
smallest priority, else the baseline. Floor beats ceiling; a rejection ends everything; a final override silences the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from windtunnel.policy.planning.contract import Accept, ComponentTarget, Override, OverrideType, Reject, ScalingProposal, StageResponse

SET, AT_LEAST, AT_MOST = OverrideType.SET, OverrideType.AT_LEAST, OverrideType.AT_MOST
TieBreak = Literal["registration", "plugin_id"]
Note = tuple[str, str, str, dict[str, Any]]  # kind, plugin_id, component, data


@dataclass(slots=True)
class Ballot:
    """One plugin's answer. Equal priorities are decided by order; held_over: an answer of `age_s` ago that still counts."""

    plugin_id: str
    priority: int
    response: StageResponse
    held_over: bool = False
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Clamp:
    """A bound moved a component's recommendation. bound: "floor" or "ceiling"; plugin_id: whose."""

    component: str
    bound: str
    plugin_id: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """A floor above a ceiling; the floor won."""

    component: str
    floor: int
    floor_owner: str
    ceiling: int
    ceiling_owner: str


@dataclass(frozen=True, slots=True)
class SetDropped:
    """A SET in a stage that takes bounds only."""

    plugin_id: str
    component: str


@dataclass(slots=True)
class MergeOutcome:
    """proposal None: rejected. winners: component -> who decided its number, "" if the baseline did.

    ignored: plugins whose overrides a final answer silenced. records: (kind, plugin_id, component, data), only if asked for.
    """

    proposal: ScalingProposal | None
    short_circuit_reason: str | None = None
    rejected_by: tuple[str, ...] = ()
    clamped: tuple[Clamp, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    set_dropped: tuple[SetDropped, ...] = ()
    used_final_from: str = ""
    ignored: tuple[str, ...] = ()
    winners: Mapping[str, str] = field(default_factory=dict)
    records: tuple[Note, ...] = ()


class _Bucket:
    """What was said about one component."""

    __slots__ = ("ceiling", "ceiling_owner", "floor", "floor_owner", "owner", "priority", "value")

    def __init__(self) -> None:
        self.floor, self.floor_owner = 0, ""
        self.ceiling: int | None = None
        self.ceiling_owner = self.owner = ""
        self.value: int | None = None
        self.priority = 0


_target = lru_cache(maxsize=8192)(ComponentTarget)


def type_aware_merge(ballots: Sequence[Ballot], baseline: Mapping[str, int | None], *, set_allowed: bool = True,
                     tie_break: TieBreak = "registration", records: bool = True) -> MergeOutcome:
    """Merge a stage's answers over `baseline` (component -> replicas; None: count unknown; absent: no such pool yet).

    Every baseline component is in the result, after those that were spoken of, in order. set_allowed=False drops SETs and ignores final.
    tie_break "plugin_id" sorts by (priority, plugin_id) first; else the order of `ballots` decides between equal priorities.
    """
    if tie_break == "plugin_id":
        ballots = sorted(ballots, key=lambda b: (b.priority, b.plugin_id))
    overrides = []
    for ballot in ballots:
        kind = type(ballot.response.answer)
        if kind is Override:
            overrides.append(ballot)
        elif kind is Reject:
            return _rejected(ballots, records)
    return _Merge(overrides, baseline, set_allowed, tie_break, records).outcome()


def _rejected(ballots: Sequence[Ballot], records: bool) -> MergeOutcome:
    against = [(b.plugin_id, b.response.answer.reason) for b in ballots if type(b.response.answer) is Reject]
    notes = tuple(("rejected", plugin, "", {"reason": reason}) for plugin, reason in against) if records else ()
    return MergeOutcome(None, f"{against[0][0]}: {against[0][1]}", tuple(plugin for plugin, _ in against), records=notes)


class _Merge:
    """One merge without a rejection."""

    def __init__(self, overrides: list[Ballot], baseline: Mapping[str, int | None], set_allowed: bool, tie_break: TieBreak,
                 records: bool) -> None:
        self.baseline, self.set_allowed, self.tie_break, self.noting = baseline, set_allowed, tie_break, records
        self.notes: list[Note] = []
        self.dropped: list[SetDropped] = []
        self.final = ""
        self.ignored: tuple[str, ...] = ()
        self.used = self._after_final(overrides)
        self.buckets: dict[str, _Bucket] = {}
        for ballot in self.used:
            for target in ballot.response.answer.targets:  # type: ignore[union-attr]
                if target.replicas is not None:
                    self._take(ballot, target)

    def _after_final(self, overrides: list[Ballot]) -> list[Ballot]:
        finals = [b for b in overrides if b.response.final]
        if not finals:
            return overrides
        if not self.set_allowed:
            for ballot in finals:
                self._note("final_ignored", ballot.plugin_id)
            return overrides
        winner = min(finals, key=lambda b: b.priority)
        for other in finals:
            if other is not winner and other.priority == winner.priority and other.response.answer != winner.response.answer:
                self._tie(winner.plugin_id, "", winner.response.answer, other.plugin_id, other.response.answer)
        self.final = winner.plugin_id
        self.ignored = tuple(b.plugin_id for b in overrides if b is not winner)
        self._note("final_used", winner.plugin_id, "", ignored=list(self.ignored))
        return [winner]

    def _take(self, ballot: Ballot, target: ComponentTarget) -> None:
        n, kind, who = target.replicas, target.type, ballot.plugin_id
        assert n is not None
        if kind is SET and not self.set_allowed:
            self.dropped.append(SetDropped(who, target.component))
            self._note("set_dropped", who, target.component, replicas=n)
            return
        if n < 0:
            self._note("negative_clamped", who, target.component, replicas=n, type=kind.name)
            n = 0
        bucket = self.buckets.get(target.component)
        if bucket is None:
            bucket = self.buckets[target.component] = _Bucket()
        if kind is SET:
            self._set(bucket, ballot, target.component, n)
        elif kind is AT_LEAST:
            if n > bucket.floor or not bucket.floor_owner:
                bucket.floor, bucket.floor_owner = n, who
        elif bucket.ceiling is None or n < bucket.ceiling:
            bucket.ceiling, bucket.ceiling_owner = n, who

    def _set(self, bucket: _Bucket, ballot: Ballot, component: str, n: int) -> None:
        if bucket.value is not None and ballot.priority >= bucket.priority:
            if self.noting and ballot.priority == bucket.priority and n != bucket.value:
                self._tie(bucket.owner, component, bucket.value, ballot.plugin_id, n)
            return
        if bucket.value is not None:  # what was tied among the beaten does not matter any more
            self.notes = [note for note in self.notes if note[0] != "tie_broken" or note[2] != component]
        bucket.value, bucket.owner, bucket.priority = n, ballot.plugin_id, ballot.priority

    def outcome(self) -> MergeOutcome:
        targets, winners, clamped, conflicts = [], {}, [], []
        baseline, buckets = self.baseline, self.buckets
        for component in (*buckets, *(c for c in baseline if c not in buckets)):
            known = baseline.get(component, 0)
            bucket = buckets.get(component)
            if bucket is None:
                if known is None:
                    self._note("no_recommendation", "", component)
                targets.append(_target(component, known))
                winners[component] = ""
                continue
            ceiling = bucket.ceiling
            if ceiling is not None and bucket.floor > ceiling:
                conflict = Conflict(component, bucket.floor, bucket.floor_owner, ceiling, bucket.ceiling_owner)
                conflicts.append(conflict)
                if self.noting:
                    self._note("bounds_conflict", "", component, floor=conflict.floor, floor_owner=conflict.floor_owner,
                               ceiling=conflict.ceiling, ceiling_owner=conflict.ceiling_owner)
            wanted, winners[component] = (known, "") if bucket.value is None else (bucket.value, bucket.owner)
            if wanted is None:
                self._note("no_recommendation", "", component)
                targets.append(_target(component, None))
                continue
            result = wanted if ceiling is None or wanted < ceiling else ceiling
            if result < bucket.floor:
                result = bucket.floor
            if result != wanted:
                bound, owner = ("ceiling", bucket.ceiling_owner) if result < wanted else ("floor", bucket.floor_owner)
                clamped.append(Clamp(component, bound, owner))
                winners[component] = owner
                if self.noting:
                    self._note("clamped", owner, component, bound=bound, wanted=wanted, result=result)
            elif bucket.value is not None and self.noting:
                self._note("winner", bucket.owner, component, replicas=result, priority=bucket.priority)
            targets.append(_target(component, result))
        reason = "; ".join(self._reasons()) if self.used else ""
        return MergeOutcome(ScalingProposal(tuple(targets), reason, self.final or "merged"), None, (), tuple(clamped), tuple(conflicts),
                            tuple(self.dropped), self.final, self.ignored, winners, tuple(self.notes))

    def _reasons(self) -> Iterator[str]:
        return (b.response.answer.reason for b in self.used if b.response.answer.reason)  # type: ignore[union-attr]

    def _tie(self, winner: str, component: str, value: Any, loser: str, other: Any) -> None:
        if self.noting:
            rule = "first_in_answer" if winner == loser else self.tie_break
            self.notes.append(("tie_broken", winner, component, {"loser": loser, "value": _short(value), "other": _short(other), "rule": rule}))

    def _note(self, kind: str, plugin_id: str, component: str = "", /, **data: Any) -> None:
        if self.noting:
            self.notes.append((kind, plugin_id, component, data))


def _short(value: Any) -> Any:
    """A number, or an override's targets as text."""
    if not isinstance(value, Override):
        return value
    sign = {SET: "", AT_LEAST: ">=", AT_MOST: "<="}
    return " ".join(f"{t.component}{sign[t.type]}{t.replicas}" for t in value.targets if t.replicas is not None)


ACCEPTED = StageResponse(Accept())
