"""The benches beside other simulators: no ratio unless both did the same work; JSON that says where it was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "sims" / "bench"))

from engine import Beside
from measuring import report, side_by_side
from measuring.side_by_side import Peer, PeerUnavailable

OURS = {"requests": 2, "input_tokens": 30, "output_tokens": 9, "makespan_s": 1.0}
TELLS = """
import json, pathlib, sys
pathlib.Path(sys.argv[2]).write_text(json.dumps({"speed": {"cpu_s": 2.0}, "simulated": %s}))
"""


def beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> Beside:
    """A peer whose environment is this one and whose script is `code`."""
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "other.py").write_text(code)
    monkeypatch.setattr(side_by_side, "HERE", tmp_path)
    monkeypatch.setattr(side_by_side, "interpreter", lambda peer, folder: Path(sys.executable))
    return Beside(Peer("other 1", "other==1", "other.py", 0.5), tmp_path)


def test_SB_7_a_ratio_where_the_totals_are_equal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = beside(monkeypatch, tmp_path, TELLS % {**OURS, "makespan_s": 7.0})
    other.fly(OURS)
    assert other.row(us=40.0, n=10_000) == {"us_per_request": 200.0, "ratio": 0.2, "bar": 0.5, "repeats": 1}


@pytest.mark.parametrize("told", [{**OURS, "output_tokens": 8}, {**OURS, "requests": 1}, {"requests": 2, "input_tokens": 30}])
def test_SB_7_no_ratio_where_they_differ_or_are_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: dict[str, float],
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    other = beside(monkeypatch, tmp_path, TELLS % told)
    other.fly(OURS)
    assert set(other.row(us=40.0, n=10_000)) == {"refused"}
    assert "no ratio" in capsys.readouterr().out


def test_SB_7_a_peer_that_fails_is_named_and_not_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = beside(monkeypatch, tmp_path, "raise SystemExit('no such GPU')")
    other.fly(OURS)
    other.fly(OURS)
    assert other.row(us=40.0, n=10_000) == {"refused": "other 1 failed: no such GPU"}


@pytest.mark.slow  # an environment with pip is made
def test_SB_1_a_peer_that_cannot_be_installed_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PeerUnavailable, match=r"^windtunnel-has-no-such-peer==1 cannot be installed: .*windtunnel-has-no-such-peer"):
        side_by_side.interpreter(Peer("none", "windtunnel-has-no-such-peer==1", "none.py", 1.0), tmp_path)
    assert not (tmp_path / "windtunnel-has-no-such-peer-1" / "installed").exists()


def test_SB_7_json_says_versions_machine_and_load(tmp_path: Path) -> None:
    report.write(tmp_path / "a.json", {"us": 1.5}, {"requests": 3})
    told = json.loads((tmp_path / "a.json").read_text())
    assert (told["speed"], told["simulated"]) == ({"us": 1.5}, {"requests": 3})
    assert told["versions"]["windtunnel"] and told["machine"]["cores"] >= 1 and told["load_average"] >= 0
    report.write(None, {}, {})
