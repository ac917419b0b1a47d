"""The stop file: who runs, who is asked to stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from windtunnel.errors import ConfigFileError, ConfigValueError
from windtunnel.live.stopfile import StopFile, request_stop, running, state_home


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_CD_9_the_file_is_where_a_terminal_finds_it(tmp_path):
    stop = StopFile("run-7")
    stop.open()
    assert stop.path == tmp_path / "windtunnel" / "run-7" / "STOP"
    assert [r["run"] for r in running()] == ["run-7"] and running()[0]["pid"] == os.getpid()
    assert stop.asked() is None
    stop.path.touch()
    assert stop.asked() == "stop"
    stop.close()
    stop.close()
    assert running() == [] and not stop.dir.exists()


def test_CD_9_default_home(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    assert state_home() == Path.home() / ".local" / "state" / "windtunnel"


def test_CD_9_request_stop_by_name_and_for_all():
    a, b = StopFile("a"), StopFile("b")
    a.open()
    b.open()
    assert request_stop("a") == ["a"]
    assert (a.asked(), b.asked()) == ("stop", None)
    assert request_stop(cut=True) == ["a", "b"]
    assert (a.asked(), b.asked()) == ("cut", "cut")
    with pytest.raises(ConfigValueError, match="no live run named 'c'; running: a, b"):
        request_stop("c")
    a.close()
    b.close()
    assert request_stop() == []


def test_a_left_over_stop_does_not_end_the_next_run():
    stop = StopFile("a")
    stop.dir.mkdir(parents=True)
    stop.path.touch()
    (stop.dir / "run.json").write_text('{"pid": 4000000, "host": "' + os.uname().nodename + '", "run": "a"}')
    assert running() == []
    stop.open()
    assert stop.asked() is None


def test_one_name_one_run():
    StopFile("a").open()
    with pytest.raises(ConfigValueError, match="already driven by process"):
        StopFile("a").open()


@pytest.mark.parametrize("bad", ["", "../x", "a/b", ".hidden", "x" * 200, "ä"])
def test_names_are_folder_names(bad):
    with pytest.raises(ConfigValueError):
        StopFile(bad)


def test_a_state_home_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigFileError, match="cannot write the run's state"):
        StopFile("a").open()
