"""What keeps the rate planner from flapping: more at once, fewer only when fewer would have done for long."""

from __future__ import annotations

from collections import deque


class Steadiness:
    """Bounds each tick's wish by those before it.

    More comes at once, up to `max_step`; fewer only as far as would have been enough all through `down_stable_s`, and what is still booting
    is cancelled only if two ticks in a row want it.
    """

    def __init__(self, down_stable_s: float, max_step: int) -> None:
        self._down_stable_s, self._max_step = down_stable_s, max_step
        self._wants: deque[tuple[float, int]] = deque()  # (tick, replicas that would do) over down_stable_s, without a gap
        self._cancel: int | None = None  # what a first tick wanted that would have cancelled what is booting

    def forget(self) -> None:
        """Nothing is known at this tick: the time in which fewer would have done begins anew."""
        self._wants.clear()

    def bound(self, wanted: int, baseline: int, tick_at: float, *, idle: bool, settled: bool) -> tuple[int, str]:
        """(replicas, reason). idle: nothing has come for so long that the last one may go; settled: nothing is booting."""
        wants = self._wants
        wants.append((tick_at, wanted))
        since = tick_at - self._down_stable_s + 1e-9
        while len(wants) > 1 and wants[1][0] <= since:
            wants.popleft()
        if wanted >= baseline:
            self._cancel = None
            step = min(wanted, baseline + self._max_step)
            return step, "no_change" if wanted == baseline else "step_capped" if step < wanted else "scale_up"
        if wants[0][0] > since:
            return baseline, "stabilisation_window"
        target = max(want for _, want in wants)
        if target == 0 and not idle:
            target = 1
        if target >= baseline:
            return baseline, "idle_wait" if target == 1 else "stabilisation_window"
        target = max(target, baseline - self._max_step)
        if settled:
            return target, "scale_down"
        first, self._cancel = self._cancel, target
        if first is None:
            return baseline, "startup_cancel_wait"
        self._cancel = None
        return max(first, target), "startup_cancelled"
