"""Clients that give up, leave and try again: pure, with ids of attempts, budget, and originals that count once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from windtunnel.effects import Close, Note, Reject, WakeAt
from windtunnel.errors import ConfigError, ConfigValueError
from windtunnel.events import Arrived, Cancelled, Finished, FirstToken, Request, Woke
from windtunnel.lab.scenario import Scenario
from windtunnel.policy.admission.denial import make_denial
from windtunnel.sources.backoff import BUDGET_CAP, Budget, Retry, backoff_s
from windtunnel.sources.clients import Clients
from windtunnel.sources.dist import Const
from windtunnel.sources.dist import Exponential as Exp
from windtunnel.sources.source import Loop

NOW = Retry(max_attempts=4, base_s=0.0, jitter="none", budget=None)


class Given:
    """A source of given requests, open loop; remembers what it is told."""

    needs: frozenset[str] = frozenset()

    def __init__(self, *times: float, loop: Loop = "open", deadline_in_s: float | None = None) -> None:
        self.name, self.loop, self.told = "given", loop, []  # type: ignore[var-annotated]
        self.left = [Request(f"r{i}", "t", "m", 0, at, 10, 5, deadline_s=None if deadline_in_s is None else at + deadline_in_s)
                     for i, at in enumerate(times)]

    def stream(self) -> Iterator[Request] | None:
        while self.left:
            yield self.left.pop(0)

    def start(self, now: float) -> Sequence[Any]:
        return ()

    def handle(self, what: Any, now: float) -> Sequence[Any]:
        self.told.append(what)
        return ()

    def done(self) -> bool:
        return not self.left


def arrivals(asks: Sequence[Any]) -> list[Request]:
    return [a.request for a in asks if isinstance(a, Arrived)]


def wake(clients: Clients, now: float) -> Sequence[Any]:
    return clients.handle(Woke("given/clients"), now)


def woken_at(asks: Sequence[Any]) -> float | None:
    return next((a.at for a in asks if isinstance(a, WakeAt)), None)


def closed(request_id: str, outcome: str = "provider_failure", retry_after_s: float | None = None) -> Close:
    return Close(request_id, "failed", outcome, "crash", retry_after_s)


def test_SU_1_without_rules_the_stream_arrives_at_its_times_and_ends() -> None:
    clients = Clients(Given(0.0, 0.0, 2.5))
    first = clients.start(0.0)
    assert [r.id for r in arrivals(first)] == ["r0", "r1"] and woken_at(first) == 2.5
    assert clients.stream() is None and not clients.done()
    assert [r.id for r in arrivals(wake(clients, 2.5))] == ["r2"]
    assert clients.done() and clients.loop == "mixed"
    assert clients.handle(Finished("r0", 1, "a", 5), 3.0) == []


def test_SU_1_an_empty_source_is_done_at_once() -> None:
    clients = Clients(Given(), timeout_s=1.0, retry=NOW)
    assert clients.start(0.0) == [] and clients.done()


def test_SU_2_timeout_cancels_and_tries_again_with_the_next_id() -> None:
    clients = Clients(Given(0.0), timeout_s=8.0, retry=NOW)
    assert woken_at(clients.start(0.0)) == 8.0
    asks = wake(clients, 8.0)
    assert asks[0] == Cancelled("r0", None, "client_timeout", "local_timeout")
    again = arrivals(asks)[0]
    assert (again.id, again.origin, again.attempt, again.arrived_s) == ("r0!2", "r0", 2, 8.0)
    assert woken_at(asks) == 16.0


def test_SU_2_timeouts_end_with_max_attempts_and_the_source_is_told_once_under_the_first_id() -> None:
    inner = Given(0.0)
    clients = Clients(inner, timeout_s=1.0, retry=replace(NOW, max_attempts=2))
    clients.start(0.0)
    wake(clients, 1.0)
    asks = wake(clients, 2.0)
    assert not arrivals(asks) and clients.retries == 1 and clients.done()
    assert inner.told == [Close("r0", "cancelled", "local_timeout", "client_timeout")]


def test_SU_2_without_cancel_the_client_only_stops_listening() -> None:
    clients = Clients(Given(0.0), timeout_s=1.0, cancel_on_timeout=False, retry=NOW)
    clients.start(0.0)
    asks = wake(clients, 1.0)
    assert isinstance(asks[0], Note) and asks[0].ids == ("r0",) and asks[0].kind == "client_gave_up"
    assert arrivals(asks)[0].id == "r0!2"
    assert clients.handle(Finished("r0", 1, "a", 5), 1.5) == []  # the zombie's answer: nobody listens
    assert clients.handle(closed("r0"), 1.6) == [] and clients.retries == 1


def test_SU_2_first_token_clock_and_patience_stop_at_the_first_token() -> None:
    for options, reason in (({"ttft_timeout_s": 2.0}, "client_ttft_timeout"), ({"patience": Const(2.0)}, "client_left")):
        clients = Clients(Given(0.0), **options)  # type: ignore[arg-type]
        assert clients.needs == {"first_token"} and woken_at(clients.start(0.0)) == 2.0
        clients.handle(FirstToken("r0", 1, "a"), 1.0)
        assert wake(clients, 2.0) == [], reason
        late = Clients(Given(0.0), **options)  # type: ignore[arg-type]
        late.start(0.0)
        assert [a.reason for a in wake(late, 2.0) if isinstance(a, Cancelled)] == [reason]


def test_SU_2_who_has_left_does_not_come_back() -> None:
    clients = Clients(Given(0.0), patience=Const(2.0), retry=NOW)
    clients.start(0.0)
    asks = wake(clients, 2.0)
    assert asks == [Cancelled("r0", None, "client_left", "local_cancelled")] and clients.done()
    waiting = Clients(Given(0.0), patience=Const(2.0), retry=replace(NOW, base_s=2.0))
    waiting.start(0.0)
    assert not arrivals(waiting.handle(closed("r0"), 0.5)) and waiting.done()  # the backoff would outlast its patience


def test_SU_2_idle_clock_counts_from_the_last_token_and_needs_progress() -> None:
    from windtunnel.events import Progressed

    clients = Clients(Given(0.0), idle_timeout_s=1.0)
    assert clients.needs == {"progress", "first_token"}
    clients.start(0.0)
    clients.handle(Progressed("a", (("r0", 3),)), 0.75)
    assert woken_at(wake(clients, 1.0)) == 1.75
    clients.handle(Progressed("a", (("r0", 3),)), 1.5)  # no new token
    assert [a.reason for a in wake(clients, 1.75) if isinstance(a, Cancelled)] == ["client_idle_timeout"]


def test_LG_30_retries_what_may_help_and_nothing_else() -> None:
    for what, again in ((closed("r0", "rate_limited"), True), (closed("r0", "provider_failure"), True),
                        (closed("r0", "provider_timeout"), True), (closed("r0", "local_cancelled"), False),
                        (closed("r0", "unexpected_exception"), False), (closed("r0", "local_timeout"), False),
                        (Reject("r0", make_denial("queue", "queue_full"), "rejected", "rate_limited"), True),
                        (Reject("r0", make_denial("queue", "deadline_passed"), "timed_out", "local_timeout"), False),
                        (Reject("r0", make_denial("queue", "cancellation"), "abandoned", "local_cancelled"), False)):
        clients = Clients(Given(0.0), retry=NOW)
        clients.start(0.0)
        assert bool(arrivals(clients.handle(what, 1.0))) is again, what


def test_LG_30_backoff_waits_and_retry_after_is_a_floor() -> None:
    clients = Clients(Given(0.0, 0.0, 0.0), retry=Retry(base_s=0.5, jitter="none"))
    clients.start(0.0)
    assert woken_at(clients.handle(closed("r0", "rate_limited", 3.0), 1.0)) == 4.0
    assert woken_at(clients.handle(closed("r1", "rate_limited", 0.1), 1.0)) == 1.5
    assert not clients.done()
    assert [r.id for r in arrivals(wake(clients, 4.0))] == ["r1!2", "r0!2"] and clients.done()
    deaf = Clients(Given(0.0), retry=Retry(base_s=0.5, jitter="none", honour_retry_after=False))
    deaf.start(0.0)
    assert woken_at(deaf.handle(closed("r0", "rate_limited", 60.0), 1.0)) == 1.5


def test_LG_30_no_retry_at_or_past_the_deadline() -> None:
    for deadline, again in ((1.5, False), (1.51, True)):
        clients = Clients(Given(0.0, deadline_in_s=deadline), retry=Retry(base_s=0.5, jitter="none"))
        clients.start(0.0)
        assert (woken_at(clients.handle(closed("r0"), 1.0)) == 1.5) is again


def test_LG_30_budget_a_tenth_of_first_attempts_and_ten_in_hand() -> None:
    budget = Budget(0.1)
    assert all(budget.take() for _ in range(int(BUDGET_CAP))) and not budget.take() and budget.denied == 1
    for _ in range(10):
        budget.earn()
    assert budget.take() and not budget.take()
    for _ in range(1000):
        budget.earn()
    assert budget.tokens == BUDGET_CAP
    assert all(Budget(None).take() for _ in range(1000)) and not Budget(0.0).tokens < BUDGET_CAP


def test_LG_30_an_empty_budget_is_counted_and_ends_the_original() -> None:
    inner = Given(*[0.0] * 20)
    clients = Clients(inner, retry=replace(NOW, budget=0.0))
    clients.start(0.0)
    sent = sum(len(arrivals(clients.handle(closed(f"r{i}"), 1.0))) for i in range(20))
    assert (sent, clients.budget.denied, len(inner.told)) == (10, 10, 10)


@pytest.mark.parametrize(("jitter", "lo", "hi", "mean"), [("none", 2.0, 2.0, 2.0), ("full", 0.0, 2.0, 1.0), ("equal", 1.0, 2.0, 1.5),
                                                          ("decorrelated", 0.5, 6.0, 3.25)])
def test_SU_4_jitter_forms(jitter: str, lo: float, hi: float, mean: float) -> None:
    rng = np.random.default_rng(1)
    draws = [backoff_s(Retry(base_s=0.5, jitter=jitter), 3, 2.0, rng) for _ in range(4000)]
    assert lo <= min(draws) and max(draws) <= hi and np.mean(draws) == pytest.approx(mean, rel=0.05)


def test_SU_4_waits_stay_below_the_longest_even_for_absurd_attempts() -> None:
    rng = np.random.default_rng(1)
    for jitter in ("none", "full", "equal", "decorrelated"):
        assert backoff_s(Retry(base_s=1.0, max_s=4.0, jitter=jitter), 5000, 1e9, rng) <= 4.0
    assert backoff_s(Retry(base_s=0.0, jitter="decorrelated"), 1, 0.0, rng) == 0.0


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"base_s": -1.0}, {"factor": 0.5}, {"max_s": float("nan")}, {"jitter": "some"},
                                   {"budget": -0.1}])
def test_bad_retry_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(wrong))):
        Retry(**wrong)
    with pytest.raises(ConfigValueError, match="timeout_s"):
        Clients(Given(), timeout_s=0.0)


def test_tell_deadline_gives_each_submission_its_own_but_never_a_later_one_than_the_request_has() -> None:
    clients = Clients(Given(0.0, deadline_in_s=10.0), timeout_s=4.0, tell_deadline=True, retry=NOW)
    assert arrivals(clients.start(0.0))[0].deadline_s == 4.0
    assert arrivals(wake(clients, 4.0))[0].deadline_s == 8.0
    assert arrivals(wake(clients, 8.0))[0].deadline_s == 10.0


def test_a_closed_inner_source_hears_of_its_own_ids_and_its_next_requests_are_clients_too() -> None:
    class Chain(Given):
        def handle(self, what: Any, now: float) -> Sequence[Any]:
            self.told.append(what)
            return [Arrived(Request("second", "t", "m", 0, now, 10, 5))] if len(self.told) == 1 else []

    inner = Chain(0.0, loop="closed")
    clients = Clients(inner, timeout_s=1.0, retry=NOW)
    clients.start(0.0)
    wake(clients, 1.0)
    made = clients.handle(Finished("r0!2", 1, "a", 5), 1.5)
    assert inner.told[0].request_id == "r0" and arrivals(made)[0].id == "second" and clients.loop == "closed"
    assert arrivals(wake(clients, 2.5))[0].id == "second!2"


# -- in a run ---------------------------------------------------------------------------------------------------------------------

TEXT = """
windtunnel: 1
name: giving-up
duration_s: 30
seed: 5
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 1, engine: {max_num_seqs: 16}}}}
source:
  kind: arrivals
  rate_rps: 14
  input_tokens: 300
  output_tokens: {kind: lognormal, mean: 200, cv: 0.5}
  clients: {timeout_s: 4, retry: {max_attempts: 3, budget: null, base_s: 0.1}}
