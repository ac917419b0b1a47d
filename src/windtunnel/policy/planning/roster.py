"""The table of plugins: who is registered, when each was called last, what it said, and whether it still lives. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from windtunnel.errors import PluginRefusedError
from windtunnel.policy.planning.breaker import Breaker
from windtunnel.policy.planning.contract import HoldPolicy, Override, Stage
from windtunnel.policy.planning.demand import grid_index
from windtunnel.policy.planning.paths import Path, blocks_of, parse
from windtunnel.policy.planning.plugin import Registration

PLUGIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
VERSION = re.compile(r"\d+\.\d+", re.ASCII)
BUILTIN_PREFIX = "builtin_"
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class RosterSettings:
    """What registrations are measured by, and what they take that they do not say. Seconds."""

    scale_interval_s: float = 5.0
    timeout_s: float = 5.0
    failure_threshold: int = 5
    cooldown_s: float = 30.0
    protocol_min: str = "1.0"
    protocol_max: str = "1.0"
    heartbeat_timeout_s: float = 15.0
    missed_threshold: int = 2


@dataclass(slots=True, eq=False)
class Entry:
    """A registered plugin. order: counts registrations, never reused; it tells an old registration of an id from a new one.

    anchor: grid time of the last slot it used; cache: its last override, taken at `cached_at`; gated_on: the path it waited for.
    blocks: what it is handed, in the order of paths.BLOCKS; transport "inline", "async" or the scheme of its endpoint.
    """

    registration: Registration
    order: int
    plugin: Any
    subject: str
    self_registered: bool
    registered_at: float
    last_heartbeat: float
    plugin_id: str
    stage: Stage
    priority: int
    timeout_s: float
    interval_s: float
    window_s: float
    hold_last: bool
    hold_max_age_s: float
    requires: tuple[tuple[str, Path], ...]
    blocks: tuple[bool, ...]
    breaker: Breaker
    anchor: float
    transport: str = "inline"
    enabled: bool = True
    fails: int = 0
    failed_at: float = 0.0
    cache: Override | None = None
    cached_at: float = 0.0
    gated_on: str = ""
    calls: int = 0
    last_call_at: float | None = None

    def due(self, tick_at: float) -> bool:
        """Has its interval passed since the last slot?"""
        return not self.interval_s or tick_at - self.anchor >= self.interval_s - EPSILON

    def backing_off(self, tick_at: float, scale_s: float) -> bool:
        """Failed lately, and not yet worth another try: scale, 2·scale, 4·scale ... up to its own interval."""
        if not self.fails or not self.interval_s:
            return False
        return tick_at < self.failed_at + min(self.interval_s, scale_s * 2.0 ** min(self.fails - 1, 60)) - EPSILON

    def clear(self) -> bool:
        """Forget the held answer; was there one?"""
        had, self.cache = self.cache is not None, None
        return had


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Who takes part, frozen: PREDICT by priority, the other stages in order of registration."""

    predict: tuple[Entry, ...] = ()
    propose: tuple[Entry, ...] = ()
    reconcile: tuple[Entry, ...] = ()
    constrain: tuple[Entry, ...] = ()
    entries: tuple[Entry, ...] = field(default=())


