"""A planner's metrics in the text format that Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from windtunnel.policy.planning.metrics import PREFIX, Family, bounds_of, planner_metrics

if TYPE_CHECKING:
    from windtunnel.policy.planning.shell import PipelinePlanner


def planner_exposition(planner: PipelinePlanner) -> str:
    """All metrics of a planner as text; what is not known has no line."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PlannerCollector(planner))
    return generate_latest(registry).decode()


class PlannerCollector:
    """For a registry that serves other metrics too: reads the planner when it is scraped."""

    def __init__(self, planner: PipelinePlanner) -> None:
        self._planner = planner

    def collect(self) -> Iterator[Metric]:
        """The families, anew at each scrape."""
        return families(planner_metrics(self._planner))

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first tick."""
        return ()


def families(found: Iterable[Family]) -> Iterator[Metric]:
    """prometheus_client's families."""
    for family in found:
        name = PREFIX + family.name
        if family.kind == "histogram":
            yield _histogram(name, family)
            continue
        made = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(name, family.help, labels=family.labels)
        for labels, value in family.samples.items():
            made.add_metric(labels, value)
        yield made


def _histogram(name: str, family: Family) -> Metric:
    made = HistogramMetricFamily(name, family.help, labels=family.labels)
    bounds = [*(str(bound) for bound in bounds_of(family.name)), "+Inf"]
    for labels, (counts, total) in family.histograms.items():
        made.add_metric(labels, list(zip(bounds, counts, strict=True)), total)
    return made
