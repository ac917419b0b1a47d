"""What may leave the process in each mode, and the caps."""

from __future__ import annotations

import pytest

from windtunnel.effects import Ask, Cancel, Close, Dispatch, Drain, Note, Reject, ScaleTo, WakeAt
from windtunnel.errors import ArmRefusedError, ConfigValueError
from windtunnel.events import Request
from windtunnel.live.arming import Check, FleetLock, check_consent, phrase_for, refuse_if_red
from windtunnel.live.gate import Caps, Gate, Usage, may

DISPATCH = Dispatch(Request("a", "t", "m", 0, 0.0), 1, "chat-0", "g0-1", "least_requests")
REJECT, CLOSE = Reject("a", None, "rejected", "rate_limited"), Close("a", "failed", "provider_failure", "crash")  # type: ignore[arg-type]
CANCEL, SCALE, DRAIN = Cancel("a", 1, "chat-0", "left"), ScaleTo(1, (("chat", 3),)), Drain("chat-0")
INSIDE = (WakeAt(1.0, "queue"), Ask(1, (), 2.0), Note("k", "scheduler"))
CAPS = Caps(max_in_flight=2, max_rps=3, max_replicas=4, max_usd_per_hour=10.0)


@pytest.mark.parametrize(("mode", "scaling", "dispatch", "cancel", "ends", "fleet"), [
    ("shadow", False, "shadow", "shadow", "shadow", "shadow"),
    ("dry_run", False, None, None, None, "dry_run"),
    ("dry_run", True, None, None, None, "dry_run"),
    ("armed", False, None, None, None, "no_scaling"),
    ("armed", True, None, None, None, None),
    ("stopped", True, "stopped", None, None, "stopped"),
])
def test_CD_1_what_leaves_by_mode(mode, scaling, dispatch, cancel, ends, fleet):
    usage = Usage({"chat": 2.0})
    ask = lambda e: may(e, mode, CAPS, usage, scaling=scaling)  # noqa: E731
    assert ask(DISPATCH) == dispatch
    assert ask(CANCEL) == cancel
    assert ask(REJECT) == ask(CLOSE) == ends
    assert ask(SCALE) == ask(DRAIN) == fleet
    assert [ask(e) for e in INSIDE] == [None, None, None]


def test_CD_1_armed_without_caps_sends_nothing():
    assert may(DISPATCH, "armed", None) == "no_caps"
    assert may(SCALE, "armed", Caps(1), Usage(), scaling=True) == "no_caps"


def test_CD_6_cap_on_in_flight_counts_until_ended():
    gate = Gate("armed", Caps(max_in_flight=2))
    assert gate.verdicts([DISPATCH, DISPATCH, DISPATCH, REJECT], 0.0) == (None, None, "cap_max_in_flight", None)
    gate.ended()
    assert gate.verdicts([DISPATCH], 0.1) is None
    assert gate.refused == {"cap_max_in_flight": 1}


def test_CD_6_cap_on_rate_holds_in_every_window_of_a_second():
    gate = Gate("armed", Caps(max_in_flight=100, max_rps=3))
    sent = []
    for i in range(60):
        now = i * 0.1
        if gate.verdicts([DISPATCH], now) is None:
            sent.append(now)
    assert max(sum(t <= s < t + 1.0 for s in sent) for t in sent) == 3
    assert len(sent) == 18


def test_CD_6_rates_below_one_a_second():
    gate = Gate("armed", Caps(max_in_flight=100, max_rps=0.5))
    allowed = [now for now in (0.0, 1.0, 1.9, 2.1, 3.0, 4.2) if gate.verdicts([DISPATCH], now) is None]
    assert allowed == [0.0, 2.1, 4.2]


def test_CD_6_caps_on_scaling_count_all_pools_and_never_take_unknown_prices_for_zero():
    usage = Usage({"chat": 3.0, "embed": None})
    scale = lambda **n: may(ScaleTo(1, tuple(n.items())), "armed", CAPS, usage, scaling=True)  # noqa: E731
    assert scale(chat=3) is None
    assert scale(chat=5) == "cap_max_replicas"
    assert scale(chat=4) == "cap_max_usd_per_hour"
    assert scale(embed=1) == "cap_max_usd_per_hour"
    usage.targets["chat"] = 3
    assert scale(embed=2) == "cap_max_replicas"


def test_CD_8_a_closed_gate_stays_closed():
    gate = Gate("armed", Caps(max_in_flight=9))
    gate.close()
    gate.mode = "armed"
    assert gate.state == "stopped"
    assert gate.verdicts([DISPATCH, CANCEL, CLOSE, SCALE], 1.0) == ("stopped", None, None, "stopped")


@pytest.mark.parametrize("bad", [{"max_in_flight": 0}, {"max_in_flight": 1.5}, {"max_in_flight": 1, "max_rps": 0},
                                 {"max_in_flight": 1, "max_usd_per_hour": float("nan")}, {"max_in_flight": 1, "max_replicas": -1}])
def test_CD_6_bad_caps_are_refused(bad):
    with pytest.raises(ConfigValueError):
        Caps(**bad)


def test_CD_4_phrase_and_caps():
    assert phrase_for("prod") == "ARM prod" and phrase_for("prod", scaling=True) == "ARM prod SCALING"
    assert check_consent("prod", "ARM prod", Caps(1)) == Caps(1)
    for phrase, caps, scaling, words in [
        (None, Caps(1), False, 'arming needs the phrase "ARM prod", got no phrase'), ("arm prod", Caps(1), False, "got 'arm prod'"),
        ("ARM prod", None, False, "arming needs caps"), ("ARM prod", Caps(1), True, "ARM prod SCALING"),
        ("ARM prod SCALING", Caps(1), True, "max_replicas"),
    ]:
        with pytest.raises(ArmRefusedError) as caught:
            check_consent("prod", phrase, caps, scaling=scaling)
        assert words in str(caught.value)


def test_CD_5_every_red_line_is_said():
    with pytest.raises(ArmRefusedError, match="chat-0 is down; chat-1 hangs"):
        refuse_if_red([Check("a", False, "chat-0 is down"), Check("b", True, "fine"), Check("c", False, "chat-1 hangs")])
    assert refuse_if_red([Check("b", True, "fine")]) is None


def test_CD_5_one_armed_world_per_fleet(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first, second = FleetLock("prod", "run-1"), FleetLock("prod", "run-2")
    first.take()
    first.take()
    with pytest.raises(ArmRefusedError, match="already armed by run 'run-1'"):
        second.take()
    FleetLock("other", "run-2").take()
    first.release()
    first.release()
    second.take()
    assert second.held and not first.held and second.note == ""
    second.release()


def test_CD_5_a_dead_holder_is_taken_over_with_a_note(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    lock = FleetLock("prod", "run-2")
    lock.path.parent.mkdir(parents=True)
    lock.path.write_text('{"pid": 4000000, "host": "elsewhere", "run": "run-1"}')
    lock.take()
    assert "run-1" in lock.note and "4000000" in lock.note
    lock.release()
