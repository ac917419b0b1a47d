"""Into an engine's queue: what it refuses, and the host's way in."""

from __future__ import annotations

from abc import abstractmethod

from windtunnel.errors import ConfigValueError
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.attempt import INBOUND, WAITING, Attempt, Callbacks, Refusal
from windtunnel.sim.batching.fittings import Fittings
from windtunnel.sim.batching.members import NO_LIMIT, Members
from windtunnel.sim.engine_config import EngineConfig
from windtunnel.sim.stepmodels.model import StepModel


class Intake(Members):
    """Members with a door. Requests of fewer tokens than `_longest` go straight into the queue."""

    __slots__ = ("_inbound", "_inbound_s", "_inbound_token_s", "_longest", "asleep", "prefix_unusable")

    def __init__(self, name: str, config: EngineConfig, model: StepModel, agenda: Agenda, told: Callbacks, fittings: Fittings) -> None:
        super().__init__(name, config, model, agenda, told, fittings)
        host = config.host
        self._inbound_s, self._inbound_token_s = host.connect_s + host.ingress_s, host.ingress_per_token_s
        self._inbound = 0  # requests on their way in
        self.asleep = 0  # level of sleep; 0: awake
        self.prefix_unusable = 0
        self._longest = longest_unseen(config)

    @abstractmethod
    def _enqueue(self, a: Attempt) -> None:
        """Into the queue, now."""

    @abstractmethod
    def _steps_begun(self) -> int:
        """Steps of the current run that have begun: their blocks are taken."""

    def _refusal(self, a: Attempt) -> Refusal | None:
        config = self.config
        if self.asleep:
            return Refusal(503, "engine_unavailable")
        if type(a.prompt) is not int or type(a.output) is not int or a.prompt < 1 or a.output < 0:
            return Refusal(400, "invalid_request")
        wrong = self._never_fits(a)
        if wrong is not None:
            return Refusal(400, wrong)
        if config.max_queued_requests is not None and self._waiting + self._inbound >= config.max_queued_requests:
            return Refusal(config.reject_status, "engine_queue_full")
        if config.max_queued_tokens is not None:
            self._trim(self.D + self._steps_begun())
            a.held = a.prompt - self._hits(a) * self._hash_tokens
            if self._waiting + self._inbound and self._waiting_tokens + a.held > config.max_queued_tokens:
                a.held = 0
                return Refusal(config.reject_status, "engine_queue_full")
            self._waiting_tokens += a.held
        return None

    def _never_fits(self, a: Attempt) -> str | None:
        """Why this request could never run here."""
        config, whole = self.config, a.prompt + max(1, a.output)
        slot = config.slot_tokens
        if (config.max_model_len is not None and whole > config.max_model_len) or (slot is not None and (a.prompt >= slot or whole > slot)):
            return "context_length_exceeded"
        stored = a.prompt + a.output - (a.output > 0) + self.width - 1  # the last token's KV is never stored; drafts may go beyond it
        if config.role == "prefill":
            stored = a.prompt
        if self.kv.total is not None and self.kv.blocks_for(stored) > self.kv.total:
            return "kv_capacity_exceeded"
        if config.admission == "peak" and self.kv.total is not None and whole >= self.kv.total * self.kv.size:
            return "kv_capacity_exceeded"
        if not config.chunked_prefill and not config.whole_prompts and stored > config.max_num_batched_tokens:
            return "context_length_exceeded"
        return None

    def _submit_slowly(self, a: Attempt) -> Refusal | None:
        """The door when something must be looked at."""
        refusal = self._refusal(a)
        if refusal is not None:
            return refusal
        delay_s = self._ingress_s(a)
        if not delay_s:
            self._enqueue(a)
            return None
        now = a.submitted_s = self.agenda._now
        a.state = INBOUND
        self._here[a.id, a.dispatch] = a
        self._inbound += 1
        self._come_in(a, now + delay_s)
        return None

    def _ingress_s(self, a: Attempt) -> float:
        """Seconds that the host takes to let it in."""
        return self._inbound_s + self._inbound_token_s * a.prompt

    def _come_in(self, a: Attempt, at_s: float) -> None:
        """Into the queue at that time, unless it is cancelled before. It stays submitted when it came to the door."""
        submitted_s = a.submitted_s

        def there(_: object) -> None:
            if a.state == INBOUND:
                a.state = WAITING
                self._inbound -= 1
                self._enqueue(a)
                a.submitted_s = submitted_s

        if at_s > self.agenda._now:
            self.agenda.at(at_s, ARRIVAL, there)
        else:
            there(None)

    def _wrong_hashes(self, a: Attempt) -> None:
        """Too few hashes for the prompt: they are of larger blocks than this cache's. Never taken for what they are not."""
        if self.config.cache_block_tokens is not None:
            raise ConfigValueError("engine.cache_block_tokens", f"{len(a.blocks or ())} prefix hashes for a prompt of {a.prompt} tokens are not of "
                                   f"{self._hash_tokens} tokens each", hint="write the tokens per hash of the trace, such as 512")
        a.blocks = None
        self.prefix_unusable += 1


def longest_unseen(config: EngineConfig) -> int:
    """Requests of fewer prompt and output tokens than this need no look at the limits; -1: all need one."""
    host = config.host
    if (config.max_queued_requests is not None or config.max_queued_tokens is not None or host.connect_s or host.ingress_s
            or host.ingress_per_token_s):
        return -1
    bounds = [NO_LIMIT]
    if config.num_blocks is not None:
        bounds.append(config.num_blocks * config.block_size)
    if config.max_model_len is not None:
        bounds.append(config.max_model_len)
    if config.slot_tokens is not None:
        bounds.append(config.slot_tokens)
    if not config.chunked_prefill and not config.whole_prompts:
        bounds.append(config.max_num_batched_tokens)
    return min(bounds) - (0 if config.spec_decode is None else config.spec_decode.k)
