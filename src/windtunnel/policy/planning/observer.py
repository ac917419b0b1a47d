"""What the planner sees: traffic windows counted from the control's own events, and engine reports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from windtunnel.events import Event, Request
from windtunnel.policy.planning.cadence import Pull
from windtunnel.policy.planning.contract import ForwardPass, FpmData, TrafficMetrics
from windtunnel.policy.planning.demand import TrafficMeter
from windtunnel.policy.planning.fpm_store import FpmStore


@dataclass(slots=True)
class Observed:
    """windows: traffic by length of window, None: not known; fpm: engine reports."""

    windows: Mapping[float, TrafficMetrics | None] = field(default_factory=dict)
    fpm: FpmData | None = None


class Observer(Protocol):
    """events: the types it is handed. `observe` gives what a tick pulls; live: component -> replicas that serve and do not drain."""

    events: frozenset[type]

    def start(self, t0: float, scale_s: float, longest_s: float) -> None: ...
    def handle(self, event: Event, now: float) -> None: ...
    def report(self, component: str, report: ForwardPass) -> None: ...
    def observe(self, tick_at: float, pull: Pull, live: Mapping[str, Collection[str]]) -> Observed: ...
    def remember(self, longest_s: float, now: float) -> None: ...
    def history(self, window_s: float, now: float) -> Sequence[TrafficMetrics]: ...


class FleetObserver:
    """Counts what passes the control. mine: which requests belong to this planner's pools; None: all. fpm_max_age_s None: 3 ticks."""

    events: frozenset[type] = TrafficMeter.events

    def __init__(self, *, mine: Callable[[Request], bool] | None = None, min_coverage: float = 0.5, fpm_max_age_s: float | None = None) -> None:
        self._mine: Callable[[Any], bool] | None = mine
        self._min_coverage, self._fpm_max_age_s = min_coverage, fpm_max_age_s
        self.traffic = TrafficMeter(5.0, 5.0)
        self.fpm = FpmStore(15.0)

    def start(self, t0: float, scale_s: float, longest_s: float) -> None:
        """The grid of windows begins."""
        self.traffic = TrafficMeter(scale_s, longest_s, t0, self._mine)
        self.fpm = FpmStore(3 * scale_s if self._fpm_max_age_s is None else self._fpm_max_age_s)

    def handle(self, event: Event, now: float) -> None:
        self.traffic.handle(event, now)

    def remember(self, longest_s: float, now: float) -> None:
        """Somebody with a longer window joined."""
        self.traffic.remember(longest_s, now)

    def history(self, window_s: float, now: float) -> Sequence[TrafficMetrics]:
        """What is still known of the past, in windows of `window_s`, oldest first; changes nothing."""
        return self.traffic.history(window_s, now)

    def report(self, component: str, report: ForwardPass) -> None:
        self.fpm.report(component, report)

    def observe(self, tick_at: float, pull: Pull, live: Mapping[str, Collection[str]]) -> Observed:
        """Windows end at the grid time, however late it is."""
        windows = {length: self.traffic.window(tick_at, length, self._min_coverage) for length in pull.windows}
        return Observed(windows, self.fpm.data(live, tick_at) if pull.fpm else None)