control: {admission: {limit: {kind: fixed, limit: 16}}, queue: {kind: fifo}}
"""


def test_SU_3_originals_count_once_and_nobody_is_good_after_giving_up() -> None:
    sent = len(Scenario.load(TEXT).with_({"source.clients": None}).run().requests)
    for cancels in (True, False):
        run = Scenario.load(TEXT).with_({"source.clients.cancel_on_timeout": cancels}).run(check=True)
        rows = run.requests
        assert len(rows) == sent and rows.request_id.is_unique and not rows.request_id.str.contains("!").any()
        good = rows[rows.outcome == "success"]
        assert 0 < len(good) < sent and rows.attempts.max() == 3 and (rows.attempts >= 1).all()
        # a success answers the last submission within its timeout; its latency counts from the first arrival
        assert (good.ended_s - good.dispatched_s < 4.0 + 1e-9).all()
        assert (good.e2e_s.max() > 4.0) == cancels, "zombies leave no room for a retry that succeeds"
        assert set(rows.outcome) <= {"success", "local_timeout", "rate_limited"}


def test_SU_3_tokens_for_nobody_are_wasted_and_all_tokens_are_accounted_for() -> None:
    for cancels in (True, False):
        run = Scenario.load(TEXT).with_({"source.clients.cancel_on_timeout": cancels}).run()
        rows = run.requests
        useful = int(rows[rows.outcome == "success"].output_tokens.sum())
        made = int(run.replicas.output_tokens.sum())
        assert rows.wasted_tokens.sum() == made - useful > 0


def test_SU_4_clients_do_not_change_the_arrivals() -> None:
    base = Scenario.load(TEXT)
    first = {r.request_id: r.arrived_s for r in base.run().requests.itertuples()}
    other = base.with_({"source.clients.retry.jitter": "equal", "source.clients.patience": {"kind": "exp", "mean": 3.0}}).run().requests
    assert first == {r.request_id: r.arrived_s for r in other.itertuples()}
    assert isinstance(Exp(3.0).expected(), float)


def test_SU_1_clients_stand_in_the_mix_or_in_its_sources() -> None:
    part = {"kind": "arrivals", "rate_rps": 2, "input_tokens": 100, "output_tokens": 20}
    mix = {"kind": "mix", "sources": [{**part, "name": "a"}, {**part, "name": "b", "clients": {"timeout_s": 1e-6, "retry": {"budget": None}}}]}
    rows = Scenario.load(TEXT).with_({"source": mix}).run().requests
    mine = rows.request_id.str.startswith("a-")
    assert (rows[mine].outcome == "success").all() and (rows[~mine].outcome == "local_timeout").all() and (rows[~mine].attempts == 3).all()
    both = {**mix, "clients": {"timeout_s": 1.0}}
    with pytest.raises(ConfigError, match="both in the mix and in one of its sources"):
        Scenario.load(TEXT).with_({"source": both})
    whole = {"kind": "mix", "sources": [{**part, "name": "a"}, {**part, "name": "b"}], "clients": {"timeout_s": 1e-6}}
    assert (Scenario.load(TEXT).with_({"source": whole}).run().requests.outcome == "local_timeout").all()


@pytest.mark.parametrize(("changes", "says"), [
    ({"source.clients.timeout": 5}, r"source\.clients\.timeout: unknown key.*timeout_s"), ({"source.clients.timeout_s": 0}, "timeout_s"),
    ({"source.clients.retry.jitter": "ful"}, "jitter"), ({"source.clients": {"tell_deadline": True}}, "needs a timeout_s")])
def test_S_2_wrong_client_rules_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Scenario.load(TEXT).with_(changes)


def test_SU_2_idle_timeouts_hear_of_progress() -> None:
    rows = Scenario.load(TEXT).with_({"source.clients": {"idle_timeout_s": 5.0}, "source.rate_rps": 4}).run().requests
    assert (rows.outcome == "success").all(), "tokens keep coming"
    rows = Scenario.load(TEXT).with_({"source.clients": {"idle_timeout_s": 0.5}}).run().requests
    assert (rows.outcome == "success").all() and rows.ttft_s.max() > 1.0, "who waits for a first token waits for no gap to end"


@pytest.mark.parametrize(("idle_s", "network_s", "outcome"), [(0.02, 0.0, "success"), (0.02, 0.015, "success"), (0.004, 0.0, "local_timeout")])
def test_SU_2_idle_timeouts_shorter_than_reports_of_progress_judge_by_the_tokens(idle_s: float, network_s: float, outcome: str) -> None:
    """Tokens come every 10 ms; progress is told at most four times a second."""
    steady = {"source.rate_rps": 0.5, "source.pattern": "constant", "source.clients": {"idle_timeout_s": idle_s}, "duration_s": 5.0,
              "fleet.pools.chat.profile": {"kind": "affine", "c0": 0.01, "c1": 0, "c2": 0, "c3": 0}, "fleet.network_s": network_s}
    rows = Scenario.load(TEXT).with_(steady).run().requests
    assert len(rows) == 2 and set(rows.outcome) == {outcome}
    paused = Scenario.load(TEXT).with_({**steady, "faults": [{"kind": "pause", "at_s": 2.2, "for_s": 1.0}]}).run().requests
    assert paused.outcome[0] == "local_timeout" and paused.ended_s[0] < 2.2 + idle_s + 2 * network_s + 0.25, "a real gap is still one"


def test_SV_5_clients_are_deterministic_across_processes_and_hash_seeds() -> None:
    code = ("import hashlib, sys; from windtunnel.lab.scenario import Scenario;"
            "r = Scenario.load(sys.argv[1]).run().requests;"
            "print(hashlib.sha256(r.to_csv().encode()).hexdigest())")
    text = TEXT.replace("base_s: 0.1", "base_s: 0.1, jitter: decorrelated").replace("timeout_s: 4", "timeout_s: 4, cancel_on_timeout: false")
    outs = set()
    for hash_seed in ("0", "4711"):
        done = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path), "WINDTUNNEL_QUIET": "1"})
        outs.add(done.stdout)
    assert len(outs) == 1 and outs.pop().strip()
