"""Virtual token counter: fairness in tokens served, not in requests (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from windtunnel.policy.param import BuildContext, Param, check_number
from windtunnel.policy.queueing.fair import Eligible, FairTaskQueue
from windtunnel.policy.queueing.item import QueueItem, QueueView, Selection
from windtunnel.policy.queueing.order import ActiveGroup
from windtunnel.policy.routing.replica import NOMINAL_INPUT

PREDICT_FROM = 5
PROFILE = (0.21001891, 0.10075395, 0.0039868, 0.00324733, 1.14601454)  # ms on an A10G with Llama-2-7B, from the paper's artifact


class Served:
    """A committed item that has not ended: whose it is, what it has been charged for. paid_tokens: predicted ones included."""

    __slots__ = ("input_tokens", "key", "output_tokens", "paid_tokens", "weight")

    def __init__(self, key: str, weight: float, input_tokens: int, paid_tokens: float) -> None:
        self.key, self.weight, self.input_tokens, self.paid_tokens = key, weight, input_tokens, paid_tokens
        self.output_tokens = 0


class VtcQueue(FairTaskQueue):
    """The client (group) that was served the fewest weighted tokens goes first, ties by activation; a client's items in order.

    Charges: `w_in` per input token at commit, `w_out` per output token as `charge` and `settle` tell of them, over the client's weight.
    A client that returns is lifted to the least counter that waits, or, with nobody waiting, to that of the client that left last: idle
    time earns no credit. While its first client is blocked nobody is selected (that is what the bound 2·max(w_in·input, w_out·batch
    tokens) rests on), unless skip_blocked. predict(client) charges expected output tokens at commit and pays back what was not produced.
    Every call O(log clients).
    """

    needs = frozenset({"progress"})

    def __init__(self, config: Vtc | None = None, *, predict: Callable[[str], float | None] | None = None) -> None:
        super().__init__()
        self.config = config = config or Vtc()
        self._recent: dict[str, deque[int]] = {}
        self._predict = predict or (self._mean_of_recent if config.predict else None)
        self._counters = self._idle
        self._activated: dict[str, int] = {}
        self._left_last: str | None = None  # the client whose last waiting item went
        self._served: dict[str, Served] = {}

    def counter(self, client: str) -> float:
        """Weighted tokens that a client was served, lifts included; 0 for an unknown one."""
        active = self._active.get(client)
        return self._counters.get(client, 0.0) if active is None else float(active.finish or 0.0)

    def select(self, eligible: Eligible, now: float) -> Selection | None:
        if self.config.skip_blocked:
            return super().select(eligible, now)
        self._tick(now)
        least, view = self._order.least(), QueueView(self, self.sequence_version)
        return None if least is None or not eligible(least.head, view) else Selection(least.head, view, self.sequence_version)

    def straight(self, item: QueueItem, now: float) -> bool:
        """offer + select + commit in one, on an empty queue; False, and nothing done, on any other."""
        if self._where:
            return False
        self.offer((item,), now)
        return self.commit(Selection(item, self.view(), self.sequence_version), now) is not None

    def charge(self, item_id: str, output_tokens: int, now: float) -> None:
        """So many output tokens in all has a committed item by now; unknown items and lower counts change nothing."""
        served = self._served.get(item_id)
        if served is not None and output_tokens > served.output_tokens:
            self._charge_output(served, output_tokens)

    def settle(self, item_id: str, output_tokens: int | None, now: float) -> None:
        """A committed item has ended, however; None: no more tokens than were told of. Predicted tokens that never came are paid back."""
        if not isinstance(item_id, str):
            return
        self.charge(item_id, output_tokens or 0, now)
        served = self._served.pop(item_id, None)
        if served is None:
            return
        unused = served.paid_tokens - served.output_tokens
        if unused > 0 and not self.config.profiled:
            self._add_service(served, -self.config.w_out * unused)
        if output_tokens and self.config.predict:
            self._recent.setdefault(served.key, deque(maxlen=PREDICT_FROM)).append(output_tokens)

    # -- the fair queue's places, as counters ---------------------------------------------------------------------------------------

    def _first_tag(self, active: ActiveGroup) -> Any:
        counter = active.finish or 0.0
        if self.config.lift:
            least = self._order.least()
            if least is not None:
                counter = max(counter, least.finish or 0.0)
            elif self._left_last is not None:
                counter = max(counter, self.counter(self._left_last))
        active.finish = counter
        self._activated[active.group.key] = sequence = self._order.activations + 1
        return (counter, sequence)

    def _pay(self, active: ActiveGroup, item: QueueItem) -> Any:
        request, key, weight = item.request, active.group.key, active.group.weight
        tokens_in = NOMINAL_INPUT if request is None or request.input_tokens is None else request.input_tokens
        expected = self._predict(key) if self._predict is not None else None
        served = self._served[item.id] = Served(key, weight, tokens_in, expected or 0.0)
        cost = self._profile(tokens_in, 0) if self.config.profiled else self.config.w_in * tokens_in + self.config.w_out * served.paid_tokens
        active.finish = (active.finish or 0.0) + cost / weight
        return (active.finish, self._activated[key])

    def _deactivate(self, active: ActiveGroup) -> None:
        super()._deactivate(active)
        del self._activated[active.group.key]
        self._left_last = active.group.key

    def _charge_output(self, served: Served, output_tokens: int) -> None:
        before, served.output_tokens = served.output_tokens, output_tokens
        if self.config.profiled:
            self._add_service(served, self._profile(served.input_tokens, output_tokens) - self._profile(served.input_tokens, before))
            return
        beyond = output_tokens - max(served.paid_tokens, before)
        if beyond > 0:
            served.paid_tokens = max(served.paid_tokens, output_tokens)
            self._add_service(served, self.config.w_out * beyond)

    def _add_service(self, served: Served, service: float) -> None:
        key, active = served.key, self._active.get(served.key)
        if active is None:
            self._keep(key, self._counters.get(key, 0.0) + service / served.weight)
            return
        active.finish = (active.finish or 0.0) + service / served.weight
        self._order.enter(active, (active.finish, self._activated[key]))

    def _profile(self, x: int, y: int) -> float:
        a, b, c, d, e = self.config.coefficients
        return a * x + b * y + c * x * y + d * y * y + e

    def _mean_of_recent(self, client: str) -> float | None:
        recent = self._recent.get(client)
        return sum(recent) / len(recent) if recent else None


@dataclass(frozen=True, slots=True)
class Vtc:
    """Config. predict: charge the mean of a client's last five outputs at commit. profiled: charge measured milliseconds, not tokens."""

    w_in: Annotated[float, Param(0, 10, 0.1, label="input weight", help="charge per input token")] = 1.0
    w_out: Annotated[float, Param(0, 10, 0.1, label="output weight", help="charge per output token")] = 2.0
    lift: Annotated[bool, Param(label="lift", help="idle clients earn no credit; off is for comparison only")] = True
    skip_blocked: Annotated[bool, Param(label="skip blocked", help="pass over a blocked client; the fairness bound is lost")] = False
    predict: Annotated[bool, Param(label="predict", help="charge the expected output at the start")] = False
    profiled: Annotated[bool, Param(label="profiled", help="charge by the cost profile instead of by tokens")] = False
    coefficients: Annotated[tuple[float, float, float, float, float], Param(
        unit="ms", label="coefficients", help="of x, y, x·y, y² and 1 for x input and y output tokens (profiled)", knob=False)] = PROFILE

    def __post_init__(self) -> None:
        for name in ("w_in", "w_out"):
            check_number(name, getattr(self, name), lo=0.0)
        for i, value in enumerate(self.coefficients):
            check_number(f"coefficients[{i}]", value)

    def build(self, ctx: BuildContext) -> VtcQueue:
        for tenant, weight in ctx.tenants.items():
            check_number(f"tenants.{tenant}.weight", weight, above=0.0)
        return VtcQueue(self)
