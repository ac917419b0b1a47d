"""Every metric that there is: which labels it has, and that no label can grow without bound."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import copy
from operator import add
from pathlib import Path

import pytest
from planner_flight import short
from prometheus_client.parser import text_string_to_metric_families

import windtunnel
from windtunnel.lab.planner_metrics import planner_exposition
from windtunnel.policy.planning.audit import Journal
from windtunnel.policy.planning.labels import BUDGETS, OTHER, within_budget
from windtunnel.policy.planning.metrics import COUNTERS, GAUGES, HISTOGRAMS, PREFIX, planner_metrics

SOURCE = Path(windtunnel.__file__).parent
METRICS = {**COUNTERS, **HISTOGRAMS, **GAUGES}
SHARED = {"kind", "resource_kind", "provider", "model", "domain", "algorithm", "reason", "priority", "tenant", "outcome"}
PLANNERS = {"plugin_id", "component", "stage", "result", "action", "bound", "field", "missing_field", "status", "state", "type"}
TRACE_ONLY = {"run", "run_id", "row_group", "column", "id", "request_id", "lease_id", "task_id", "session", "model_id", "prompt", "content", "body"}
MAKERS = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}


def imports() -> Iterator[tuple[str, str, set[str]]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prometheus_client"):
                yield str(path.relative_to(SOURCE)), node.module or "", {alias.name for alias in node.names}
            elif isinstance(node, ast.Import) and any(alias.name.startswith("prometheus_client") for alias in node.names):
                yield str(path.relative_to(SOURCE)), "import", MAKERS


def test_EV_5_metrics_are_made_in_one_place() -> None:
    found = list(imports())
    assert {path for path, _, names in found if any(n.endswith("MetricFamily") for n in names)} == {"lab/planner_metrics.py"}
    assert not [path for path, _, names in found if names & MAKERS], "so that the tables below are all there is"


@pytest.mark.parametrize("name", METRICS)
def test_EV_5_labels_are_of_the_allowed_set(name: str) -> None:
    labels, text = METRICS[name]
    assert set(labels) <= SHARED | PLANNERS and not set(labels) & TRACE_ONLY
    assert set(labels) <= BUDGETS.keys(), "each has a budget"
    assert len(set(labels)) == len(labels) and text


def test_EV_5_budgets() -> None:
    assert BUDGETS["reason"] == 32 and max(BUDGETS.values()) <= 256 and min(BUDGETS.values()) >= 1
    assert set(BUDGETS) == {label for labels, _ in METRICS.values() for label in labels}, "and none that nobody has"


def test_EV_5_a_flight_stays_within_its_budgets_and_nothing_is_folded() -> None:
    families = planner_metrics(short("requests")[1])
    assert len(families) > 15
    for family in families:
        for i, label in enumerate(family.labels):
            values = {key[i] for key in (family.samples or family.histograms)}
            assert values and OTHER not in values and len(values) <= BUDGETS[label], family.name


def test_EV_5_over_budget_is_other_and_no_count_is_lost() -> None:
    planner, room, extra = copy(short("requests")[1]), BUDGETS["plugin_id"], 5
    planner.journal = Journal()
    for n in range(room + extra):
        for _ in range(2):
            planner.journal.count("plugin_held_over_total", f"stranger {n} é\n\"")
        planner.journal.observe("plugin_latency_seconds", 0.002, f"stranger {n}", "predict")
    found = {f.name: f for f in planner_metrics(planner)}
    held, latency = found["plugin_held_over_total"].samples, found["plugin_latency_seconds"].histograms
    assert len(held) == room + 1 and held[OTHER,] == 2 * extra and sum(held.values()) == 2 * (room + extra)
    assert set(held) > {(f"stranger {n} é\n\"",) for n in range(room)}, "who was told first stays"
    assert len(latency) == room + 1 and latency[OTHER, "predict"] == ((0, 5, 5, 5, 5, 5, 5, 5, 5), pytest.approx(0.01))
    text = {f.name: f for f in text_string_to_metric_families(planner_exposition(planner))}
    assert {s.labels["plugin_id"] for s in text[f"{PREFIX}plugin_held_over"].samples} >= {OTHER, 'stranger 0 é\n"'}


def test_EV_5_merging() -> None:
    assert within_budget((), {(): 3.0}, add) == {(): 3.0} and within_budget(("stage",), {}, add) == {}
    nine = {(f"s{n}", "x"): float(n) for n in range(10)}
    assert within_budget(("stage", "result"), nine, add) == {**dict(list(nine.items())[:8]), (OTHER, "x"): 17.0}
    assert within_budget(("stage", "result"), nine, max)[OTHER, "x"] == 9.0
    own = {(f"s{n}",): 1.0 for n in range(7)} | {(OTHER,): 1.0, ("late",): 1.0}
    assert within_budget(("stage",), own, add)[OTHER,] == 2.0, "a value that is called other is among the others"
