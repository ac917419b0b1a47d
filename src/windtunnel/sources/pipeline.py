"""A batch pipeline of dependent tasks as a source: the task scheduler decides what may start, each task makes its requests here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any

from windtunnel.effects import Close, Reject, WakeAt
from windtunnel.errors import ConfigPipelineError, PolicyError
from windtunnel.events import PRIORITIES, Arrived, Cancelled, Event, Finished, Request, Truth, Woke
from windtunnel.policy.param import check_number
from windtunnel.policy.tasks.config import TaskSchedulerConfig
from windtunnel.policy.tasks.graph import Graph
from windtunnel.policy.tasks.messages import (
    CancelTask,
    Pressure,
    RequestPressure,
    RunCancelled,
    RunEnded,
    RunResult,
    RunStarted,
    StartTask,
    TaskEnded,
)
from windtunnel.policy.tasks.record import labels_of
from windtunnel.policy.tasks.resolve import Generator, Resolver
from windtunnel.policy.tasks.scheduler import TaskScheduler
from windtunnel.sources.dist import tokens
from windtunnel.sources.outputs import Outputs
from windtunnel.sources.program import Program, Work, failure, metadata_of, retry_after
from windtunnel.sources.seeding import generator
from windtunnel.sources.source import Ask, Loop
from windtunnel.sources.traces.prompts import Prompts
from windtunnel.sources.transport import RETRIES, TransportRetry

LOCAL, STOP, AGAIN = "local", "stop", "again"


class PipelineSource:
    """Runs rows through the columns' programs; a closed loop, in either world.

    rows: in row groups of `buffer_size`; parallel: most tasks of a model at once (its weight, too). stop_at_s: run s at which what is
    left is given up. Each task draws its lengths from a generator of its own, so that no order of events changes them. prompts: makes
    message content for real engines. transport_retries: how often a request is sent again whose connection broke, as a new request of the
    same origin, while its task keeps its lease. notes: tell what the scheduler decides, and in each request's labels which task made it.
    Raises ConfigPipelineError, ConfigValueError.
    """

    loop: Loop = "closed"
    needs: frozenset[str] = frozenset()

    def __init__(self, programs: Sequence[Program], rows: int, config: TaskSchedulerConfig | None = None, *, name: str = "pipeline",
                 parallel: Mapping[str, float] | None = None, tenant: str = "pipeline", priority: str = "batch", seed: int = 0,
                 replication: int = 0, stop_at_s: float | None = None, prompts: Prompts | None = None, notes: bool = False,
                 transport_retries: int = RETRIES) -> None:
        check_number("rows", rows, lo=1, whole=True)
        config = config or TaskSchedulerConfig()
        self.name, self.tenant, self.priority = name, tenant, PRIORITIES[priority]
        self.programs = {p.column.name: p for p in programs}
        graph = Graph([p.column for p in programs])
        weights = {m: (parallel or {}).get(m, 4) for m in {p.model for p in programs if p.calls and p.model}}
        unknown = set(parallel or {}) - set(weights)
        if unknown:
            raise ConfigPipelineError(f"no column makes requests to the model {min(unknown)!r}")
        resolver = Resolver({p.column.name: Generator((p.column.name,), metadata_of(p, weights)) for p in programs}, config.max_in_flight_tasks)
        size = config.buffer_size
        plan = {rg: min(size, rows - rg * size) for rg in range(-(-rows // size))}
        self.scheduler = TaskScheduler(graph, plan, resolver, config, run_id=name, notes=notes, timeline=True)
        self.result: RunResult | None = None
        self.request_ids: dict[str, list[str]] = {}  # by task lease
        self._seed, self._stop_at_s, self._prompts = (seed, replication), stop_at_s, prompts
        self._work: dict[str, Work] = {}
        self._owner: dict[str, str] = {}
        self._local: list[tuple[float, int, str]] = []
        self._transport = TransportRetry(transport_retries)
        self._again: list[tuple[float, int, str, int, Request]] = []  # due, count, lease, number in the program, what to send again
        self._outputs = Outputs()
        self._made = 0
        self._inbox: deque[Any] = deque()
        self._asks: list[Ask] = []

    # -- as a source --------------------------------------------------------------------------------------------------------------------

    def stream(self) -> Iterator[Request] | None:
        return None

    def start(self, now: float) -> Sequence[Ask]:
        if self._stop_at_s is not None:
            self._asks.append(WakeAt(self._stop_at_s, STOP))
        self._inbox.append(RunStarted())
        return self._turn(now)

    def handle(self, what: Event | Reject | Close, now: float) -> Sequence[Ask]:
        if isinstance(what, Woke):
            self._woke(what, now)
        elif isinstance(what, (Finished, Reject, Close)):
            self._request_ended(what, now)
        return self._turn(now)

    def done(self) -> bool:
        return self.result is not None

    def check(self) -> None:
        """The scheduler's books balance, and each of its running tasks is at work here; raises PolicyError."""
        self.scheduler.check()
        if self._work.keys() != self.scheduler.running.keys():
            raise PolicyError(f"{len(self.scheduler.running)} tasks hold a lease, {len(self._work)} are at work")
        requests = {key: lease_id for lease_id, work in self._work.items() for key in work.open}
        if requests != self._owner:
            raise PolicyError(f"tasks wait for {len(requests)} requests, {len(self._owner)} are open")

    def _turn(self, now: float) -> list[Ask]:
        """Give the scheduler what has happened until it has nothing more to do at this instant."""
        while self._inbox:
            for effect in self.scheduler.handle(self._inbox.popleft(), now):
                kind = type(effect)
                if kind is StartTask:
                    self._begin(effect, now)  # type: ignore[arg-type]
                elif kind is CancelTask:
                    self._cancel(effect.lease.lease_id, now)  # type: ignore[union-attr]
                elif kind is WakeAt:
                    self._asks.append(effect)  # type: ignore[arg-type]
                elif kind is RunEnded:
                    self._over(effect.result)  # type: ignore[union-attr]
                else:
                    self._asks.append(effect)  # type: ignore[arg-type]
        asks, self._asks = self._asks, []
        return asks

    def _over(self, result: RunResult) -> None:
        self.result = result
        if self._stop_at_s is not None:
            self._asks.append(WakeAt(None, STOP))

    def _woke(self, what: Woke, now: float) -> None:
        if what.key == STOP:
            self._inbox.append(RunCancelled("shutdown"))
        elif what.key == LOCAL:
            while self._local and self._local[0][0] <= now:
                lease_id = heappop(self._local)[2]
                if lease_id in self._work:
                    self._end(lease_id)
            if self._local:
                self._asks.append(WakeAt(self._local[0][0], LOCAL))
        elif what.key == AGAIN:
            self._send_again(now)
        else:
            self._inbox.append(what)

    # -- a task's program ---------------------------------------------------------------------------------------------------------------

    def _begin(self, start: StartTask, now: float) -> None:
        task = start.task
        program = self.programs[task.column]
        rng = generator(self._seed[0], f"source/{self.name}/{task.column}/{task.row_group}/{task.row_index}", self._seed[1])
        n = program.calls
        inputs = tuple(tokens(program.input_tokens, rng, n))  # type: ignore[arg-type]
        outputs = tuple(tokens(program.output_tokens, rng, n))  # type: ignore[arg-type]
        local_s = max(0.0, float(program.local_s.sample(rng, 1)[0]))  # type: ignore[union-attr]
        work = Work(start, program, deque(zip(range(n), inputs, outputs)), local_s, inputs)
        self._work[start.lease.lease_id] = work
        self.request_ids[start.lease.lease_id] = []
        self._go_on(start.lease.lease_id, work, now)

    def _go_on(self, lease_id: str, work: Work, now: float) -> None:
        """The next request, or all of them; then the local work; then the end."""
        while work.left and (work.program.parallel or not work.busy):
            self._send(lease_id, work, *work.left.popleft(), now)
        if work.busy or work.left:
            return
        if not work.local_s:
            self._end(lease_id)
            return
        self._made += 1
        heappush(self._local, (now + work.local_s, self._made, lease_id))
        self._asks.append(WakeAt(self._local[0][0], LOCAL))

    def _send(self, lease_id: str, work: Work, number: int, input_tokens: int, output_tokens: int, now: float) -> None:
        task = work.start.task
        key = f"{task.column}/{task.row_group}/{task.row_index}/{number}"  # a cell's prompt is the same however events were ordered
        content = None if self._prompts is None else self._prompts.content(key, input_tokens)
        self._submit(lease_id, work, number, Request(
            self._next_id(), self.tenant, work.program.model or "", self.priority, now, input_tokens, output_tokens,
            labels=labels_of(self.scheduler.running[lease_id].correlation or {}), content=content, truth=Truth(output_tokens)), now)

    def _next_id(self) -> str:
        self._made += 1
        return f"{self.name}-{self._made}"

    def _submit(self, lease_id: str, work: Work, number: int, request: Request, now: float) -> None:
        work.open[request.id] = number, request
        work.times.setdefault("request_wait_started_at", now)
        self._owner[request.id] = lease_id
        self.request_ids[lease_id].append(request.id)
        self._asks.append(Arrived(request))

    def _try_again(self, lease_id: str, work: Work, number: int, request: Request, at: float) -> None:
        """Its connection broke: the same once more, later; its task keeps its lease."""
        self._made += 1
        work.again += 1
        heappush(self._again, (at, self._made, lease_id, number, request))
        self._asks.append(WakeAt(self._again[0][0], AGAIN))

    def _send_again(self, now: float) -> None:
        while self._again and self._again[0][0] <= now:
            _, _, lease_id, number, last = heappop(self._again)
            work = self._work.get(lease_id)
            if work is not None and work.failed is None:
                work.again -= 1
                self._submit(lease_id, work, number, replace(
                    last, id=self._next_id(), origin=last.origin or last.id, attempt=last.attempt + 1, arrived_s=now), now)
        if self._again:
            self._asks.append(WakeAt(self._again[0][0], AGAIN))

    def _request_ended(self, what: Finished | Reject | Close, now: float) -> None:
        lease_id = self._owner.pop(what.request_id, None)
        work = self._work.get(lease_id or "")
        if lease_id is None or work is None:
            return
        number, request = work.open.pop(what.request_id)
        if isinstance(what, Finished):
            work.got[number] = what.output_tokens
            if what.started_s is not None:
                work.times.setdefault("model_request_started_at", what.started_s)
            work.times["model_request_completed_at"] = work.times["request_lease_released_at"] = now
        elif work.failed is None:
            wait_s = self._transport.wait_s(what, request.attempt)
            if wait_s is not None:
                self._try_again(lease_id, work, number, request, now + wait_s)
                return
            work.fail(failure(what))
            self._press(work, what, now)
            self._leave(work, "sibling_failed")
        if work.failed is None:
            self._go_on(lease_id, work, now)
        elif not work.open:
            self._end(lease_id)

    def _press(self, work: Work, what: Reject | Close, now: float) -> None:
        wait_s = retry_after(what)
        key = self.scheduler.resolver.task(work.start.task).request_resource_key
        if what.outcome == "rate_limited" and wait_s and key is not None:
            self._inbox.append(RequestPressure(Pressure(key, blocked_until=now + wait_s)))

    def _leave(self, work: Work, reason: str) -> None:
        for request_id in work.open:
            self._asks.append(Cancelled(request_id, None, reason))

    def _cancel(self, lease_id: str, now: float) -> None:
        """The scheduler wants it stopped: what is open is told to end, local work is simply left."""
        work = self._work.get(lease_id)
        if work is None:
            return
        work.fail(work.failed or ("local_cancelled", None, None))
        if work.open:
            self._leave(work, "task_cancelled")
        else:
            self._end(lease_id)

    def _end(self, lease_id: str) -> None:
        work = self._work.pop(lease_id)
        outcome, kind, retry_after_s = work.failed or ("success", None, None)
        if outcome == "success":
            self._outputs.made(work.start.task, work.inputs, tuple(work.got.get(n) for n in range(len(work.inputs))))
        self._inbox.append(TaskEnded(lease_id, outcome, kind, retry_after_s, work.times or None))

    # -- results --------------------------------------------------------------------------------------------------------------------------

    def output_hashes(self) -> dict[str, str]:
        """SHA-256 per column: what was asked and how much came, never times or ids; see `Outputs`."""
        return self._outputs.hashes(self.scheduler.tracker)
