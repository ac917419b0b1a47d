"""Adapters on one engine: few are resident, the others have to be loaded before their requests can wait for the batch.

After vLLM's `--max-loras`: low-rank adapters of one base model in one batch (Punica, Chen et al. 2023).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from windtunnel.policy.routing.hashing import h64
from windtunnel.sim.attempt import INBOUND, Attempt, Refusal
from windtunnel.sim.engine import SimEngine
from windtunnel.sim.stepmodels.model import Batch


class _Slot:
    """A resident adapter: ready_s: when it is (or was) loaded; users: requests that hold it here."""

    __slots__ = ("ready_s", "users")

    def __init__(self, ready_s: float) -> None:
        self.ready_s, self.users = ready_s, 0


def lora_engine(*args: Any, adapter_of: Callable[[str], str | None], **options: Any) -> LoraEngine:
    """A `SimEngine` with adapters. adapter_of(request id): the name of a request's adapter, None for the base model."""
    engine = LoraEngine(*args, **options)
    engine.adapt(adapter_of)
    return engine


class LoraEngine(SimEngine):
    """An engine with adapters, made by `lora_engine`.

    A request whose adapter is resident goes straight in; a miss loads it for `load_s`, in place of the one that was used longest ago and that
    nobody here holds; without such a one it waits, and others may pass. Prefixes are shared within an adapter only. adapter_hits: requests
    that found theirs loaded; adapter_loads: loads.
    """

    __slots__ = ("_adapter_of", "_held", "_line", "_resident", "adapter_hits", "adapter_loads")

    def adapt(self, adapter_of: Callable[[str], str | None]) -> None:
        """Before the first request: whose adapter is which. Not in the constructor, whose options pass through to the engine's."""
        self._adapter_of = adapter_of
        self._on_finish, self._on_cancelled = self._leaving(self._on_finish), self._leaving(self._on_cancelled)
        self._resident: OrderedDict[str, _Slot] = OrderedDict()  # used longest ago first
        self._held: dict[tuple[str, int], str] = {}
        self._line: list[tuple[Attempt, str]] = []
        self.adapter_hits = self.adapter_loads = 0
        self._plain = False

    def _leaving(self, tell: Callable[[Attempt], None]) -> Callable[[Attempt], None]:
        def left(a: Attempt) -> None:
            self._leave_adapter(a)
            tell(a)

        return left

    def submit(self, a: Attempt) -> Refusal | None:
        adapter = self._adapter_of(a.id)
        if adapter is None:
            return super().submit(a)
        refusal = self._refusal(a)
        if refusal is not None:
            return refusal
        if a.blocks is not None:
            salt = h64(adapter)
            a.blocks = tuple(block ^ salt for block in a.blocks)
        a.submitted_s, a.state = self.agenda._now, INBOUND
        self._here[a.id, a.dispatch] = a
        self._inbound += 1
        self._line.append((a, adapter))
        self._seat()
        return None

    def _seat(self) -> None:
        """Give adapters to those in line, in order; who finds no place for its own is passed."""
        line, self._line = self._line, []
        for a, adapter in line:
            if a.state != INBOUND:
                continue  # cancelled
            slot = self._claim(adapter)
            if slot is None:
                self._line.append((a, adapter))
                continue
            slot.users += 1
            self._held[a.id, a.dispatch] = adapter
            self._come_in(a, max(slot.ready_s, a.submitted_s + self._ingress_s(a)))

    def _claim(self, adapter: str) -> _Slot | None:
        """The adapter's place, from now on the one used last; None: all places are held."""
        now, resident, lora = self.agenda._now, self._resident, self.config.lora
        slot = resident.get(adapter)
        if slot is not None:
            self.adapter_hits += slot.ready_s <= now
            resident.move_to_end(adapter)
            return slot
        if len(resident) >= lora.max_loras:  # type: ignore[union-attr]
            unused = next((name for name, other in resident.items() if not other.users), None)
            if unused is None:
                return None
            del resident[unused]
        slot = resident[adapter] = _Slot(now + lora.load_s)  # type: ignore[union-attr]
        self.adapter_loads += 1
        return slot

    def _leave_adapter(self, a: Attempt) -> None:
        adapter = self._held.pop((a.id, a.dispatch), None)
        if adapter is not None:
            self._resident[adapter].users -= 1
            self._resident.move_to_end(adapter)
        if self._line:
            self._seat()

    def drop_all(self, reason: str) -> list[Attempt]:
        self._resident.clear()
        self._held.clear()
        self._line.clear()
        return super().drop_all(reason)

    def _time(self, batch: Batch, k: int) -> tuple[float, float, int]:
        factor, held = self.config.lora.step_factor, self._held  # type: ignore[union-attr]
        if factor == 1.0 or not any((a.id, a.dispatch) in held for a in self._running.values()):
            return super()._time(batch, k)
        speed, self._speed = self._speed, self._speed * factor
        try:
            return super()._time(batch, k)
        finally:
            self._speed = speed
