"""When the load loop plans for latency itself: TTFT and ITL that engines are about to give, by the step-time model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from windtunnel.policy.planning.capacity import itl_estimate, ttft_estimate
from windtunnel.policy.planning.contract import ForwardPass, TrafficMetrics
from windtunnel.policy.planning.sizing import Sizing

Step = Literal["up", "down", "stay"]


@dataclass(frozen=True, slots=True)
class SlaSignal:
    """Estimates for one role. traffic: for hit rate and accepted length; ready(): is all known that they need?"""

    sizing: Sizing
    role: str
    traffic: TrafficMetrics | None

    def ready(self) -> bool:
        sizing, limits, averages = self.sizing, self.sizing.limits[self.role], self.sizing.averages
        if not sizing.model.ready(self.role):
            return False
        prefill = limits.max_num_batched_tokens is not None and averages.avg_isl.mean is not None
        decode = limits.max_kv_tokens is not None and averages.avg_len.mean is not None
        return {"prefill": prefill, "decode": decode, "agg": decode}[self.role]

    def step(self, engines: Iterable[ForwardPass], n: int) -> Step:
        """Of n replicas: one more if every engine misses its bound, one fewer if all would still keep it with n - 1."""
        reports = list(engines)
        if self.role == "prefill":
            return self._ttft(reports, n) or "stay"
        itl = self._itl(reports, n) or "stay"
        if self.role == "decode":
            return itl
        ttft = self._ttft(reports, n)
        if "up" in (ttft, itl):
            return "up"
        return "down" if itl == "down" and ttft in (None, "down") else "stay"

    def _ttft(self, reports: list[ForwardPass], n: int) -> Step | None:
        """None: it cannot be told."""
        bound_s, isl = self.sizing.settings.slo.bounds.ttft_s, self.sizing.averages.avg_isl.mean
        most = self.sizing.limits[self.role].max_num_batched_tokens
        if bound_s is None or isl is None or most is None:
            return None
        hit = self.traffic.kv_hit_rate if self.traffic else None

        def estimate(report: ForwardPass, queued: float) -> float:
            return ttft_estimate(queued, isl, hit, most, self._prefill(report))

        if all(estimate(r, r.queued.prefill_tokens) > bound_s for r in reports):
            return "up"
        if n <= 1:
            return "stay"
        k, share = n / (n - 1), self.sizing.settings.load.scale_down_sensitivity / 100

        def spare(report: ForwardPass) -> bool:
            idle_s = estimate(report, 0.0)
            budget_s = (bound_s - idle_s) * share
            return budget_s > 0 and estimate(report, report.queued.prefill_tokens * k) - idle_s < budget_s

        return "down" if all(map(spare, reports)) else "stay"

    def ttft_s(self, report: ForwardPass) -> float | None:
        """Of a request that came to this engine now; None if it cannot be told, or no prompt is read here."""
        isl, most = self.sizing.averages.avg_isl.mean, self.sizing.limits[self.role].max_num_batched_tokens
        if self.role == "decode" or isl is None or most is None:
            return None
        return ttft_estimate(report.queued.prefill_tokens, isl, self.traffic.kv_hit_rate if self.traffic else None, most, self._prefill(report))

    def itl_s(self, report: ForwardPass) -> float | None:
        """At this engine now; None where no tokens are made."""
        if self.role == "prefill":
            return None
        kv = report.scheduled.decode_kv_tokens + report.queued.decode_kv_tokens
        return itl_estimate(self._step_s(kv), self.traffic.accept_length if self.traffic else None, self.sizing.settings.speculative_nextn)

    def _prefill(self, report: ForwardPass) -> Callable[[float], float]:
        if self.role == "prefill":
            return self.sizing.model.prefill_s
        kv = report.scheduled.decode_kv_tokens
        return lambda chunk: self.sizing.model.agg_s(chunk, kv)

    def _itl(self, reports: list[ForwardPass], n: int) -> Step | None:
        bound_s, most = self.sizing.settings.slo.bounds.itl_s, self.sizing.limits[self.role].max_kv_tokens
        if bound_s is None or most is None:
            return None
        accept = self.traffic.accept_length if self.traffic else None

        def estimate(kv: float) -> float:
            return itl_estimate(self._step_s(kv), accept, self.sizing.settings.speculative_nextn)

        held = [r.scheduled.decode_kv_tokens + r.queued.decode_kv_tokens for r in reports]
        if all(estimate(kv) > bound_s for kv in held):
            return "up"
        if n <= 1:
            return "stay"
        k, share = n / (n - 1), self.sizing.settings.load.scale_down_sensitivity / 100
        if self.role == "agg":  # what waits for its prefill will sit in the KV cache too
            held = [kv + r.queued.prefill_tokens for kv, r in zip(held, reports, strict=True)]
        return "down" if all(int(kv * k) < most and estimate(kv * k) < bound_s * share for kv in held) else "stay"

    def _step_s(self, kv: float) -> float:
        averages = self.sizing.averages
        length = averages.avg_len.mean or 0.0
        if self.role == "decode":
            return self.sizing.model.decode_s((averages.avg_num.mean or 0.0) + 1, kv + length)
        return self.sizing.model.agg_s(averages.avg_prefill_tokens.mean or 0.0, kv + length)
