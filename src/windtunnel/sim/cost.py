"""What a replica's life cost: GPU-seconds from provisioning to gone, draining included, times the price; and its energy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from windtunnel.policy.param import check_number

if TYPE_CHECKING:
    from windtunnel.sim.lifecycle import SimReplica

# Assumptions, not measurements: with an idle power of 0.15 TDP they give 0.96 and 0.62 of TDP, near Splitwise's A100 rows (0.94 and 0.56 to 0.62).
PREFILL_ACTIVITY, DECODE_ACTIVITY = 0.95, 0.55


def energy_kwh(life_s: float, busy_s: float, prefill_s: float, *, power_w: float, idle_w: float, gpus: int = 1,
               prefill: float = PREFILL_ACTIVITY, decode: float = DECODE_ACTIVITY) -> float:
    """kWh of one replica: idle power all its life, plus a share of the rest in steps with prompt tokens and in pure decode steps.

    life_s: provisioning to gone; busy_s: seconds of steps; prefill_s: of those, with prompt tokens; power_w, idle_w: of one GPU.
    """
    for name, value in (("life_s", life_s), ("busy_s", busy_s), ("prefill_s", prefill_s), ("power_w", power_w), ("idle_w", idle_w)):
        check_number(name, value, lo=0.0)
    active_s = prefill * prefill_s + decode * max(0.0, busy_s - prefill_s)
    return (idle_w * life_s + (power_w - idle_w) * active_s) * gpus / 3.6e6


def _kwh(replica: SimReplica, life_s: float) -> float | None:
    """None where the GPU's power is unknown, and for an engine that serves in seconds and has no steps."""
    pool, prefill_s = replica.pool, getattr(replica.engine, "prefill_s", None)
    if prefill_s is None or pool.power_w is None or pool.idle_w is None:
        return None
    return energy_kwh(life_s, replica.engine.busy_s, prefill_s, power_w=pool.power_w, idle_w=pool.idle_w, gpus=pool.gpus_per_replica)


def replica_row(replica: SimReplica, now: float) -> dict[str, Any]:
    """One row of the `replicas` table. Times in run s, boot stages in s; `usd` is None without a price, never 0."""
    pool, engine, times = replica.pool, replica.engine, replica.times
    until = times.get("gone_s", now)
    since = times.get("provisioned_s", times.get("ready_s"))  # None: it never got its GPUs
    life_s = 0.0 if since is None else until - since
    gpu_seconds = life_s * pool.gpus_per_replica
    price = pool.price_usd_per_hour
    node_s, image_s, weights_s, compile_s = replica.boot or (None,) * 4
    return {
        "replica": replica.name, "pool": pool.name, "role": pool.role, "ordinal": replica.ordinal, "gpu": pool.gpu,
        "gpus": pool.gpus_per_replica, "spot": pool.spot, "requested_s": times["requested_s"], "node_s": node_s, "image_s": image_s,
        "weights_s": weights_s, "compile_s": compile_s, "ready_s": times.get("ready_s"), "draining_s": times.get("draining_s"),
        "gone_s": times.get("gone_s"), "gone_reason": replica.gone_reason if "gone_s" in times else None, "busy_s": engine.busy_s,
        "steps": engine.steps, "requests": replica.requests, "output_tokens": engine.output_tokens, "preemptions": engine.preemptions,
        "prefix_hit_blocks": engine.prefix_hit_blocks, "prefix_query_blocks": engine.prefix_query_blocks,
        "prefix_hit_tokens": engine.cached_tokens, "prefix_query_tokens": engine.prefix_query_tokens, "prefix_evictions": engine.evictions,
        "adapter_hits": getattr(engine, "adapter_hits", None), "adapter_loads": getattr(engine, "adapter_loads", None),
        "per_step_steps": getattr(engine, "per_step_steps", None), "gpu_seconds": gpu_seconds,
        "usd": None if price is None else gpu_seconds / 3600.0 * price, "kwh": _kwh(replica, life_s),
    }
