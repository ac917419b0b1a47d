"""RECONCILE: prefill and decode in proportion to what a replica of each can do."""

from __future__ import annotations

from windtunnel.policy.planning.contract import ComponentTarget, OverrideType, StageRequest, StageResponse
from windtunnel.policy.planning.feed_forward import ceil_safe
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.sizing import ACCEPTED, Sizing, answer


def balance(p: int, d: int, prefill_rps: float, decode_rps: float, tolerance: float) -> tuple[int | None, int | None]:
    """Floors (prefill, decode) that bring p : d back to decode_rps : prefill_rps, within +-tolerance; None: no floor needed."""
    ratio = decode_rps / prefill_rps  # prefill replicas that one decode replica keeps busy
    least_p = ceil_safe(ratio * d * (1 - tolerance))
    least_d = ceil_safe(p / (ratio * (1 + tolerance)))
    return (least_p if p < least_p else None), (least_d if d < least_d else None)


class Reconcile:
    """Bounds only. Accepts while a capacity or a proposed count is unknown, and in modes of one role."""

    def __init__(self, settings: PlannerSettings, sizing: Sizing) -> None:
        self.settings, self.sizing = settings, sizing
        self.reasons: dict[str, str] = {}

    def reconcile(self, request: StageRequest) -> StageResponse:
        self.reasons = {}
        ctx, proposal = request.ctx, request.ctx.proposal
        if self.settings.mode != "disagg" or proposal is None:
            return ACCEPTED
        names = [self.settings.component(role) for role in ("prefill", "decode")]
        counts = {t.component: t.replicas for t in proposal.targets}
        p, d = (counts.get(name) for name in names)
        shape = self.sizing.shape(ctx.predictions, ctx.observations.traffic if ctx.observations else None)
        found = [self.sizing.capacity(role, shape) for role in ("prefill", "decode")]
        if p is None or d is None or any(c is None or c.rps <= 0 for c in found):
            return ACCEPTED
        prefill_rps, decode_rps = (c.rps for c in found if c is not None)
        floors = balance(p, d, prefill_rps, decode_rps, self.settings.reconcile.pd_ratio_tolerance)
        targets = [ComponentTarget(name, floor, OverrideType.AT_LEAST) for name, floor in zip(names, floors, strict=True) if floor is not None]
        self.reasons = {t.component: "pd_ratio" for t in targets}
        return answer(targets, self.reasons)
