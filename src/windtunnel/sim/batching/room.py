"""Room for the next step: who is admitted, who loses its blocks, and the way of swapped KV over PCIe."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from windtunnel.errors import ConfigValueError
from windtunnel.sim.agenda import COMPLETION, Agenda
from windtunnel.sim.attempt import MOVING, RUNNING, SWAPPED, WAITING, Attempt, Callbacks
from windtunnel.sim.batching.fittings import Fittings
from windtunnel.sim.batching.intake import Intake
from windtunnel.sim.batching.priority_line import PriorityLine
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.stepmodels.model import StepModel


class Room(Intake):
    """Admission and preemption. `_arrived`: requests whose KV has come and that decode from the next step on."""

    __slots__ = ("_arrived", "_block_s", "_emptied", "_host_blocks", "_pcie_free_s", "_prepared", "swapped_blocks")

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, told: Callbacks, fittings: Fittings) -> None:
        super().__init__(name, config, model, agenda, told, fittings)
        self._arrived: list[Attempt] = []
        self._emptied = False  # did the last preemption leave nobody in the batch?
        self._prepared = True  # nothing to do before a step is composed
        self._host_blocks = self.swapped_blocks = 0
        self._pcie_free_s = self._block_s = 0.0
        if config.preemption == "swap":
            if config.pcie_bw is None or config.kv_bytes_per_token is None:
                raise ConfigValueError("preemption", "swap needs pcie_bw and kv_bytes_per_token")
            self._block_s = config.block_size * config.kv_bytes_per_token / config.pcie_bw

    # -- admission ------------------------------------------------------------------------------------------------------------------

    def serve_partial(self) -> int:
        """Give the unfinished prefill its chunk; returns the tokens left of the step's budget."""
        budget, a = self.budget - self.kv.n * self.width, self.partial
        if a is None or budget <= 0:
            return budget
        q = min(a.target - a.computed, budget)
        self._chunks.append((a, q))
        self._grow(a, a.computed + q)
        return budget - q

    def admit(self, budget: int) -> bool:
        """From the head of the queue while sequences, tokens and blocks last; the first one that does not fit stops it.

        True: look again after one step. Without whole reservation a hit takes its block too, so who is blocked may fit once it is evicted.
        """
        running, queue, cache, kv = self._running, self._queue, self.cache, self.kv
        total, size = kv.total, kv.size
        while self._waiting and budget > 0 and len(running) < self._max_seqs:
            a = queue[0] if not self._returned and queue[0].state == WAITING else self._head()
            if a.computed:  # its KV is stored: it comes back, or from another engine
                if not self._bring_in(a, self.D + 1):
                    return False
                budget -= self.width if a.state == RUNNING else 0
                continue
            hits, q = 0, a.target
            if a.blocks is not None and cache is not None:
                self._trim(self.D + 1)
                hits = self._hits(a)
                q -= hits * self._hash_tokens
            if q > budget:
                if not self.config.chunked_prefill:
                    return False
                q = budget
            # as `kv.surely_fits`, for a plain pool in place
            if total is not None and (kv.stretched or kv.base_sum + kv.n * (self.D + size) + a.target + size > (
                    total - kv.fixed - self._reserve) * size) and not self._has_room(a, self.D + 1, hits, budget):
                return hits > 0 and not self._reserve_full
            self._enter(a, q, hits)
            budget -= q
        return False

    def _bring_in(self, a: Attempt, D: int) -> bool:
        """Someone whose KV is stored: swapped KV starts on its way back, KV from another engine is there. False: it must wait."""
        if a.state == SWAPPED:
            return self._swap_in(a, D)
        grows = self.kv.blocks_for(a.computed + self.width) - self.kv.blocks_for(a.computed)
        if grows and self._running and not self.kv.fits(D, grows):
            return False  # its blocks are full: the next token takes one that is not free
        self._take_head()
        if a.computed >= a.target:
            self._rejoin(a)
            return True
        self._orders = a.order = order = self._orders + 1  # its last prompt token is computed here, and yields token 1
        self._running[order] = a
        a.state = RUNNING
        if a.started_s is None:
            a.started_s = self.agenda._now
        self._chunks.append((a, a.target - a.computed))
        return True

    def _rejoin(self, a: Attempt) -> None:
        """Into the batch with KV that is stored: it decodes from the next step on."""
        self._orders = a.order = order = self._orders + 1
        self._running[order] = a
        a.state = RUNNING
        if a.started_s is None:
            a.started_s = self.agenda._now
            if self._on_started is not None:
                self._started.append(a)
        if self.pieces is not None:
            self.pieces.rejoin(a, self.D)
        self._join(a)

    @abstractmethod
    def _join(self, a: Attempt) -> None:
        """A complete prefill decodes from the next step on."""

    # -- preemption -----------------------------------------------------------------------------------------------------------------

    def make_room(self) -> bool:
        """Preempt while the running requests' next step needs more blocks than are free; True if anybody was."""
        preempted = False
        while self._running and not self.kv.fits(self.D + 1, self._partial_growth()):
            self._preempt(self._victim())
            preempted = True
        self._emptied = preempted and not self._running
        return preempted

    def _victim(self) -> Attempt:
        """The last admitted, or the least urgent. One that has not got on by a token since it was a victim is spared: two would throw each
        other out for ever."""
        running = self._running
        order: Iterable[Attempt] = reversed(running.values())
        if type(self._queue) is PriorityLine:
            order = sorted(running.values(), key=lambda a: (a.priority, a.line), reverse=True)
        for a in order:
            if a.preempted_at != (self._generated(a, self.D) if a.end_mark >= 0 else a.generated):
                return a
        return running[next(reversed(running))]

    def _partial_growth(self) -> int:
        """Blocks that the unfinished prefill's next chunk takes."""
        a = self.partial
        if a is None:
            return 0
        q = min(a.target - a.computed, max(0, self.budget - self.kv.n * self.width))
        return self.kv.blocks_for(a.computed + q) - a.held - (len(a.refs) * self._per_entry if a.refs else 0)

    def _preempt(self, a: Attempt) -> None:
        """Its blocks are free and it is in line again. What it had generated is never emitted again."""
        decoding = a.end_mark >= 0
        if decoding and self.pieces is not None:
            a.lost_at = self.pieces.cut(a, self.D)
        self._leave(a)
        a.preempted_at = a.generated
        a.preemptions += 1
        self.preemptions += 1
        if not (decoding and self._block_s and self._swap_out(a)):
            self._recompute(a)
        self._put_back(a)

    def _recompute(self, a: Attempt) -> None:
        """What it had generated will be prefilled too."""
        a.recomputed_tokens += a.computed
        a.computed = 0
        a.target = a.prompt + a.generated
        a.state = WAITING

    # -- swapping -------------------------------------------------------------------------------------------------------------------

    def _swap_out(self, a: Attempt) -> bool:
        """To host memory, if it has room; steps go on meanwhile. The way is taken by one request after the other."""
        blocks = self.kv.blocks_for(a.computed)
        if self._host_blocks + blocks > self.config.swap_blocks:
            return False
        self._host_blocks += blocks
        self.swapped_blocks += blocks
        a.swapped_blocks += blocks
        a.target = a.prompt + a.generated
        a.state = SWAPPED
        a.ready_s = self._over_pcie(blocks)
        self.agenda.at(a.ready_s, COMPLETION, lambda _: self._swapped_out(a))
        return True

    def _over_pcie(self, blocks: int) -> float:
        """When the transfer of so many blocks ends."""
        self._pcie_free_s = max(self._pcie_free_s, self.agenda._now) + blocks * self._block_s
        return self._pcie_free_s

    def _swapped_out(self, a: Attempt) -> None:
        if a.state == SWAPPED and self._waiting and self._head() is a:
            self._disturb()

    def _swap_in(self, a: Attempt, D: int) -> bool:
        """Take all its blocks and start the way back; False if they are not free, or it is still on its way out."""
        kv, blocks = self.kv, self.kv.blocks_for(a.computed)
        if self.agenda._now < a.ready_s or not kv.fits(D, blocks + (self._reserve if self._running else 0)):
            return False
        self._take_head()
        a.state, a.held = MOVING, blocks
        kv.fixed += blocks
        self._max_seqs -= 1  # it will need its place
        self.agenda.at(self._over_pcie(blocks), COMPLETION, lambda _: self._swapped_in(a))
        return True

    def _swapped_in(self, a: Attempt) -> None:
        if a.state != MOVING:
            return  # the replica is lost
        self._host_blocks -= self.kv.blocks_for(a.computed)
        self._arrived.append(a)
        self._prepared = False
        self._disturb()

    @abstractmethod
    def _disturb(self) -> None:
        """The next boundary is not like those before it: end the run there, or start a step if none runs."""
