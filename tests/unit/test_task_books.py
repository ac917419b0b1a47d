"""Books that balance are checked after every event of a checked simulation; books that do not are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from windtunnel.errors import PolicyError
from windtunnel.events import Request
from windtunnel.lab.scenario import Scenario
from windtunnel.policy.admission.budget import Budget, BudgetGate
from windtunnel.policy.admission.gates import Used
from windtunnel.policy.admission.quota import QuotaGate, TenantQuota
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.graph import Column, Graph
from windtunnel.policy.tasks.messages import RunStarted, TaskEnded
from windtunnel.policy.tasks.resolve import Generator, Resolver
from windtunnel.policy.tasks.scheduler import TaskScheduler
from windtunnel.policy.tasks.task import SchedulingMetadata
from windtunnel.sources.pipeline import PipelineSource
from windtunnel.sources.program import Program

SCENARIO = """
windtunnel: 1
name: books
seed: 1
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm}}}
source:
  kind: mix
  sources:
    - {kind: arrivals, name: chat, rate_rps: 5, count: 20, input_tokens: 16, output_tokens: 4,
       clients: {timeout_s: 2, retry: {max_attempts: 2}}}
    - {kind: pipeline, rows: 8, columns: {a: {model: Llama-3.1-8B, input_tokens: 16, output_tokens: 4}, b: {needs: [a], strategy: full_column}}}
control:
  queue: {kind: fair}
  admission: {limit: {kind: fixed, limit: 2}}
  tenants: {pipeline: {weight: 2, quota: {concurrent: 4}}, default: {quota: {tokens_per_min: 100000}}}
"""


def busy() -> TaskScheduler:
    """One task each: running, queued, deferred."""
    generators = {"a": Generator(("a",), SchedulingMetadata("model", ("model", "p", "m", "chat"), 1.0))}
    scheduler = TaskScheduler(Graph([Column("a")]), {0: 3}, Resolver(generators), TaskSchedulerConfig(max_in_flight_tasks=1))
    scheduler.handle(RunStarted(), 0.0)
    scheduler.handle(TaskEnded(next(iter(scheduler.running)), "rate_limited", None, 9.0), 1.0)
    assert (len(scheduler.running), len(scheduler.queue), len(scheduler.deferred)) == (1, 1, 1)
    scheduler.check()
    return scheduler


def twice(scheduler: TaskScheduler) -> None:
    running = next(iter(scheduler.running.values()))
    scheduler.deferred.add(running.task.task_id, running.task.payload, "rate_limited", 1.0, 1.0)


CORRUPTIONS: dict[str, tuple[Callable[[TaskScheduler], Any], str]] = {
    "a task left the queue unseen": (lambda s: s.queue.discard_where(lambda _: True, 2.0), "1 started|2 started"),
    "a task is not known to wait": (lambda s: s.board.waiting.clear(), "said to wait"),
    "a lease was given back behind its back": (lambda s: s.admission.release(next(iter(s.admission.active.values())), 2.0), "leases are out"),
    "a task runs and is deferred": (twice, "two places"),
    "a row group is miscounted": (lambda s: s.board.open.update({0: 1}), "by row group"),
    "a release was not counted": (lambda s: s.admission.releases.clear(), "leases acquired"),
    "capacity leaks": (lambda s: s.admission.view().available.update(submission=1), "said to be left"),
    "a group's holding is wrong": (lambda s: s.admission.view().leased.clear(), "groups hold"),
    "a debt beyond what is held": (lambda s: s.admission.view().debt.update({next(iter(s.admission.view().leased)): {"llm_wait": 2}}), "owes"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_AC_2_what_does_not_balance_is_named(name: str) -> None:
    scheduler = busy()
    corrupt, words = CORRUPTIONS[name]
    corrupt(scheduler)
    with pytest.raises(PolicyError, match=words):
        scheduler.check()


def test_AC_2_a_source_that_forgot_a_task_is_named() -> None:
    source = PipelineSource([Program(Column("a"), "m", 1, False, 10, 5)], 1)
    source.start(0.0)
    source.check()
    source._owner.clear()
    with pytest.raises(PolicyError, match="1 requests, 0 are open"):
        source.check()
    source._work.clear()
    with pytest.raises(PolicyError, match="0 are at work"):
        source.check()


def test_AC_1_AC_2_every_event_of_a_checked_simulation_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control, task scheduler behind a mix, and gates: after each event, none left out."""
    calls = {"tasks": 0, "gate": 0}
    tasks, gate = TaskScheduler.check, QuotaGate.audit

    def counted(key: str, check: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(self: Any) -> None:
            calls[key] += 1
            check(self)

        return call

    monkeypatch.setattr(TaskScheduler, "check", counted("tasks", tasks))
    monkeypatch.setattr(QuotaGate, "audit", counted("gate", gate))
    world, control, source = Scenario.load(SCENARIO).build(check=True)
    run = world.run(control, source)
    assert run.meta.complete and len(run.requests) == 28
    assert calls["tasks"] == control.seq == calls["gate"] > 50
    calls.update(tasks=0, gate=0)
    Scenario.load(SCENARIO).run(check=False)
    assert calls == {"tasks": 0, "gate": 0}


def test_AC_1_a_simulation_stops_at_the_event_after_which_books_do_not_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = PipelineSource._begin

    def leaky(self: PipelineSource, start: Any, now: float) -> None:
        begin(self, start, now)
        if now > 0.5:
            self.scheduler.admission.view().available["submission"] -= 1

    monkeypatch.setattr(PipelineSource, "_begin", leaky)
    with pytest.raises(PolicyError, match="'submission'"):
        Scenario.load(SCENARIO).with_({"source.sources.1.rows": 40}).run(check=True)


def test_AC_2_gates_audit_what_they_hold() -> None:
    request = Request("r", "t", "m", 0, 0.0, 10, 10)
    quota, budget = QuotaGate({"t": TenantQuota(concurrent=2)}), BudgetGate({"t": Budget(tokens=100)})
    for gate in (quota, budget):
        gate.take(request, 0.0)
        gate.audit()
    quota.quotas.accounts["t"].refunded += 1
    with pytest.raises(PolicyError, match="tenant 't'"):
        quota.audit()
    next(iter(budget.purses.values())).held -= 1
    with pytest.raises(PolicyError, match="tenant 't'"):
        budget.audit()


def test_GN_9_gates_do_not_mind_what_they_never_took() -> None:
    request = Request("stranger", "t", "m", 0, 0.0, 10, 10)
    for gate in (QuotaGate({"t": TenantQuota(concurrent=2)}), BudgetGate({"t": Budget(tokens=100)})):
        gate.settle(request, Used("success", 0.0, 1, 1), 0.0)
        gate.give_back(request, 0.0)
        gate.audit()
        assert not gate.held
