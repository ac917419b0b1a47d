"""Links shared fairly, and requests that are prefilled here and decoded there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.errors import ConfigValueError
from windtunnel.sim.agenda import ARRIVAL, Agenda
from windtunnel.sim.engine import Attempt, EngineConfig, SimEngine
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.transfer import KvMover, Links, bytes_after_overlap

LLAMA_8B = 131_072  # KV bytes per token
MODEL = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8)


def flows(bandwidths: dict[str, float], sends: list[tuple[float, str, str, float]], latency_s: float = 0.0) -> list[float]:
    """When each of (at s, from, to, bytes) has arrived."""
    agenda = Agenda()
    links, ends = Links(agenda), [-1.0] * len(sends)
    for name, bandwidth in bandwidths.items():
        links.attach(name, bandwidth, latency_s)
    for i, (at_s, source, target, nbytes) in enumerate(sends):
        agenda.at(at_s, ARRIVAL, lambda _, i=i, s=source, t=target, n=nbytes: links.send(s, t, n, lambda: ends.__setitem__(i, agenda.now)))
    agenda.run()
    return ends


def test_SP_2_worked_one_flow_and_two_into_one_replica() -> None:
    bandwidths = {"p0": 50e9, "p1": 50e9, "d": 50e9}
    one = flows(bandwidths, [(0.0, "p0", "d", 4096 * LLAMA_8B)])
    two = flows(bandwidths, [(0.0, "p0", "d", 4096 * LLAMA_8B), (0.0, "p1", "d", 4096 * LLAMA_8B)])
    assert one == pytest.approx([0.010737418], abs=1e-9)
    assert two == pytest.approx([0.021474836] * 2, abs=1e-9)


def test_SP_2_max_min_gives_the_rest_of_a_full_link_to_the_others() -> None:
    # a→x and a→y share a's 10; b→y gets what a→y leaves of y's 30
    ends = flows({"a": 10.0, "b": 100.0, "x": 100.0, "y": 30.0}, [(0.0, "a", "x", 50.0), (0.0, "a", "y", 50.0), (0.0, "b", "y", 250.0)])
    assert ends == pytest.approx([10.0, 10.0, 10.0])


def test_SP_2_rates_change_when_a_flow_starts_or_ends() -> None:
    # alone for 1 s (10 bytes), shared until the second has its 20 (at 5 s), alone again
    ends = flows({"a": 10.0, "b": 10.0, "d": 10.0}, [(0.0, "a", "d", 60.0), (1.0, "b", "d", 20.0)], latency_s=0.5)
    assert ends == pytest.approx([8.5, 5.5])


def test_SP_2_nothing_to_move_arrives_at_once() -> None:
    assert flows({"a": 1.0, "b": 1.0}, [(2.0, "a", "b", 0.0)]) == [2.0]


@pytest.mark.parametrize("nbytes", [-1.0, float("nan"), float("inf")])
def test_a_flow_of_bytes_that_cannot_be_is_refused(nbytes: float) -> None:
    links = Links(Agenda())
    links.attach("a", 1.0)
    with pytest.raises(ConfigValueError):
        links.send("a", "a", nbytes, lambda: None)
    with pytest.raises(ConfigValueError, match="has no link"):
        links.send("a", "b", 1.0, lambda: None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.sampled_from("abc"), st.sampled_from("xyz"), st.floats(1.0, 100.0)), min_size=1, max_size=8),
       st.lists(st.floats(1.0, 50.0), min_size=6, max_size=6))
def test_SP_2_every_flow_ends_and_no_link_carries_more_than_it_can(sends: list[Any], bandwidths: list[float]) -> None:
    by_name = dict(zip("abcxyz", bandwidths))
    ends = flows(by_name, sends)
    for name, bandwidth in by_name.items():
        mine = [(at, end, n) for (at, s, t, n), end in zip(sends, ends) if name in (s, t)]
        if mine:
            assert sum(n for _, _, n in mine) <= bandwidth * (max(e for _, e, _ in mine) - min(a for a, _, _ in mine)) * (1 + 1e-9) + 1e-6
    assert all(end >= at + n / min(by_name[s], by_name[t]) - 1e-9 for (at, s, t, n), end in zip(sends, ends))


def test_SP_2_layerwise_leaves_the_last_layer_or_what_the_link_was_too_slow_for() -> None:
    assert bytes_after_overlap(320.0, 32, 100.0, 10.0) == 10.0
    assert bytes_after_overlap(320.0, 32, 10.0, 2.0) == 300.0


# -- a pair ------------------------------------------------------------------------------------------------------------------------


class Pair:
    """One prefill and one decode engine."""

    def __init__(self, prefill: dict[str, Any] | None = None, decode: dict[str, Any] | None = None, bandwidth: float = 50e9,
                 **mover: Any) -> None:
        self.agenda, self.seen, self.lost = Agenda(), [], []
        self.links = Links(self.agenda)
        self.mover = KvMover(self.agenda, self.links, LLAMA_8B, lambda a, reason: self.lost.append((a.id, reason)), **mover)
        self.refused: list[Any] = []
        self.done: dict[str, Attempt] = {}
        self.p = self.engine("p", EngineConfig(role="prefill", **(prefill or {})), lambda a: self.refused.append(self.mover.move(a, self.p, self.d)))
        self.d = self.engine("d", EngineConfig(role="decode", **(decode or {})), None)
        for name in "pd":
            self.links.attach(name, bandwidth)

    def engine(self, name: str, config: EngineConfig, on_prefilled: Any) -> SimEngine:
        def finished(a: Attempt) -> None:
            self.done[a.id] = a
            self.seen.append(("finish", a.id, name, self.agenda.now))

        return SimEngine(name, config, MODEL, self.agenda, on_finish=finished, on_cancelled=lambda a: self.seen.append(("cancel", a.id, name)),
                         on_first=lambda a: self.seen.append(("first", a.id, name, self.agenda.now)), on_prefilled=on_prefilled, check=True,
                         pieces=True)

    def send(self, id: str, prompt: int, output: int, at_s: float = 0.0) -> None:
        self.agenda.at(at_s, ARRIVAL, lambda _: self.p.submit(Attempt(id, 1, prompt, output)))

    def run(self) -> Pair:
        self.agenda.run()
        assert self.p.idle and self.d.idle
        assert self.p.kv.used(self.p.D) == self.d.kv.used(self.d.D) == 0
        return self


def test_SP_1_token_1_from_the_prefill_side_the_rest_after_the_transfer() -> None:
    pair = Pair(prefill={"max_num_batched_tokens": 8192})
    pair.send("a", 4096, 3)
    a = pair.run().done["a"]
    first = 6e-3 + 2.6e-5 * 4096 + 2e-5
    assert a.first_token_s == pytest.approx(first, abs=1e-12)
    assert (a.kv_bytes, a.kv_wait_s) == (4096 * LLAMA_8B, 0.0)
    assert a.kv_transfer_s == pytest.approx(0.010737418, abs=1e-9)
    joined = first + 4096 * LLAMA_8B / 50e9
    assert a.finished_s == pytest.approx(joined + 2 * (6e-3 + 2e-5) + 2.4e-8 * (4097 + 4098), abs=1e-9)
    assert a.generated == 3
    assert [x[:3] for x in pair.seen] == [("first", "a", "p"), ("finish", "a", "d")]
    assert pair.d.pieces is not None  # the gap across the hand-over is one of the two
    gaps = sorted(pair.d.pieces.gaps()[0].tolist())
    assert gaps == pytest.approx([6e-3 + 2e-5 + 2.4e-8 * 4098, joined - first + 6e-3 + 2e-5 + 2.4e-8 * 4097], abs=1e-9)


def test_SP_1_one_token_never_leaves_the_prefill_side() -> None:
    pair = Pair()
    pair.send("a", 100, 1)
    pair.send("none", 100, 0)
    pair.run()
    assert [x[:3] for x in pair.seen if x[0] == "finish"] == [("finish", "a", "p"), ("finish", "none", "p")]
    assert pair.refused == []


def test_SP_1_the_decode_side_may_yield_token_1() -> None:
    pair = Pair(prefill={"first_token": "decode"}, decode={"first_token": "decode"})
    pair.send("a", 100, 3)
    pair.send("tiny", 1, 2, at_s=1.0)
    pair.run()
    assert [x[:3] for x in pair.seen] == [("first", "a", "d"), ("finish", "a", "d"), ("first", "tiny", "d"), ("finish", "tiny", "d")]
    prefilled = 6e-3 + 2.6e-5 * 100 + 2e-5
    assert pair.done["a"].first_token_s == pytest.approx(prefilled + 100 * LLAMA_8B / 50e9 + 6e-3 + 2.6e-5 + 2e-5, abs=1e-9)
    assert [pair.done[i].generated for i in ("a", "tiny")] == [3, 2]


def test_SP_1_blocks_are_reserved_first_and_in_order() -> None:
    pair = Pair(decode={"num_blocks": 10})
    for i, output in enumerate((30, 20, 10)):
        pair.send(f"q{i}", 90, output)  # 6 blocks of the prompt: one at a time, until its end frees the rest
    pair.run()
    a, b, c = (pair.done[f"q{i}"] for i in range(3))
    assert a.kv_wait_s == 0.0
    assert a.finished_s < b.finished_s < c.finished_s
    assert b.kv_wait_s == pytest.approx(a.finished_s - b.first_token_s, abs=1e-12)
    assert c.kv_wait_s == pytest.approx(b.finished_s - c.first_token_s, abs=1e-12)


def test_SP_1_the_prefill_side_holds_its_blocks_until_the_transfer_has_ended() -> None:
    pair = Pair(prefill={"num_blocks": 10}, bandwidth=90 * LLAMA_8B)  # one second for 90 tokens
    pair.send("a", 90, 5)
    pair.send("b", 90, 5)
    pair.run()
    a, b = pair.done["a"], pair.done["b"]
    assert b.started_s == pytest.approx(a.first_token_s + 1.0, abs=1e-9)


def test_SP_1_what_the_decode_side_has_cached_does_not_move() -> None:
    pair = Pair()
    hashes = tuple(range(10))
    for at_s, id in ((0.0, "a"), (1.0, "b")):
        pair.agenda.at(at_s, ARRIVAL, lambda _, id=id: pair.p.submit(Attempt(id, 1, 165, 4, 0, hashes)))
    pair.run()
    assert [pair.done[i].kv_bytes / LLAMA_8B for i in ("a", "b")] == [165, 5]


def test_SP_3_too_large_for_the_decode_pool_is_refused_and_leaves_nothing() -> None:
    pair = Pair(decode={"num_blocks": 4})
    pair.send("a", 90, 5)
    pair.run()
    assert [(r.status, r.reason) for r in pair.refused] == [(400, "kv_capacity_exceeded")]


@pytest.mark.parametrize("gone", ["p", "d"])
def test_SP_3_the_loss_of_either_side_loses_what_was_on_its_way(gone: str) -> None:
    pair = Pair(bandwidth=90 * LLAMA_8B)
    pair.send("a", 90, 5)

    def drop(_: object) -> None:
        pair.mover.drop(gone)
        getattr(pair, gone).drop_all("crash")

    pair.agenda.at(0.5, ARRIVAL, drop)
    pair.run()
    assert pair.lost == [("a", "kv_lost")]
    assert not pair.done


def test_SP_3_a_client_that_leaves_while_its_kv_waits_or_moves() -> None:
    pair = Pair(decode={"num_blocks": 10}, bandwidth=90 * LLAMA_8B)
    pair.send("moves", 90, 5)
    pair.send("waits", 90, 5)
    left: list[Any] = []
    pair.agenda.at(0.5, ARRIVAL, lambda _: left.extend(pair.mover.cancel(i, 1) for i in ("waits", "moves", "nobody")))
    pair.run()
    assert [a and a.id for a in left] == ["waits", "moves", None]
    assert not pair.done and not pair.lost


@settings(max_examples=60, deadline=None)
@given(jobs=st.lists(st.tuples(st.floats(0.0, 0.4), st.integers(1, 150), st.integers(0, 40)), min_size=1, max_size=12),
       blocks=st.integers(12, 40), first=st.sampled_from(["prefill", "decode"]), bandwidth=st.sampled_from([2e8, 5e10]))
def test_SF_12_a_pair_in_small_pools_always_ends(jobs: list[Any], blocks: int, first: str, bandwidth: float) -> None:
    def fly(step_every: bool) -> list[Any]:
        pair = Pair({"num_blocks": blocks, "first_token": first}, {"num_blocks": blocks, "first_token": first, "max_num_seqs": 4}, bandwidth)
        for engine in (pair.p, pair.d):
            engine._step_every = step_every
        for i, (at_s, prompt, output) in enumerate(jobs):
            pair.send(f"q{i}", prompt, output, at_s)
        pair.run()
        ends = {id: (a.generated, round(a.finished_s or 0.0, 7), round(a.first_token_s or 0.0, 7), a.preemptions) for id, a in pair.done.items()}
        return [ends, pair.d.steps, pair.p.steps, pair.d.preemptions]

    fast = fly(False)
    assert fast == fly(True)
    assert all(fast[0][id][0] == jobs[int(id[1:])][2] for id in fast[0])


def test_SE_15_who_waits_for_room_is_in_line_on_the_decode_side() -> None:
    pair = Pair(decode={"num_blocks": 10})
    for i in range(3):
        pair.send(f"q{i}", 90, 30)
    seen: list[Any] = []
    pair.agenda.at(0.05, ARRIVAL, lambda _: seen.append((pair.d.waiting, pair.d.state_at(0.05).waiting, pair.d.queued())))
    pair.run()
    assert seen == [(2, 2, (0, 180))]


def test_SE_9_a_reservation_does_not_stay_in_the_token_queue() -> None:
    pair = Pair(decode={"max_queued_tokens": 100})
    for i in range(3):
        pair.send(f"q{i}", 90, 30, at_s=0.5 * i)
    pair.run()
    assert pair.refused == [None] * 3 and len(pair.done) == 3
    assert pair.d._waiting_tokens == 0
