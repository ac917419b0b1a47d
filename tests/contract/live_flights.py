"""For tests: the least of a control, a source and a record, and live drivers of them."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from types import SimpleNamespace

import pytest

from windtunnel.effects import Cancel, Close, Dispatch, Reject, ScaleTo
from windtunnel.errors import PolicyError
from windtunnel.events import Arrived, Cancelled, Commanded, Failed, Finished, ReplicaGone, ReplicaReady, Request
from windtunnel.live import scraper
from windtunnel.live.driver import LiveDriver
from windtunnel.live.fake_server import FakeScript
from windtunnel.live.fleet import LiveFleet
from windtunnel.live.gate import Caps

QUICK = FakeScript(ttft_s=0.01, itl_s=0.002, slots=64)
SLOW = FakeScript(ttft_s=0.01, itl_s=0.05, slots=64)


class Tiny:
    """The least that a driver needs of a control: first come, first served, onto the emptiest replica, `per` at a time each."""

    def __init__(self, per: int = 8, needs: frozenset[str] = frozenset()) -> None:
        self.per, self.needs, self.raise_on, self.balanced = per, needs, (), True
        self.waiting: deque[Request] = deque()
        self.running: dict[str, tuple[str, int]] = {}
        self.replicas: dict[str, int] = {}
        self.stopped, self.threads = False, set()
        self.nows: list[float] = []

    def handle(self, event, now):
        self.threads.add(threading.get_ident())
        self.nows.append(now)
        out = []
        if type(event) in self.raise_on:
            raise ValueError("a broken policy")
        if isinstance(event, ReplicaReady):
            self.replicas[event.replica] = 0
        elif isinstance(event, ReplicaGone):
            self.replicas.pop(event.replica, None)
            for rid in [r for r, (name, _) in self.running.items() if name == event.replica]:
                del self.running[rid]
                out.append(Close(rid, "failed", "provider_failure", event.reason))
        elif isinstance(event, Arrived):
            if self.stopped:
                out.append(self._reject(event.request.id, "shutdown"))
            else:
                self.waiting.append(event.request)
        elif isinstance(event, (Finished, Failed)) and self.running.get(event.request_id, ("", 0))[1] == event.dispatch:
            self.replicas[self.running.pop(event.request_id)[0]] -= 1
            if isinstance(event, Failed):
                out.append(Close(event.request_id, "failed", event.outcome, event.reason))
        elif isinstance(event, Cancelled) and event.request_id in self.running:
            name, dispatch = self.running[event.request_id]
            out += [Cancel(event.request_id, dispatch, name, event.reason)]
        elif isinstance(event, Cancelled):
            gone = [r for r in self.waiting if r.id == event.request_id]
            self.waiting = deque(r for r in self.waiting if r.id != event.request_id)
            out += [self._reject(r.id, "cancellation") for r in gone]
        elif isinstance(event, Commanded):
            self.stopped = event.name == "stop" or self.stopped
            out += [self._reject(r.id, "stopped") for r in self.waiting]
            self.waiting.clear()
            out += [ScaleTo(1, (("chat", 3),))] if event.name == "scale" else []
        while self.waiting and self.replicas and min(self.replicas.values()) < self.per:
            name = min(self.replicas, key=self.replicas.get)
            request = self.waiting.popleft()
            self.replicas[name] += 1
            self.running[request.id] = (name, 1)
            out.append(Dispatch(request, 1, name, "lease", "least"))
        return out

    @staticmethod
    def _reject(rid, reason):
        return Reject(rid, SimpleNamespace(reason=reason), "rejected", "rate_limited")

    def check(self):
        if not self.balanced:
            raise PolicyError("the books do not balance")

    def view(self):
        return SimpleNamespace(lanes=(), waiting=len(self.waiting), running=len(self.running), at=time.monotonic())


class Listed:
    """An open-loop source that keeps what it is told."""

    loop, needs = "open", frozenset()

    def __init__(self, requests, name="listed", needs=frozenset()):
        self.requests, self.name, self.needs, self.told = list(requests), name, needs, []

    def stream(self):
        return iter(self.requests)

    def start(self, now):
        return ()

    def handle(self, what, now):
        self.told.append(what)
        return ()

    def done(self):
        return True

    def ends(self):
        return Counter(w.request_id for w in self.told if isinstance(w, (Finished, Reject, Close)))


class Door(Listed):
    """A source that never ends by itself: only a stop ends its run."""

    def done(self):
        return False


class Record:
    """Keeps every step; may be told to break."""

    def __init__(self):
        self.steps, self.errors, self.samples, self.rows, self.breaks_at = [], [], [], [], None

    def step(self, seq, now, event, effects, verdicts=None):
        if seq == self.breaks_at:
            raise OSError("disk full")
        self.steps.append((seq, now, event, tuple(effects), verdicts))

    def error(self, seq, now, event, error):
        self.errors.append((seq, event, error))

    def sample(self, now, name, key, value):
        self.samples.append((now, name, key, value))

    def replica_row(self, row, /):
        self.rows.append(row)

    def events(self, kind):
        return [e for _, _, e, _, _ in self.steps if isinstance(e, kind)]


def requests(n, *, every_s=0.0, out=4, first_s=0.0, prefix="r", **more):
    return [Request(f"{prefix}{i}", "t", "m", 0, first_s + i * every_s, input_tokens=16, max_tokens=out, **more) for i in range(n)]


def fleet_of(*engines, name="test", kind="openai"):
    return LiveFleet.of({"name": name, "pools": {"chat": {"engine": kind, "urls": [getattr(e, "url", e) for e in engines]}}})


def armed(control, source, *engines, record=None, caps=None, **more):
    fleet = fleet_of(*engines)
    return LiveDriver(control, source, fleet, record or Record(), mode="armed", phrase="ARM test", caps=caps or Caps(1000), **more)


def until(condition, timeout_s=30.0):
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def settled(count, for_s=0.3):
    """Does a count stay as it is for a while?"""
    before = count()
    time.sleep(for_s)
    return count() == before


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def quick_looks(monkeypatch):
    """Looks at engines at a tenth of their usual distance."""
    monkeypatch.setattr(scraper, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(scraper, "LOOK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(scraper, "SCRAPE_EVERY_S", 0.05)
