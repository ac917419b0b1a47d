"""Moving KV between replicas: links that concurrent flows share fairly, and the way of a request from a prefill to a decode engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sim.agenda import COMPLETION, Agenda
from windtunnel.sim.attempt import Attempt

if TYPE_CHECKING:
    from windtunnel.sim.engine import Refusal, SimEngine

DONE_BYTES = 1e-6  # a flow with less left has ended: float rounding


@dataclass(frozen=True, slots=True)
class KvLink:
    """How the KV of a replica gets to others. bandwidth: bytes/s in, and as much out; latency_s: behind the last byte;
    kv_bytes_per_token: of its model; layers: of its model if each layer's KV leaves as soon as it is computed, None: all at the end."""

    bandwidth: float
    kv_bytes_per_token: float
    latency_s: float = 0.0
    layers: int | None = None

    def __post_init__(self) -> None:
        check_number("link.bandwidth", self.bandwidth, above=0.0)
        check_number("link.kv_bytes_per_token", self.kv_bytes_per_token, above=0.0)
        check_number("link.latency_s", self.latency_s, lo=0.0)
        if self.layers is not None:
            check_number("link.layers", self.layers, lo=1, whole=True)


class Flow:
    """Bytes on their way from one replica to another. rate: bytes/s now."""

    __slots__ = ("ended", "left", "lost", "rate", "source", "started_s", "target", "then")

    def __init__(self, source: str, target: str, nbytes: float, started_s: float, then: Callable[[], None], lost: Callable[[str], None]) -> None:
        self.source, self.target, self.left, self.started_s, self.then, self.lost = source, target, nbytes, started_s, then, lost
        self.rate, self.ended = 0.0, False


class Links:
    """Every replica has an egress and an ingress of its own bandwidth (bytes/s) and a latency (s). Concurrent flows share by max-min
    fairness (progressive filling), computed anew when one starts or ends; in between it is closed form.

    Source: Bertsekas and Gallager, "Data Networks" (1992), 6.5.2.
    """

    __slots__ = ("_agenda", "_at_s", "_bandwidth", "_flows", "_latency_s", "_version", "moved_bytes")

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._bandwidth: dict[str, float] = {}
        self._latency_s: dict[str, float] = {}
        self._flows: list[Flow] = []
        self._at_s, self._version = 0.0, 0
        self.moved_bytes = 0.0

    def attach(self, replica: str, bandwidth: float, latency_s: float = 0.0) -> None:
        """A replica's link, or its new bandwidth: flows under way go on at their new rates."""
        check_number("link_bw", bandwidth, above=0.0)
        check_number("link_latency_s", latency_s, lo=0.0)
        self._settle()
        self._bandwidth[replica], self._latency_s[replica] = float(bandwidth), float(latency_s)
        self._share()

    def bandwidth(self, source: str, target: str) -> float:
        """Bytes/s of a flow that has both links for itself."""
        return min(self._bandwidth[source], self._bandwidth[target])

    def send(self, source: str, target: str, nbytes: float, then: Callable[[], None], lost: Callable[[str], None] = lambda reason: None) -> Flow:
        """Start a flow; `then()` when its last byte has arrived, `lost(reason)` if one of the two is dropped before."""
        for name in (source, target):
            if name not in self._bandwidth:
                raise ConfigValueError("link", f"{name!r} has no link", hint="attach it first")
        check_number("nbytes", nbytes, lo=0.0)
        self._settle()
        flow = Flow(source, target, float(nbytes), self._agenda._now, then, lost)
        self._flows.append(flow)
        self._share()
        return flow

    def cancel(self, flow: Flow) -> None:
        """Nobody wants it any more: the others get its share. Nothing is called."""
        if not flow.ended:
            self._settle()
            flow.ended = True
            if flow in self._flows:
                self._flows.remove(flow)
            self._share()

    def drop(self, replica: str, reason: str = "kv_lost") -> None:
        """The replica is gone, and with it its link and every flow from or to it."""
        self._settle()
        gone = [f for f in self._flows if replica in (f.source, f.target)]
        self._flows = [f for f in self._flows if replica not in (f.source, f.target)]
        self._bandwidth.pop(replica, None)
        self._share()
        for flow in gone:
            flow.ended = True
            flow.lost(reason)

    def _settle(self) -> None:
        """Bring all flows up to now."""
        now = self._agenda._now
        passed = now - self._at_s
        self._at_s = now
        if passed:
            for f in self._flows:
                done = f.rate * passed
                f.left -= done
                self.moved_bytes += done

    def _share(self) -> None:
        """Rates for the flows that there are, and an agenda entry for the one that ends first."""
        self._fill()
        self._version += 1
        if not self._flows:
            return
        version = self._version
        wait_s = min(f.left / f.rate for f in self._flows)
        self._agenda.at(self._agenda._now + max(0.0, wait_s), COMPLETION, lambda _: self._due(version))

    def _fill(self) -> None:
        """Raise all rates together; who meets a full link stays at its rate, the rest go on."""
        room = {(side, name): bw for name, bw in self._bandwidth.items() for side in (0, 1)}
        ports = {f: ((0, f.source), (1, f.target)) for f in self._flows}
        count: dict[tuple[int, str], int] = {}
        for f in self._flows:
            for port in ports[f]:
                count[port] = count.get(port, 0) + 1
        rising = dict.fromkeys(self._flows)
        level = 0.0
        while rising:
            step = min(room[port] / n for port, n in count.items() if n)
            level += step
            for port, n in count.items():
                room[port] -= step * n
            full = {port for port, n in count.items() if n and room[port] <= 1e-9 * self._bandwidth[port[1]]}
            for f in [f for f in rising if not full.isdisjoint(ports[f])]:
                f.rate = level
                del rising[f]
                for port in ports[f]:
                    count[port] -= 1

    def _due(self, version: int) -> None:
        if version != self._version:
            return
        self._settle()
        least = min(f.left / f.rate for f in self._flows)
        done = [f for f in self._flows if f.left <= DONE_BYTES or f.left / f.rate <= max(least, 1e-15)]
        self._flows = [f for f in self._flows if f not in done]
        self._share()
        for f in done:
            f.ended = True
            latency_s = max(self._latency_s[f.source], self._latency_s[f.target])
            if latency_s:
                self._agenda.at(self._agenda._now + latency_s, COMPLETION, lambda _, f=f: f.then())  # type: ignore[misc]
            else:
                f.then()


