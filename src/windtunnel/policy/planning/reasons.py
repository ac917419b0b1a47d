"""Why a plan is what it is. Append-only: order and values are frozen, logs and dashboards read them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class LoadReason(StrEnum):
    """Of the load loop, per pool."""

    UNSET = "unset"
    DISABLED = "disabled"
    NO_FPM_DATA = "no_fpm_data"
    SCALING_IN_PROGRESS = "scaling_in_progress"
    WORKER_COUNT_MISMATCH = "worker_count_mismatch"
    INSUFFICIENT_DATA = "insufficient_data"
    NO_CHANGE = "no_change"
    SCALE_UP = "scale_up"
    SCALE_DOWN = "scale_down"
    SCALE_DOWN_CAPPED_BY_THROUGHPUT = "scale_down_capped_by_throughput"
    SCALE_DOWN_REFUSED_CONSOLIDATION = "scale_down_refused_consolidation"
    OVERRIDDEN = "overridden"
    HELD_OVER = "held_over"
    REJECTED_BY_PLUGIN = "rejected_by_plugin"
    GPU_BUDGET_GUARD_HOLD = "gpu_budget_guard_hold"
    GPU_BUDGET_RECONCILE = "gpu_budget_reconcile"


class ThroughputReason(StrEnum):
    """Of the throughput loop, per pool."""

    UNSET = "unset"
    DISABLED = "disabled"
    NO_TRAFFIC_DATA = "no_traffic_data"
    PREDICT_FAILED = "predict_failed"
    MODEL_NOT_READY = "model_not_ready"
    PARTNER_NOT_READY = "partner_not_ready"
    SET_LOWER_BOUND = "set_lower_bound"
    SCALE = "scale"
    STEP_CAPPED = "step_capped"
    NO_CHANGE = "no_change"
    CIRCUIT_OPEN = "circuit_open"
    HELD_OVER = "held_over"
    OVERRIDDEN = "overridden"
    REJECTED_BY_PLUGIN = "rejected_by_plugin"
    GPU_BUDGET_GUARD_HOLD = "gpu_budget_guard_hold"
    GPU_BUDGET_RECONCILE = "gpu_budget_reconcile"


class PlanReason(StrEnum):
    """Of the plan itself, per pool."""

    UNCHANGED = "unchanged"
    APPLIED = "applied"
    ADVISORY = "advisory"
    TICK_TIMEOUT = "tick_timeout"
    NO_TARGETS = "no_targets"
    REJECTED = "rejected"
    COUNT_UNKNOWN = "count_unknown"
    REPLICA_FLOOR = "replica_floor"
    POWER_BUDGET_CLAMPED = "power_budget_clamped"
    POWER_BUDGET_SCALE_UP_SUPPRESSED = "power_budget_scale_up_suppressed"
    POWER_REBALANCE_STAGED = "power_rebalance_staged"
    BUDGET_INFEASIBLE = "budget_infeasible"
    STARTUP_CANCEL_WAIT = "startup_cancel_wait"
    STARTUP_CANCELLED = "startup_cancelled"
    ACTIVATED_FROM_ZERO = "activated_from_zero"
    SCALER_UNKNOWN = "scaler_unknown"
    SCALE_UP_STUCK = "scale_up_stuck"
    COOLDOWN = "cooldown"
    STABILISATION_WINDOW = "stabilisation_window"
    STEP_LIMIT = "step_limit"
    TOLERANCE = "tolerance"
    PANIC = "panic"
    MERGE_FLOOR = "merge_floor"
    MERGE_CEILING = "merge_ceiling"
    BOUNDS_CONFLICT = "bounds_conflict"
    SLO_INFEASIBLE = "slo_infeasible"


_RANK = {LoadReason.SCALE_UP: 4, LoadReason.SCALE_DOWN_CAPPED_BY_THROUGHPUT: 3, LoadReason.SCALE_DOWN: 2, LoadReason.NO_CHANGE: 1}


def aggregate(reasons: Iterable[LoadReason]) -> LoadReason:
    """The one reason shown for a prefill and decode pair: moves before holds, the first pool on a tie."""
    return max(reasons, key=lambda reason: _RANK.get(reason, 0), default=LoadReason.UNSET)
