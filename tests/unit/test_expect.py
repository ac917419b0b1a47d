"""What a scenario expects: bounds, windows, refusals with file and line, and the exit code of --check."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from windtunnel import cli
from windtunnel.errors import ConfigError
from windtunnel.lab.expect import ExpectSpec, check_expectations, expectation_table
from windtunnel.lab.scenario import Scenario

TEXT = """\
windtunnel: 1
name: expecting
duration_s: 20
seed: 5
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, engine: {max_num_seqs: 32}}}}
source: {kind: arrivals, rate_rps: 8, input_tokens: 200, output_tokens: 20, tenants: {a: 1, b: 2}}
slo: {ttft_s: 1.0}
expect:
  - {metric: good_fraction, op: ">=", value: 0.99}
  - {metric: "ttft_s.p99[tenant=a]", window: [5, 15], op: "<", value: 0.5}
compare:
  slow: {fleet.pools.chat.profile: {kind: affine, c0: 2.0, c1: 1e-4, c2: 1e-4, c3: 1e-7}}
  slow_as_expected:
    fleet.pools.chat.profile: {kind: affine, c0: 2.0, c1: 1e-4, c2: 1e-4, c3: 1e-7}
    expect: [{metric: good_fraction, op: "==", value: 0}]
"""


def of(op: str, value: float, tol: float = 0.0, **more: Any) -> ExpectSpec:
    return ExpectSpec(metric="goodput_rps", op=op, value=value, tol=tol, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("op", "value", "tol", "holds", "misses"), [
    (">=", 7.4, 0.0, (7.4, 9.0), (7.39,)), ("<=", 2.0, 0.1, (2.2, 0.0), (2.21,)), (">", 0.0, 0.0, (1e-9,), (0.0, -1.0)),
    ("<", 1.0, 0.0, (0.99,), (1.0,)), ("==", 10.0, 0.15, (8.5, 11.5), (8.49, 11.51)), ("==", 0.0, 0.5, (0.5, -0.5), (0.51,)),
    ("==", -4.0, 0.25, (-3.0, -5.0), (-2.9,))])
def test_SN_1_bounds(op: str, value: float, tol: float, holds: tuple[float, ...], misses: tuple[float, ...]) -> None:
    assert all(of(op, value, tol).holds(got) for got in holds)
    assert not any(of(op, value, tol).holds(got) for got in (*misses, math.nan, None))


def test_SN_1_a_window_becomes_a_filter() -> None:
    assert of("<", 1.0, window=(120.0, 300.0)).expression == "goodput_rps[t=120.0..300.0]"
    assert ExpectSpec(metric="ttft_s.p99[tenant=a]", op="<", value=1.0, window=(0.0, 1e-3)).expression == "ttft_s.p99[tenant=a,t=0.0..0.001]"
    assert of("==", 8.0, 0.1).text == "goodput_rps == 8 ± 0.1 × 8"


def test_SN_1_check_says_what_held() -> None:
    good = Scenario.load(TEXT)
    checked = check_expectations(good.run(), good.expect)
    assert [c.holds for c in checked] == [True, True] and checked[0].got == 1.0
    slow = good.variant("slow")
    missed = check_expectations(slow.run(), slow.expect)
    assert [c.holds for c in missed] == [False, False] and "MISSED" in expectation_table(missed)
    assert "got nothing" in expectation_table(check_expectations(good.run(), [ExpectSpec(metric="ttft_s.p50[tenant=nobody]", op="<", value=1)]))


def test_SN_1_expectations_do_not_change_the_digest() -> None:
    scenario = Scenario.load(TEXT)
    assert scenario.with_({"expect": []}).digest == scenario.digest


@pytest.mark.parametrize(("line", "says"), [
    ('{metric: goodput, op: ">=", value: 1}', r"yaml:9: expect\.0\.metric: .*unknown name"), ('{metric: ttft_s, op: ">=", value: 1}', "needs a stat"),
    ('{metric: good_fraction, op: "=>", value: 1}', r"expect\.0\.op"), ('{metric: good_fraction, op: ">="}', r"expect\.0\.value: missing"),
    ('{metric: good_fraction, op: ">=", value: 1, window: [5, 5]}', "is empty"),
    ('{metric: "good_fraction[t=0..5]", op: ">=", value: 1, window: [5, 6]}', "both in the metric and beside"),
    ('{metric: good_fraction, op: ">=", value: 1, tol: -1}', "tol"), ('{metric: good_fraction, op: ">=", value: .nan}', "expected a finite number")])
def test_SN_1_wrong_expectations_are_refused_when_the_file_is_read(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(TEXT.replace('{metric: good_fraction, op: ">=", value: 0.99}', line), "utf-8")
    with pytest.raises(ConfigError, match=says):
        Scenario.load(path)


def test_SN_1_run_check_exits_1_on_a_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(TEXT, "utf-8")
    for name, code in (("", 0), ("@slow", 1), ("@slow_as_expected", 0)):
        assert cli.run_cli(["run", f"{path}{name}", "--check", "--json"]) == code
        told = json.loads(capsys.readouterr().out)["result"]["expect"]
        assert all(c["holds"] for c in told) is (code == 0)
    assert cli.run_cli(["run", f"{path}@slow", "--check"]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_SN_1_a_check_of_nothing_is_no_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(TEXT.partition("expect:")[0], "utf-8")
    assert cli.run_cli(["run", str(path), "--check"]) == 2
    assert "expects nothing" in capsys.readouterr().err