def bytes_after_overlap(nbytes: float, layers: int, bandwidth: float, prefill_s: float) -> float:
    """Bytes left to send when the prefill ends, if each layer's KV is sent as soon as it is computed: the last layer's at least."""
    check_number("layers", layers, lo=1, whole=True)
    return max(nbytes / layers, nbytes - bandwidth * prefill_s)


class KvMover:
    """Takes requests from prefill engines to decode engines. layers: of the model, for `layerwise` overlap of prefill and transfer; None:
    the transfer starts when the prefill has ended. on_lost(attempt, reason): its KV will never arrive; on_started(attempt): its room is there
    and its KV leaves; on_moved(attempt): it is all there. They are told the decode side's attempt."""

    __slots__ = ("_agenda", "_bytes_per_token", "_layers", "_moves", "_on_lost", "_on_moved", "_on_started", "links")

    def __init__(self, agenda: Agenda, links: Links, kv_bytes_per_token: float, on_lost: Callable[[Attempt, str], None],
                 layers: int | None = None, on_started: Callable[[Attempt], None] | None = None,
                 on_moved: Callable[[Attempt], None] | None = None) -> None:
        check_number("kv_bytes_per_token", kv_bytes_per_token, above=0.0)
        self._agenda, self.links, self._bytes_per_token, self._on_lost, self._layers = agenda, links, kv_bytes_per_token, on_lost, layers
        self._on_started, self._on_moved = on_started, on_moved
        self._moves: dict[tuple[str, int], _Move] = {}

    def move(self, a: Attempt, source: SimEngine, target: SimEngine) -> Refusal | None:
        """The prefill of `a` on `source` is complete: reserve blocks on `target`, transfer, then decode there as a new `Attempt` of the same
        id and dispatch. A refusal of the decode engine leaves nothing behind."""
        b = Attempt(a.id, a.dispatch, a.prompt, a.output, a.priority, a.blocks)
        b.started_s, b.first_token_s, b.generated = a.started_s, a.first_token_s, a.generated
        move = self._moves[a.id, a.dispatch] = _Move(a, b, source, target)
        refusal = target.reserve(b, lambda _: self._transfer(move))
        if refusal is not None:
            del self._moves[a.id, a.dispatch]
            source.release(a)
        return refusal

    def cancel(self, attempt_id: str, dispatch: int) -> Attempt | None:
        """Its client has left while its KV was on its way: both sides are free of it. None: it is not on its way."""
        move = self._moves.get((attempt_id, dispatch))
        if move is None:
            return None
        self._stop(move)
        return move.b

    def drop(self, replica: str, reason: str = "kv_lost") -> None:
        """A replica is gone: what was on its way from or to it is lost."""
        for move in [m for m in self._moves.values() if replica in (m.source.name, m.target.name)]:
            self._stop(move)
            self._on_lost(move.b, reason)
        self.links.drop(replica, reason)

    def _stop(self, move: _Move) -> None:
        del self._moves[move.a.id, move.a.dispatch]
        if move.flow is not None:
            self.links.cancel(move.flow)
        move.source.release(move.a)
        move.target.abandon(move.b)

    def _transfer(self, move: _Move) -> None:
        a, b, now = move.a, move.b, self._agenda._now
        b.kv_bytes = nbytes = (b.prompt - b.cached_tokens) * self._bytes_per_token
        b.cached_tokens, b.cached_blocks = a.cached_tokens, a.cached_blocks  # what the request was spared is the prefill side's
        if self._layers is not None and a.started_s is not None:
            rate = self.links.bandwidth(move.source.name, move.target.name)
            nbytes = bytes_after_overlap(nbytes, self._layers, rate, now - b.kv_wait_s - a.started_s)

        def there() -> None:
            if self._moves.pop((a.id, a.dispatch), None) is not move:
                return  # stopped in the latency behind its last byte
            b.kv_transfer_s = self._agenda._now - now
            move.source.release(a)
            move.target.submit_prefilled(b)
            if self._on_moved is not None:
                self._on_moved(b)

        move.flow = self.links.send(move.source.name, move.target.name, nbytes, there)
        if self._on_started is not None:
            self._on_started(b)


class _Move:
    """One request between two engines: `a` on the prefill side, `b` on the decode side."""

    __slots__ = ("a", "b", "flow", "source", "target")

    def __init__(self, a: Attempt, b: Attempt, source: SimEngine, target: SimEngine) -> None:
        self.a, self.b, self.source, self.target = a, b, source, target
        self.flow: Flow | None = None
