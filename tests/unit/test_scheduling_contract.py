"""What holds across the scheduling modules: who imports whom, which notes there are, when progress is told, predictions of starts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import windtunnel
from windtunnel import events as ev
from windtunnel.events import Request
from windtunnel.lab.scenario import Scenario
from windtunnel.lab.validation import fairness
from windtunnel.policy.admission import notes as request_notes
from windtunnel.policy.capacity import CONFIGURED, OBSERVED, ROW_GROUP_ADMISSION, RUNTIME
from windtunnel.policy.queueing.bounded import BoundedQueue
from windtunnel.policy.queueing.edf import Edf, EdfQueue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem

POLICY = Path(windtunnel.__file__).parent / "policy"
SCHEDULER_KINDS = frozenset({
    "scheduler_job_started", "scheduler_job_completed", "scheduler_health_snapshot", "dependency_ready", "ready_enqueued", "row_group_admitted",
    "row_group_admission_blocked", "row_group_admission_target_changed", "row_group_checkpointed", "selected", "queue_empty",
    "admission_blocked", "group_capped", "request_pressure_advisory_skipped", "task_lease_acquired", "admission_denied", "worker_spawned",
    "worker_spawn_failed", "stale_selection", "retry_deferred", "non_retryable_dropped", "cancelled", "salvage_redispatched",
    "queue_drained", "task_completed", "task_lease_released", "release_diagnostic"})
REQUEST_KINDS = frozenset({
    "request_resource_registered", "request_effective_cap_changed", "request_queue_formed", "request_wait_started", "request_wait_completed",
    "request_wait_timeout", "request_wait_cancelled", "request_acquire_denied", "request_lease_acquired", "request_queue_drained",
    "request_rate_limited", "request_limit_decreased", "request_limit_increased", "request_soft_ceiling_recovered",
    "request_fully_recovered", "request_lease_released", "request_release_diagnostic", "model_request_started", "model_request_completed"})


def modules(package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((POLICY / package).glob("*.py")):
        yield path, ast.parse(path.read_text())


def imported(tree: ast.Module) -> set[str]:
    return {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def test_GN_3_tasks_and_admission_do_not_know_each_other_nor_the_world() -> None:
    outside = ("windtunnel.live", "windtunnel.sim", "windtunnel.lab", "windtunnel.sources", "windtunnel.cockpit", "prometheus_client", "httpx")
    clocks = {"time", "uuid", "threading", "asyncio", "random"}
    allowed = {"windtunnel.policy.admission.denial"}  # the vocabulary of refusals
    others = {"tasks": "windtunnel.policy.admission", "admission": "windtunnel.policy.tasks", "queueing": "windtunnel.policy.tasks"}
    for package, other in others.items():
        for path, tree in modules(package):
            names = imported(tree)
            assert not [n for n in names if n.startswith(other) and n not in allowed], path
            assert not [n for n in names if n.startswith(outside)], path
            at_run_time = {n for n in names & clocks if not (n == "random" and "TYPE_CHECKING" in path.read_text())}
            assert not at_run_time - {"random"}, path
        own = ast.parse((POLICY / package / "__init__.py").read_text()).body
        assert len(own) == 1 and ast.get_docstring(ast.Module(own, [])), "packages say what they are and re-export nothing"


def said(package: str, words: tuple[str, ...]) -> set[str]:
    """Every text that is handed to a note, whichever way."""
    found: set[str] = set()
    for _, tree in modules(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in words:
                found |= {c.value for arg in node.args for c in ast.walk(arg) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
                found |= {c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    return found


def test_EV_2_the_27_kinds_of_the_scheduler_and_no_other() -> None:
    found = said("tasks", ("note",))
    assert len(SCHEDULER_KINDS) == 27 and found >= SCHEDULER_KINDS
    assert {word for word in found if "_" in word} <= SCHEDULER_KINDS, "and no kind beside them"


def test_EV_3_kinds_of_the_request_stream() -> None:
    found = said("admission", ("_note", "add", "_over", "append")) | set(request_notes.CHANGED.values()) | set(request_notes.RECOVERED.values())
    kinds = {word for word in found if word.startswith(("request_", "model_request_")) and not word.endswith(("_id", "_key"))}
    assert kinds == REQUEST_KINDS and len(REQUEST_KINDS) == 19


def test_CP_2_the_fields_of_a_capacity_plan() -> None:
    assert len(CONFIGURED) == 9 and len(RUNTIME) == 4 and len(OBSERVED) == 8
    assert ROW_GROUP_ADMISSION == ("mode", "row_group_concurrency", "target_in_flight", "max_admitted_rows")
    assert "row_groups_in_flight" in OBSERVED and "row_groups_in_flight" not in CONFIGURED + RUNTIME, "what was seen is only seen"


class Listener(fairness.Ledger):
    """Keeps the last events of each replica in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, tuple[float, dict[str, int]]] = {}
        self.ends: list[tuple[float, float | None, str]] = []
        self.spans: list[float] = []

    def step(self, seq: int, now: float, event: Any, effects: Any, verdicts: Any = None) -> None:
        super().step(seq, now, event, effects, verdicts)
        if isinstance(event, ev.Progressed):
            before = self.told.get(event.replica)
            if before is not None and set(before[1]) & set(dict(event.counts)):
                self.spans.append(now - before[0])
            self.told[event.replica] = (now, dict(event.counts))
        elif isinstance(event, ev.Finished):
            at, _ = self.told.get(event.replica, (None, {}))
            self.ends.append((now, at, event.request_id))


