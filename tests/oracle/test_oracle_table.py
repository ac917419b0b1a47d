"""The printed table of oracles: every row is as it must be, naive ones included."""

from __future__ import annotations

import pytest

from windtunnel.lab.validation.check import NO_TARGET, Check, between, near
from windtunnel.lab.validation.oracles import __main__ as command
from windtunnel.lab.validation.oracles import gates, limits, queues, sharing
from windtunnel.lab.validation.oracles.batch_server import POOL, BatchServer, Running, Sent, peak
from windtunnel.lab.validation.oracles.table import ORACLES, Oracle, Row, measure, text, verdict
from windtunnel.policy.queueing.fifo import FifoQueue

IDS = {
    "OR-1": limits.EQUAL, "OR-2": limits.SAW, "OR-3": limits.PAUSE, "OR-4": limits.REST, "OR-5": limits.DRIFT, "OR-6": limits.LOSS,
    "OR-7": gates.RATE, "OR-8": gates.DELAY, "OR-9": sharing.TWO, "OR-9 weights": sharing.FOUR, "OR-9 unequal": sharing.UNEQUAL,
    "OR-10": sharing.LIGHT, "OR-11": gates.AGAIN, "OR-12": gates.SHARDS, "OR-13": queues.SIZES, "OR-14": queues.CLASSES,
}
NAIVE = {limits.EQUAL: 2, gates.RATE: 2, sharing.TWO: 1, sharing.UNEQUAL: 1, sharing.LIGHT: 1, queues.SIZES: 1, queues.CLASSES: 2}


def test_the_table_has_all_oracles() -> None:
    assert {o.title for o in ORACLES} == set(IDS.values()) and len(ORACLES) == len(IDS)


@pytest.mark.parametrize("name", IDS)
def test_OR_1_to_OR_14_pass_and_the_naive_fail(name: str) -> None:
    rows = measure(short=True, oracles=[o for o in ORACLES if o.title == IDS[name]])
    judged = [r for r in rows if r.check.judged]
    assert [(r.check.what, r.check.metric, r.check.expected, r.check.got) for r in judged if not r.right] == []
    assert sum(r.naive for r in judged) == NAIVE.get(IDS[name], 0)
    assert {r.check.section for r in rows} == {IDS[name]}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_OR_9_OR_10_OR_13_OR_14_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    assert "FAIL" not in capsys.readouterr().out


def checks(passed: bool) -> list[Check]:
    return [near("A", "one", "W", 1.0, 1.0 if passed else 2.0, 0.5, 1, "s")]


def good() -> list[Check]:
    return checks(True)


def bad() -> list[Check]:
    return checks(False)


@pytest.mark.parametrize(("jobs", "naive", "words", "code"), [
    ((good,), (bad,), "1 of 1 checks pass, 1 of 1 naive variants fail as they must", 0),
    ((bad,), (bad,), "0 of 1 checks pass, 1 of 1", 1), ((good,), (good,), "1 of 1 checks pass, 0 of 1", 1),
])
def test_the_command_says_by_its_exit_code_whether_all_is_as_it_must(
        jobs, naive, words: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    rows = measure(oracles=[Oracle("A", jobs, naive)])
    monkeypatch.setattr(command, "measure", lambda **_: rows)
    assert command.main(["--quick", "--processes", "1"]) == code
    said = capsys.readouterr().out
    assert words in said and "[naive] one" in said and "± 0.5" in said
    assert ("FAIL" in said) == (jobs == (bad,)) and ("PASSES" in said) == (naive == (good,))


def test_rows_without_a_target_are_not_judged() -> None:
    row = Row(Check("A", "w", "m", 1.0, 2.0, NO_TARGET, True, 1), naive=False)
    assert row.verdict == "–" and verdict([row]) == "0 of 0 checks pass, 0 of 0 naive variants fail as they must" and "–" in text([row])


def test_ranges() -> None:
    assert between("s", "w", "m", 1.0, 3.0, 3.0, 1).passed and not between("s", "w", "m", 1.0, 3.0, 3.1, 1).passed
    assert between("s", "w", "m", 1.0, float("inf"), 9.0, 1).tolerance == "≥ 1"
    assert not between("s", "w", "m", -float("inf"), 3.0, float("nan"), 1).passed
    assert near("s", "w", "m", 5, 5, 0.0, 1).tolerance == "exact" and not near("s", "w", "m", 5, float("nan"), 1.0, 1).passed


def test_what_running_requests_will_hold_at_most() -> None:
    def one(tokens_in: int, tokens_out: int, made: int) -> Running:
        return Running(Sent(0.0, "a", tokens_in, tokens_out), "x", made)

    assert peak([]) == 0 and peak([one(100, 50, 1)]) == 150
    assert peak([one(100, 50, 40), one(10, 100, 1)]) == 150 + 10 + 11, "the longer one has made 11 when the other ends"
    assert peak([one(256, 256, 1)] * 19) <= POOL < peak([one(256, 256, 1)] * 20)


def test_a_batch_server_serves_everybody_once() -> None:
    import random

    sends = [Sent(0.1 * n, "ab"[n % 2], 10 + n, 1 + n % 5) for n in range(50)]
    served = BatchServer(FifoQueue(), sends, random.Random(0)).serve()
    assert sum(len(v) for v in served.ttft_s.values()) == 50 and served.tokens == sum(s.tokens_in + s.tokens_out for s in sends)
    assert sum(served.service.values()) == sum(s.tokens_in + 2 * s.tokens_out for s in sends)
    assert min(t for v in served.ttft_s.values() for t in v) > 0.01
