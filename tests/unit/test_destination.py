"""Where results go is looked at before anything flies, and nothing is left behind by looking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from windtunnel import cli
from windtunnel.errors import ConfigFileError
from windtunnel.lab import world_simulated
from windtunnel.lab.destination import check_file, check_run

SMALL = """\
windtunnel: 1
name: small
duration_s: 4
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm}}}
source: {kind: arrivals, rate_rps: 4, input_tokens: 100, output_tokens: 10}
compare: {slow: {fleet.pools.chat.replicas: 2}}
"""


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SMALL, "utf-8")
    (tmp_path / "file").write_text("not a folder", "utf-8")
    return tmp_path


@pytest.fixture()
def grounded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Flights that began; none should."""
    begun: list[Any] = []
    monkeypatch.setattr(world_simulated.Flight, "advance", lambda *a, **k: begun.append(a) or pytest.fail("it flew"))
    return begun


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = cli.run_cli([str(w) for w in words])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["run", "small.yaml", "--out", "file/run"], ["run", "small.yaml", "--out", "file"], ["run", "small.yaml", "--report", "file/report.html"],
    ["run", "small.yaml", "--report", "."], ["compare", "small.yaml", "--out", "file"], ["compare", "small.yaml", "--report", "file/x.html"],
    ["sweep", "small.yaml", "-g", "source.rate_rps=2,3", "--csv", "file/table.csv"],
    ["sweep", "small.yaml", "-g", "source.rate_rps=2,3", "--jobs", "1", "--csv", "."],
    ["calibrate", "--engine", "openai", "--url", "http://127.0.0.1:9", "--out", "file/x.yaml"],
    ["run", "small.yaml", "--out", "/proc/windtunnel"], ["run", "small.yaml", "--report", "/proc/windtunnel.html"],
])
def test_a_place_that_cannot_be_written_is_told_before_the_flight(words: list[str], folder: Path, grounded: list[Any],
                                                                 capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = sorted(p.name for p in folder.iterdir())
    code, text = said(capsys, *words)
    assert (code, text.count("\n")) == (2, 1), text
    assert words[-1].split("/")[-1] in text or words[-1] == "."
    assert not grounded
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_directory_with_a_run_is_refused_before_the_flight(folder: Path, capsys: pytest.CaptureFixture[str],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert said(capsys, "run", "small.yaml", "--out", "kept")[0] == 0
    monkeypatch.setattr(world_simulated.Flight, "advance", lambda *a, **k: pytest.fail("it flew"))
    code, text = said(capsys, "run", "small.yaml", "--out", "kept")
    assert code == 2
    assert "kept holds a run" in text and "--overwrite" in text
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert said(capsys, "run", "small.yaml", "--out", "kept", "--overwrite")[0] == 0


def test_folders_that_do_not_exist_yet_are_made(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = ["sweep", "small.yaml", "-g", "source.rate_rps=2,3", "--jobs", "1", "--csv", "a/b/table.csv"]
    assert said(capsys, *words) == (0, "")
    assert (folder / "a/b/table.csv").read_text("utf-8").count("\n") == 3
    assert said(capsys, "run", "small.yaml", "--out", "c/d/run", "--report", "e/f.html")[0] == 0
    assert (folder / "c/d/run/manifest.json").is_file() and (folder / "e/f.html").is_file()


def test_looking_leaves_nothing_and_changes_nothing(tmp_path: Path) -> None:
    there = tmp_path / "there.csv"
    there.write_text("1,2\n", "utf-8")
    check_file(there)
    check_file(tmp_path / "new" / "file.csv")
    check_run(tmp_path / "runs" / "x", overwrite=False)
    (tmp_path / "empty").mkdir()
    check_run(tmp_path / "empty", overwrite=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "there.csv"]
    assert there.read_text("utf-8") == "1,2\n"


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years", "utf-8")
    for overwrite in (False, True):
        with pytest.raises(ConfigFileError, match="is not a saved run"):
            check_run(tmp_path / "mine", overwrite=overwrite)


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigFileError, match="no directory"):
        check_file(tmp_path / "gone" / "x.csv")


def test_compare_gives_every_side_a_folder_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "same.yaml").write_text(SMALL, "utf-8")
    code = cli.run_cli(["compare", "a/same.yaml", "b/same.yaml", "a/same.yaml", "--out", "out", "--json"])
    saved = json.loads(capsys.readouterr().out)["result"]["saved"]
    assert code == 0
    assert saved == {"a/same.yaml": "out/same.yaml", "b/same.yaml": "out/same.yaml-2", "a/same.yaml #2": "out/same.yaml--2"}
    assert said(capsys, "compare", "out/same.yaml", "out/same.yaml") == (0, "")


@pytest.mark.parametrize(("words", "text"), [
    (["small.yaml", "--replications", "0"], "--replications: expected a value >= 1, got 0"),
    (["alone.yaml"], "alone.yaml has nothing to be compared with"),
])
def test_a_comparison_that_means_nothing_does_not_fly(words: list[str], text: str, folder: Path, grounded: list[Any],
                                                      capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "alone.yaml").write_text(SMALL.rsplit("compare", 1)[0], "utf-8")
    code, err = said(capsys, "compare", *words)
    assert code == 2 and text in err
    assert not grounded