def test_VT_4_progress_is_told_right_before_a_batch_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a token counter is exact at every pick that an end causes; and in between at least four times a second."""
    monkeypatch.setattr(fairness, "Ledger", Listener)
    heard: Any = fairness.serve(fairness.vtc(), fairness.TWO, 20.0, 0)
    assert len(heard.ends) > 60
    assert {now for now, at, _ in heard.ends if at != now} <= {heard.end_s}, "but for the last batch: it ends as one, nobody else runs"
    assert sum(at == now for now, at, _ in heard.ends) > 50
    assert max(heard.spans) <= 0.25 + 1e-9


def test_QP_11_the_predicted_start_is_work_ahead_over_the_measured_rate() -> None:
    rates: list[float | None] = [None]
    queue = EdfQueue(Edf(), completion_rate=lambda now: rates[0])
    items = [QueueItem(f"i{n}", Group("a"), deadline=100.0 + n) for n in range(10)]
    queue.offer(items, 0.0)
    assert {queue.predicted_start_s(item, 1.0) for item in items} == {None}, "unknown rate, unknown start"
    rates[0] = 4.0
    starts = [queue.predicted_start_s(item, 1.0) for item in items]
    assert starts == [1.0 + n / 4.0 for n in range(10)]
    assert starts == sorted(starts), "not decreasing in position"  # type: ignore[type-var]
    rates[0] = 0.0
    assert queue.predicted_start_s(items[0], 1.0) is None


def test_QP_12_soft_preemption_takes_from_what_waits_and_never_from_what_runs() -> None:
    queue = BoundedQueue(FifoQueue(), 2, {0: None, 1: None}, {0: "shed_low_priority", 1: "shed_low_priority"})

    def item(name: str, priority: int) -> QueueItem:
        return QueueItem(name, Group("a"), priority=priority, request=Request(name, "a", "m", priority, 0.0, 1, 1))

    queue.offer([item("runs", 1), item("old", 1)], 0.0)
    running = queue.commit(queue.select(lambda i, v: True, 0.0), 0.0)  # type: ignore[arg-type]
    assert running is not None and running.id == "runs"
    queue.offer([item("new", 1)], 1.0)
    assert [s.item.id for s in queue.offer([item("urgent", 0)], 2.0).evicted] == ["new"], "the newest that waits and is less urgent"
    assert [s.item.id for s in queue.offer([item("urgent too", 0)], 3.0).evicted] == ["old"]
    (refused,) = queue.offer([item("third", 0)], 4.0).rejected
    assert refused.denial.reason == "queue_full", "what runs is never a victim, and equals are none either"


def test_EV_5_no_note_and_no_log_holds_what_was_asked(tmp_path: Path) -> None:
    """A request's content and truth are opaque: the fullest record does not have them."""
    text = ("windtunnel: 1\nname: secret\nseed: 1\nfleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm}}}\n"
            "source: {kind: pipeline, rows: 3, columns: {a: {model: Llama-3.1-8B, input_tokens: 20, output_tokens: 4}}}\n"
            "control: {queue: {kind: fair}, admission: {limit: {kind: aimd}}}\n")
    scenario = Scenario.load(text)
    world, control, source = scenario.build(record="full")
    asked: list[str] = []
    send = source._submit  # type: ignore[attr-defined]

    def secret(lease_id: str, work: Any, number: int, request: Request, now: float) -> None:
        from dataclasses import replace

        asked.append(request.id)
        send(lease_id, work, number, replace(request, content={"prompt": "SECRET-PROMPT"}), now)

    source._submit = secret  # type: ignore[attr-defined]
    run = world.run(control, source)
    log = run.tables.log
    raw = log if isinstance(log, bytes) else Path(log).read_bytes()  # type: ignore[arg-type]
    assert len(asked) == 3 and b"pipeline-1" in raw and b"SECRET" not in raw and b"truth" not in raw
    for path in [p for p in Path(run.save(tmp_path / "run")).rglob("*") if p.is_file()]:
        assert b"SECRET" not in path.read_bytes(), path
