"""Split prefill and decode: KV leaves a prefill engine and comes into a decode engine that has set its blocks aside before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from windtunnel.sim.agenda import Agenda
from windtunnel.sim.attempt import GONE, MOVING, RUNNING, SWAPPED, WAITING, Attempt, Callbacks, Refusal
from windtunnel.sim.batching.fittings import Fittings
from windtunnel.sim.batching.progress import Progress
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.stepmodels.model import StepModel


class HandOver(Progress):
    """on_prefilled(attempt): its prefill is complete; its blocks stay here until `release`. Called at the boundary, the engine consistent."""

    __slots__ = ("_kv_wait", "_on_prefilled", "_paused", "_prefilled")

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, told: Callbacks, fittings: Fittings) -> None:
        super().__init__(name, config, model, agenda, told, fittings)
        self._on_prefilled = fittings.on_prefilled
        self._kv_wait: deque[tuple[Attempt, float, Callable[[Attempt], None]]] = deque()
        self._paused = False
        self._prefilled: list[Attempt] = []

    # -- the prefill side -----------------------------------------------------------------------------------------------------------

    def _hand_over(self, a: Attempt, now: float) -> bool:
        """Token 1 here, unless the decode side yields it; out of the batch, blocks held."""
        early = self.config.first_token == "prefill"
        if early:
            a.generated += 1
            self._prefills += 1
            if self.pieces is not None:
                self._note_segment(a, now)
            a.first_token_s = now
        del self._running[a.order]
        a.state = MOVING
        self._prefilled.append(a)
        return early

    def _tell_prefilled(self) -> None:
        prefilled, self._prefilled = self._prefilled, []
        for a in prefilled:
            if a.cancelled:
                self.release(a)
                a.state = GONE
                self._on_cancelled(a)
            elif self._on_prefilled is not None:
                self._on_prefilled(a)

    def release(self, a: Attempt) -> None:
        """Its KV is elsewhere, or nobody wants it: the blocks are free at the next step."""
        if self._here.pop((a.id, a.dispatch), None) is None:
            return
        a.state = GONE
        self._free_held(a)
        if self._waiting or self._kv_wait:
            self._disturb()

    def _free_held(self, a: Attempt) -> None:
        """Blocks of someone who is not in the batch."""
        self.kv.fixed -= a.held
        a.held = 0
        if a.refs is not None:
            assert self.cache is not None
            self.kv.fixed -= self.cache.release(a.refs) * self._per_entry
            a.refs = None

    def _come_to_nothing(self, a: Attempt) -> None:
        """Cancelled while its KV was on its way: it is gone, and so are the blocks that it held."""
        a.state = GONE
        del self._here[a.id, a.dispatch]
        self._free_held(a)
        self._on_cancelled(a)

    # -- the decode side ------------------------------------------------------------------------------------------------------------

    def refuses_for_ever(self, a: Attempt) -> Refusal | None:
        """Could it never be decoded here? Then it need not be prefilled elsewhere."""
        wrong = self._never_fits(a)
        return None if wrong is None else Refusal(400, wrong)

    def reserve(self, a: Attempt, then: Callable[[Attempt], None]) -> Refusal | None:
        """Set blocks for the prompt of `a` aside, first come first served, and call `then(a)` when they are. `cached_tokens` of them are here.

        `a` is this engine's own attempt of the request: same id and dispatch, tokens and hashes as on the prefill side.
        """
        refusal = self._refusal(a)
        if refusal is not None:
            return refusal
        self._waiting_tokens -= a.held  # it does not wait in the queue, though it passed its door
        a.held = 0
        a.submitted_s = self.agenda._now
        a.state = MOVING
        self._here[a.id, a.dispatch] = a
        self._kv_wait.append((a, a.submitted_s, then))
        self._prepared = False
        if len(self._kv_wait) == 1 and self._reserve_next(self._steps_begun() or 1):
            self._disturb()
        return None

    def _reserve_next(self, steps: int) -> bool:
        """The first in line for blocks: True if it has got them."""
        a, since_s, then = self._kv_wait[0]
        kv, D = self.kv, self.D + steps
        self._trim(D)
        hits = self._hits(a)
        if not kv.fits(D, self._blocks_wanted(a, hits, a.target) + (self._reserve if self._running else 0)):
            return False
        self._kv_wait.popleft()
        a.kv_wait_s = self.agenda._now - since_s
        if a.blocks is not None and self.cache is not None:
            a.refs = list(a.blocks[:hits])
            a.filled = hits
            kv.fixed += self.cache.acquire(a.refs) * self._per_entry
            self._count_hits(a, hits)
        a.held = kv.blocks_for(a.target) - hits * self._per_entry
        kv.fixed += a.held
        then(a)
        return True

    def abandon(self, a: Attempt) -> None:
        """The KV of an attempt that waits for blocks, or has them, will never come."""
        if a.state == MOVING and self._here.pop((a.id, a.dispatch), None) is not None:
            a.state = GONE
            self._kv_wait = deque(entry for entry in self._kv_wait if entry[0] is not a)
            self._free_held(a)
            self._disturb()

    def submit_prefilled(self, a: Attempt) -> None:
        """The KV of an attempt with reserved blocks is here: it waits for a place in the batch. `generated`, `first_token_s` as on the other
        side."""
        if a.state != MOVING:
            return
        a.computed = a.prompt if a.generated else a.prompt - 1
        a.target = a.prompt
        if a.cancelled:
            self._come_to_nothing(a)
            self._disturb()
            return
        if a.refs is not None and a.computed == a.target:
            self._make_findable(a)
        if not a.computed:
            self._free_held(a)  # a prompt of one token is computed here like any other
        a.state = WAITING
        if a.computed:
            self._to_the_front(a)
        else:
            self._queue.append(a)
        self._waiting += 1
        self._disturb()

    # -- before a step ----------------------------------------------------------------------------------------------------------------

    def _prepare(self) -> bool:
        """What must be done before a step is composed; False: none may start."""
        if self._paused:
            return False
        arrived, self._arrived = self._arrived, []
        for a in arrived:
            self._max_seqs += 1
            if a.cancelled:
                self._come_to_nothing(a)
            else:
                self._rejoin(a)
        while self._kv_wait and self._reserve_next(1):
            pass
        self._prepared = not self._kv_wait
        return True

    def _let_go(self) -> None:
        """Cancelled requests leave at a boundary."""
        cancels, self._cancels = self._cancels, []
        for a in cancels:
            if a.state == RUNNING:
                self._leave(a)
            elif a.state in (WAITING, SWAPPED):  # preempted meanwhile
                self._out_of_line(a)
            else:
                continue
            a.state = GONE
            del self._here[a.id, a.dispatch]
            self._on_cancelled(a)

    def _out_of_line(self, a: Attempt) -> None:
        """Its place in the line, and what it holds while it waits."""
        self._waiting -= 1
        if a.state == SWAPPED:
            self._host_blocks -= self.kv.blocks_for(a.computed)
        elif a.computed:
            self._free_held(a)
        else:
            self._waiting_tokens -= a.held

    # -- looking ----------------------------------------------------------------------------------------------------------------------

    def queued(self) -> tuple[int, int]:
        """(prompt tokens waiting, tokens of decodes waiting to come back or to come). O(waiting)."""
        prompts = kv = 0
        for a in (*self._returned, *self._queue):
            if a.state == SWAPPED or (a.state == WAITING and a.computed):
                kv += a.computed
            elif a.state == WAITING:
                prompts += a.target
        return prompts, kv + sum(a.prompt for a, _, _ in self._kv_wait)
