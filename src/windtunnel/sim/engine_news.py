"""What simulated engines tell of the attempts on them, made into events for the control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from windtunnel.events import Failed, Finished, FirstToken, Started
from windtunnel.sim.agenda import Agenda
from windtunnel.sim.dispatching import Dispatching
from windtunnel.sim.engine import Attempt
from windtunnel.sim.faults import Faults
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.fleet_config import Pool
from windtunnel.sim.lifecycle import DRAINING
from windtunnel.sim.progress_reports import ProgressReports
from windtunnel.sim.step_reports import REPORT_S, teller


class EngineNews:
    """Makes the callbacks of every engine of a fleet. needs: what control and source ask to be told; progress: None if nobody asks for it."""

    def __init__(self, control: Any, fleet: SimFleet, agenda: Agenda, dispatching: Dispatching, progress: ProgressReports | None,
                 faults: Faults | None, needs: frozenset[str]) -> None:
        self._control, self._fleet, self._agenda, self._dispatching = control, fleet, agenda, dispatching
        self._progress, self._faults, self._needs = progress, faults, needs
        self._broken: set[tuple[str, int]] = set()  # attempts that a fault ended at their first token, until the engine lets go

    def options(self, name: str, pool: Pool) -> dict[str, Any]:
        """Callbacks of the engine of replica `name`."""
        paired = self._dispatching.handoffs is not None and pool.link is not None
        options: dict[str, Any] = {"on_finish": self._finished(name, paired), "on_cancelled": self._cancelled(name)}
        if self._faults is not None and self._faults.breaks_off:
            options["on_first"] = lambda a: self._first(a, name)
        elif "first_token" in self._needs:
            options["on_first"] = lambda a: self._dispatching.back(FirstToken(a.id, a.dispatch, name))
        if "fpm" in self._needs:
            options["on_report"] = teller(name, self._fleet.replicas, self._agenda, self._dispatching.back, self._faults)
            options["fpm_interval_s"] = REPORT_S
        if "started" in self._needs or self._progress is not None:
            options["on_started"] = lambda a: self._begun(a, name)
        if getattr(pool.engine, "lora", None) is not None:
            options["adapter_of"] = self._by_label if pool.engine.lora.by == "label" else self._by_tenant  # type: ignore[union-attr]
        return options

    def _finished(self, name: str, paired: bool) -> Callable[[Attempt], None]:
        fleet, progress, changed = self._fleet, self._progress, self._dispatching.changed
        back, delay = self._dispatching.back, self._dispatching.network_s

        def finished(attempt: Attempt) -> None:
            replica = fleet.replicas[name]
            if progress is not None:
                progress.tell(name)
            if changed is not None:
                changed(name)
            replica.requests += 1
            first = attempt.first_token_s
            if delay and first is not None:
                first += delay
            back(Finished(attempt.id, attempt.dispatch, name, attempt.generated, attempt.prompt, attempt.cached_tokens, attempt.started_s, first,
                          "length", pair_numbers(attempt) if paired else engine_numbers(attempt) if attempt.preemptions else None))
            if replica.state == DRAINING:
                fleet.emptied(replica)

        return finished

    def _cancelled(self, name: str) -> Callable[[Attempt], None]:
        fleet, progress, changed, back = self._fleet, self._progress, self._dispatching.changed, self._dispatching.back

        def cancelled(attempt: Attempt) -> None:
            if (attempt.id, attempt.dispatch) in self._broken:  # its failure was told at its first token
                self._broken.discard((attempt.id, attempt.dispatch))
                fleet.emptied(fleet.replicas[name])
                return
            if progress is not None:
                progress.tell(name)
            if changed is not None:
                changed(name)
            back(Failed(attempt.id, attempt.dispatch, name, "local_cancelled", "cancelled", None, None, attempt.generated,
                        attempt.started_s, attempt.first_token_s))
            fleet.emptied(fleet.replicas[name])

        return cancelled

    def _begun(self, attempt: Attempt, name: str) -> None:
        if self._progress is not None:
            self._progress.begun(name)
        if "started" in self._needs:
            self._dispatching.back(Started(attempt.id, attempt.dispatch, name))

    def _first(self, attempt: Attempt, name: str) -> None:
        """A first token where replies may break off right after it; an answer that ends with it is complete."""
        status = self._faults.refuses(name, "first_token") if self._faults is not None else None
        if status is not None and self._fleet.replicas[name].engine.cancel(attempt.id, attempt.dispatch):
            self._broken.add((attempt.id, attempt.dispatch))
            self._dispatching.fail(attempt.id, attempt.dispatch, name, status, f"http_{status}", None, self._agenda._now)
        elif "first_token" in self._needs:
            self._dispatching.back(FirstToken(attempt.id, attempt.dispatch, name))

    def _by_tenant(self, request_id: str) -> str | None:
        opened = self._control.flow.open.get(request_id)
        return None if opened is None else opened.request.tenant

    def _by_label(self, request_id: str) -> str | None:
        opened = self._control.flow.open.get(request_id)
        return None if opened is None else dict(opened.request.labels).get("adapter")


def engine_numbers(attempt: Attempt) -> dict[str, Any]:
    """What only the engine knows of a finished attempt."""
    return {"preemptions": attempt.preemptions, "recomputed_tokens": attempt.recomputed_tokens, "swapped_blocks": attempt.swapped_blocks}


def pair_numbers(attempt: Attempt) -> dict[str, Any] | None:
    """The same of an attempt that may have come from another replica; None when there is nothing to tell."""
    numbers = engine_numbers(attempt) if attempt.preemptions else None
    kv_bytes = getattr(attempt, "kv_bytes", None)
    if kv_bytes is None:
        return numbers
    return {**(numbers or {}), "kv_wait_s": attempt.kv_wait_s, "kv_transfer_s": attempt.kv_transfer_s, "kv_bytes": kv_bytes}
