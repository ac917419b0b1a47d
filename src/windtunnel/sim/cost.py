"""What a replica's life cost: GPU-seconds from provisioning to gone, draining included, times the price."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windtunnel.sim.fleet import SimReplica


def replica_row(replica: SimReplica, now: float) -> dict[str, Any]:
    """One row of the `replicas` table. Times in run s, boot stages in s; `usd` is None without a price, never 0."""
    pool, engine, times = replica.pool, replica.engine, replica.times
    until = times.get("gone_s", now)
    gpu_seconds = (until - times["requested_s"]) * pool.gpus_per_replica
    price = pool.price_usd_per_hour
    node_s, image_s, weights_s, compile_s = replica.boot or (None,) * 4
    return {
        "replica": replica.name, "pool": pool.name, "role": pool.role, "ordinal": replica.ordinal, "gpu": pool.gpu,
        "gpus": pool.gpus_per_replica, "spot": pool.spot, "requested_s": times["requested_s"], "node_s": node_s, "image_s": image_s,
        "weights_s": weights_s, "compile_s": compile_s, "ready_s": times.get("ready_s"), "draining_s": times.get("draining_s"),
        "gone_s": times.get("gone_s"), "gone_reason": replica.gone_reason if "gone_s" in times else None, "busy_s": engine.busy_s,
        "steps": engine.steps, "requests": replica.requests, "output_tokens": engine.output_tokens, "preemptions": engine.preemptions,
        "prefix_hit_blocks": engine.prefix_hit_blocks, "prefix_query_blocks": engine.prefix_query_blocks, "gpu_seconds": gpu_seconds,
        "usd": None if price is None else gpu_seconds / 3600.0 * price, "kwh": None,
    }