class Roster:
    """Registers, refuses, sweeps. A refusal leaves everything as it was."""

    def __init__(self, settings: RosterSettings | None = None) -> None:
        self.settings = settings or RosterSettings()
        self.t0 = 0.0
        self.entries: dict[str, Entry] = {}
        self._orders = 0
        self._snapshot = Snapshot()

    def __contains__(self, plugin_id: object) -> bool:
        return plugin_id in self.entries

    def begin(self, t0: float) -> None:
        """The grid starts; whoever registered before it counts as registered now."""
        self.t0 = t0
        for entry in self.entries.values():
            entry.anchor = entry.registered_at = entry.last_heartbeat = t0

    def snapshot(self) -> Snapshot:
        """The table as it is now; made anew only when it changed."""
        return self._snapshot

    def refusal(self, reg: Registration, *, external: bool = False) -> str:
        """Why it may not register, the first failure in the order of the checks; "" if it may. external: also its protocol version."""
        wrong = (self._version(reg.protocol_version) if external else "") or self._fields(reg) or self._reserved(reg, external)
        return wrong or self._window(reg) or (
            "duplicate_plugin_id: must Unregister before re-Register" if reg.plugin_id in self.entries else "")

    def register(self, reg: Registration, now: float, subject: str = "", plugin: Any = None, *, external: bool = False,
                 transport: str = "inline") -> Entry:
        """Raises PluginRefusedError; `external` ones registered themselves and must beat their hearts."""
        reason = self.refusal(reg, external=external)
        if reason:
            raise PluginRefusedError(reason)
        s = self.settings
        scale, interval = s.scale_interval_s, reg.execution_interval_s
        self._orders += 1
        window = reg.observation_window_s or max(1, -int(-(interval / scale - 1e-6) // 1)) * scale
        entry = Entry(
            reg, self._orders, plugin, subject, external, now, now, reg.plugin_id, Stage(reg.stage), reg.priority,
            s.timeout_s if reg.timeout_s is None else reg.timeout_s, interval, round(window / scale) * scale,
            reg.hold_policy is HoldPolicy.HOLD_LAST, reg.hold_max_age_s if reg.hold_max_age_s is not None else max(3 * interval, 10 * scale),
            tuple((path, parse(path)) for path in reg.requires), blocks_of(reg.needs),
            Breaker(s.failure_threshold if reg.failure_threshold is None else reg.failure_threshold,
                    s.cooldown_s if reg.cooldown_s is None else reg.cooldown_s),
            self.t0 + max(0, grid_index(now, self.t0, scale)) * scale, transport,
        )
        self.entries[reg.plugin_id] = entry
        self._freeze()
        return entry

    def unregister(self, plugin_id: str, reason: str = "unregistered") -> Entry | None:
        """Who was removed; None if nobody of that name was there."""
        entry = self.entries.pop(plugin_id, None)
        if entry is not None:
            entry.enabled = False
            entry.clear()
            self._freeze()
        return entry

    def heartbeat(self, plugin_id: str, now: float) -> bool:
        """False for an unknown plugin."""
        entry = self.entries.get(plugin_id)
        if entry is None:
            return False
        entry.last_heartbeat = max(entry.last_heartbeat, now)
        return True

    def sweep(self, now: float) -> tuple[Entry, ...]:
        """Remove those that registered themselves and have been silent too long."""
        longest_s = self.settings.heartbeat_timeout_s * self.settings.missed_threshold
        silent = tuple(e for e in self._snapshot.entries if e.self_registered and now - e.last_heartbeat > longest_s)
        for entry in silent:
            self.unregister(entry.plugin_id, "heartbeat_missed")
        return silent

    def _freeze(self) -> None:
        entries = sorted(self.entries.values(), key=lambda e: e.order)
        by = {stage: [e for e in entries if e.stage is stage] for stage in Stage}
        self._snapshot = Snapshot(tuple(sorted(by[Stage.PREDICT], key=lambda e: e.priority)), tuple(by[Stage.PROPOSE]),
                                  tuple(by[Stage.RECONCILE]), tuple(by[Stage.CONSTRAIN]), tuple(entries))

    def _version(self, version: str) -> str:
        if not isinstance(version, str) or VERSION.fullmatch(version) is None:
            return f"protocol_version_malformed: {version}"
        low, high = self.settings.protocol_min, self.settings.protocol_max
        if not _numbers(low) <= _numbers(version) <= _numbers(high):
            return f"protocol_version_unsupported: requested={version}, supported=[{low},{high}]"
        return ""

    def _reserved(self, reg: Registration, external: bool) -> str:
        reserved = external and reg.plugin_id.startswith(BUILTIN_PREFIX)
        return f"invalid_field: plugin_id: {BUILTIN_PREFIX} is reserved" if reserved else ""

    def _window(self, reg: Registration) -> str:
        window, scale = reg.observation_window_s, self.settings.scale_interval_s
        if window == 0:
            return ""
        ratio = window / scale if isfinite(window) else 0.0
        if window < 0 or round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6:
            return f"observation_window_misaligned: window={window:g} scale_interval={scale:g}"
        return ""

    def _fields(self, reg: Registration) -> str:
        if not isinstance(reg.plugin_id, str) or PLUGIN_ID.fullmatch(reg.plugin_id) is None:
            return "invalid_field: plugin_id: expected [A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
        if reg.stage not in tuple(Stage):
            return f"invalid_field: stage: unknown stage {reg.stage!r}"
        if type(reg.priority) is not int or not 0 <= reg.priority < 2**31:
            return "invalid_field: priority: expected an int in [0, 2^31)"
        if type(reg.hold_policy) is not HoldPolicy:
            return "invalid_field: hold_policy: expected ACCEPT_WHEN_IDLE or HOLD_LAST"
        if reg.failure_threshold is not None and (type(reg.failure_threshold) is not int or reg.failure_threshold < 1):
            return "invalid_field: failure_threshold: expected an int >= 1"
        for name, positive in (("execution_interval_s", False), ("hold_max_age_s", False), ("timeout_s", True), ("cooldown_s", True)):
            value = getattr(reg, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0 or (positive and not value):
                return f"invalid_field: {name}: expected a finite number {'> 0' if positive else '>= 0'}"
        if isinstance(reg.observation_window_s, bool) or not isinstance(reg.observation_window_s, int | float):
            return "invalid_field: observation_window_s: expected a number"
        for name in ("needs", "requires"):
            for path in getattr(reg, name):
                try:
                    parse(path)
                except (ValueError, AttributeError) as error:
                    return f"invalid_field: {name}: {error}"
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
