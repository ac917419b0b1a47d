"""What becomes of scaling plans in the live world: a connector carries them out, and the control hears of each once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from windtunnel.effects import Drain, ScaleTo
from windtunnel.errors import ScalerRefused
from windtunnel.events import Event, PoolsObserved, ScaleAnswered
from windtunnel.live.attempts import Soon
from windtunnel.live.scaling.scaler import NoScaler, Scaler


class Plans:
    """Carries `ScaleTo` and `Drain` out. scaler: the connector; one that can do nothing until it is set."""

    def __init__(self, deliver: Callable[[Event], None], soon: Soon) -> None:
        self._deliver, self._soon = deliver, soon
        self.scaler: Scaler = NoScaler()

    def scale(self, effect: ScaleTo) -> None:
        self._soon(self._scaled(effect))

    def drain(self, effect: Drain) -> None:
        self._soon(self.scaler.drain(effect))

    async def _scaled(self, plan: ScaleTo) -> None:
        """Whatever becomes of a plan, the control hears of it once; then what the connector sees."""
        try:
            reply = await self.scaler.apply(plan)
            self._deliver(ScaleAnswered(plan.plan_id, reply.status, reply.reason))
            await self._observe()
        except ScalerRefused as error:
            self._deliver(ScaleAnswered(plan.plan_id, "refused", str(error)))
        except Exception as error:
            self._deliver(ScaleAnswered(plan.plan_id, "failed", f"{type(error).__name__}: {error}"))
            with suppress(Exception):  # the planner waits until somebody could look
                await self._observe()

    async def _observe(self) -> None:
        """Tell the control what the connector sees; nothing if it sees nothing."""
        pools = await self.scaler.observe()
        if pools:
            self._deliver(PoolsObserved({name: count.plain() for name, count in pools.items()}))
