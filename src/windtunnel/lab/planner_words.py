"""Reasons of planners in plain words: one fragment for every word that a planner can give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

PLAN: Mapping[str, str] = {
    "unchanged": "nobody asks for another count",
    "applied": "ordered",
    "advisory": "would order, but the planner only advises",
    "tick_timeout": "the tick ran out of time",
    "no_targets": "there is nothing to plan for",
    "rejected": "a plugin rejected the tick",
    "count_unknown": "nobody knows how many replicas there are",
    "replica_floor": "raised to the least number of replicas",
    "gpu_budget_guard_hold": "the GPU budget has no room for the move",
    "gpu_budget_reconcile": "what runs is outside the GPU budget; brought back into it",
    "power_budget_clamped": "cut to the power budget",
    "power_budget_scale_up_suppressed": "no step up while the power budget is used up",
    "power_rebalance_staged": "for the power budget, the step down goes first",
    "budget_infeasible": "the least counts do not fit the budget",
    "startup_cancel_wait": "replicas are still booting; a second tick must want to cancel them",
    "startup_cancelled": "replicas that were booting are cancelled, two ticks agreed",
    "activated_from_zero": "somebody came and nobody was there",
    "scaler_unknown": "what became of the last order is not known",
    "scale_up_stuck": "ordered replicas do not come; no more are ordered for a while",
    "cooldown": "too soon after the last move",
    "stabilisation_window": "the recent past needed more",
    "step_limit": "no faster than the step limit",
    "tolerance": "too small a change to act on",
    "panic": "far too few replicas a moment ago; nothing is taken away",
    "merge_floor": "a floor of a later stage decided",
    "merge_ceiling": "a ceiling of a later stage decided",
    "bounds_conflict": "a floor lies above a ceiling; the floor holds",
    "slo_infeasible": "no number of replicas can meet the SLO",
}
LOAD: Mapping[str, str] = {
    "unset": "the load loop has said nothing yet",
    "disabled": "the load loop is off",
    "no_fpm_data": "no engine has reported",
    "scaling_in_progress": "replicas are on their way; one step at a time",
    "worker_count_mismatch": "not every ready replica has reported",
    "insufficient_data": "not enough data about the engines yet",
    "no_change": "the load is within its thresholds",
    "scale_up": "an engine is over its threshold",
    "scale_down": "all engines are under their thresholds",
    "scale_down_capped_by_throughput": "the engines could spare one, the throughput floor keeps it",
    "scale_down_refused_consolidation": "one fewer would put the rest over the threshold",
    "overridden": "another plugin decided instead of the load loop",
    "held_over": "the load loop's last answer still counts",
    "rejected_by_plugin": "a plugin rejected the tick",
    "gpu_budget_guard_hold": PLAN["gpu_budget_guard_hold"],
    "gpu_budget_reconcile": PLAN["gpu_budget_reconcile"],
}
THROUGHPUT: Mapping[str, str] = {
    "unset": "the throughput loop has said nothing yet",
    "disabled": "the throughput loop is off",
    "no_traffic_data": "no traffic figures",
    "predict_failed": "the forecast failed",
    "model_not_ready": "what a replica can do is not known yet",
    "partner_not_ready": "what a replica of the other role can do is not known yet",
    "set_lower_bound": "the forecast demand needs at least so many",
    "scale": "the forecast demand needs another count",
    "step_capped": "the forecast demand needs more than one step may change",
    "no_change": "as many as the forecast demand needs",
    "circuit_open": "the throughput loop failed too often and is not asked",
    "held_over": "the throughput loop's last answer still counts",
    "overridden": "another plugin decided instead of the throughput loop",
    "rejected_by_plugin": "a plugin rejected the tick",
    "gpu_budget_guard_hold": PLAN["gpu_budget_guard_hold"],
    "gpu_budget_reconcile": PLAN["gpu_budget_reconcile"],
}
RATE: Mapping[str, str] = {
    **{word: PLAN[word] for word in ("count_unknown", "startup_cancel_wait", "startup_cancelled", "activated_from_zero", "scale_up_stuck",
                                     "stabilisation_window")},
    "not_started": "no tick yet",
    "no_traffic_data": THROUGHPUT["no_traffic_data"],
    "model_not_ready": THROUGHPUT["model_not_ready"],
    "no_change": "as many as the demand needs",
    "scale_up": "the demand needs more",
    "scale_down": "fewer have been enough for long",
    "step_capped": "the demand needs more than one step may add",
    "min_replicas": "not below the least number of replicas",
    "max_replicas": "not above the greatest number of replicas",
    "idle_wait": "the last replica goes only after a long silence",
    "refused": "the fleet refused this count a while ago",
}
SKIPPED: Mapping[str, str] = {
    "not_due": "not due", "back_off": "failed, waits before the next try", "disabled": "switched off",
    "circuit_open": "failed too often, is not asked for a while", "requires": "waits for",
}
FAILED: Mapping[str, str] = {
    "timeout": "no answer in time", "connection": "could not be reached", "unknown_method": "does not know the question",
    "serialization": "its answer could not be read", "raised": "raised an error", "contract": "gave an answer of the wrong kind",
    "cut": "was cut off, the tick had no time left",
}
ACTIONS: Mapping[str, str] = {
    "apply": "planned", "skip_no_targets": "nothing to plan", "skip_short_circuit": "stopped by a plugin",
    "skip_tick_timeout": "ran out of time",
}


def in_words(reasons: Iterable[str], table: Mapping[str, str] = PLAN) -> str:
    """Fragments joined by "; ", the first capital left as it is; a word that has none stands for itself."""
    return "; ".join(dict.fromkeys(table.get(word, word.replace("_", " ")) for word in reasons if word))
