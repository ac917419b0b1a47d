"""Predictions by a chain of plugins: for each field the most authoritative plugin that gave it wins; later ones fill the gaps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from windtunnel.policy.planning.contract import PREDICTED, PredictionData, PredictResponse

Step = tuple[str, int, PredictResponse | None]  # plugin_id, priority, its answer (None: the call failed)


@dataclass(frozen=True, slots=True)
class ChainOutcome:
    """predictions None: nobody said anything. owner: field -> plugin id; reasons: the non-empty ones, in order.

    final_from: who ended the chain, or ""; records: (kind, plugin_id, component, data).
    """

    predictions: PredictionData | None = None
    owner: Mapping[str, str] = field(default_factory=dict)
    final_from: str = ""
    reasons: tuple[str, ...] = ()
    records: tuple[tuple[str, str, str, dict[str, Any]], ...] = ()


EMPTY = ChainOutcome()


class Chain:
    """Built up answer by answer, in ascending priority."""

    __slots__ = ("_final", "_lowest", "_records", "owner", "predictions", "reasons")

    def __init__(self) -> None:
        self.predictions: PredictionData | None = None
        self.owner: dict[str, str] = {}
        self.reasons: list[str] = []
        self._final = ""
        self._lowest: int | None = None
        self._records: list[tuple[str, str, str, dict[str, Any]]] = []

    def add(self, plugin_id: str, priority: int, response: PredictResponse | None) -> bool:
        """Take an answer; False: it was final, nobody else may be asked."""
        if self._lowest is None:
            self._lowest = priority
        if response is None:
            return True
        if response.reason:
            self.reasons.append(response.reason)
        if response.predictions is not None:
            self._merge(plugin_id, response.predictions)
        if not response.final:
            return True
        self._final = plugin_id
        if priority != self._lowest:
            data = {"priority": priority, "lowest": self._lowest}
            self._records.append(("chain_final_not_lowest", plugin_id, "", data))
        return False

    def _merge(self, plugin_id: str, new: PredictionData) -> None:
        owner, old = self.owner, self.predictions
        for name in PREDICTED:
            if name not in owner and getattr(new, name) is not None:
                owner[name] = plugin_id
        if old is None:
            timed = new.predicted_num_req is not None
            self.predictions = new if timed or (new.window_s is None and new.horizon_s is None) else PredictionData(
                None, new.predicted_isl, new.predicted_osl, new.predicted_kv_hit_rate, new.predicted_accept_length, None, None, new.source)
            return
        times = old if old.predicted_num_req is not None else new
        timed = times.predicted_num_req is not None
        self.predictions = PredictionData(
            _first(old.predicted_num_req, new.predicted_num_req), _first(old.predicted_isl, new.predicted_isl),
            _first(old.predicted_osl, new.predicted_osl), _first(old.predicted_kv_hit_rate, new.predicted_kv_hit_rate),
            _first(old.predicted_accept_length, new.predicted_accept_length), times.window_s if timed else None,
            times.horizon_s if timed else None, old.source or new.source,
        )

    def outcome(self) -> ChainOutcome:
        if self._lowest is None:
            return EMPTY
        return ChainOutcome(self.predictions, self.owner, self._final, tuple(self.reasons), tuple(self._records))


def _first(old: float | None, new: float | None) -> float | None:
    return new if old is None else old


def chain_augment(steps: Iterable[Step]) -> ChainOutcome:
    """The outcome of answers in any order: sorted by priority, equal ones as they come; those after a final one count for nothing."""
    chain = Chain()
    for plugin_id, priority, response in sorted(steps, key=itemgetter(1)):
        if not chain.add(plugin_id, priority, response):
            break
    return chain.outcome()
