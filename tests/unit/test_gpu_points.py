"""Steps measured on a GPU become a step-time table; what was not used is predicted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from windtunnel import Scenario
from windtunnel.errors import ConfigError
from windtunnel.lab.calibrate.gpu_points import StepPoint, fit_steps, read_steps
from windtunnel.sim.stepmodels.table import Table

TRUTH = Table(((1, 0.004), (4, 0.0042), (16, 0.005)), 0.0, 2e-8, ((64, 0.002), (256, 0.004), (1024, 0.016)))
SCRIPT = Path(__file__).parents[2] / "sims" / "measure_gpu.py"


def true_steps() -> list[StepPoint]:
    kinds = [(n, 0, 0, 0) for n in (64, 256, 1024)] + [(192, 64, 0, 0), (768, 256, 0, 0), (256, 0, 4, 512)]
    kinds += [(0, 0, b, c) for b in (1, 4, 16) for c in (128, 512, 2048, 4096)]
    return [StepPoint(*k, TRUTH.seconds(StepPoint(*k, 1.0).composition)) for k in kinds]


def test_SC_1_steps_of_a_known_table_are_recovered_and_the_rest_predicted() -> None:
    made = fit_steps(true_steps(), {"gpu": "X", "model": "m"})
    assert made.table.kv_s_per_token == pytest.approx(2e-8, rel=1e-9)
    assert made.table.decode_s == tuple((b, pytest.approx(s, rel=1e-9)) for b, s in TRUTH.decode_s)
    assert set(made.errors["kind"]) == {"decode", "prefix", "mixed"} and set(made.errors.loc[made.errors.kind == "decode", "context"]) == {512}
    assert made.median_error_percent["decode"] == pytest.approx(0.0, abs=1e-6)
    assert made.median_error_percent["prefix"] == pytest.approx(0.0, abs=1e-6) and made.median_error_percent["mixed"] < 1
    assert (made.table.provenance.gpu, made.table.provenance.state) == ("X", "calibrated")


def test_SC_1_noise_that_turns_prompts_round_is_put_right() -> None:
    points = [p for p in true_steps() if p.kind != "prefill"] + [StepPoint(64, 0, 0, 0, 0.01), StepPoint(256, 0, 0, 0, 0.008)]
    seconds = [s for _, s in fit_steps(points, {}).table.prefill_s]
    assert seconds == sorted(seconds) and len(seconds) == 2


@pytest.mark.parametrize("left", [["decode"], ["prefill"], []])
def test_SC_1_without_a_decode_or_a_prompt_there_is_no_table(left: list[str]) -> None:
    with pytest.raises(ConfigError, match="at least one decode and one whole prompt"):
        fit_steps([p for p in true_steps() if p.kind in left], {})


@pytest.mark.parametrize(("text", "what"), [
    ("nonsense", "not a file of measure_gpu.py"), ('{"points": []}', "measured"),
    ('{"measured": {}, "points": [{"chunk": 1}]}', r"points\[0\]: KeyError: 'prefix'"),
    ('{"measured": {}, "points": [{"chunk": 0, "prefix": 0, "batch": 0, "context": 0, "step_s": 1}]}', "a chunk or a batch"),
    ('{"measured": {}, "points": [{"chunk": 1, "prefix": 0, "batch": 0, "context": 0, "step_s": NaN}]}', "seconds > 0"),
    ('{"measured": {}, "points": [{"chunk": 1, "prefix": -1, "batch": 0, "context": 0, "step_s": 1}]}', "tokens >= 0"),
])
def test_SC_1_files_that_make_no_sense_say_where(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "é.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=what):
        read_steps(path)


def test_SC_1_the_command_writes_a_profile_that_a_pool_can_name(tmp_path: Path) -> None:
    rows = [{"chunk": p.chunk, "prefix": p.prefix, "batch": p.batch, "context": p.context, "step_s": p.step_s} for p in true_steps()]
    (tmp_path / "points.json").write_text(json.dumps({"measured": {"gpu": "X", "date": "2026-01-01"}, "points": rows}), "utf-8")
    said = subprocess.run([sys.executable, str(SCRIPT), "fit", str(tmp_path / "points.json"), "--out", str(tmp_path / "x.yaml")],
                          capture_output=True, text=True, check=True).stdout
    assert "median absolute error: prefix 0.0 %" in said
    (tmp_path / "s.yaml").write_text(
        "windtunnel: 1\nname: measured\nduration_s: 20\n"
        "fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h200_sxm, profile: {kind: measured, path: x.yaml}}}}\n"
        "source: {kind: arrivals, rate_rps: 1, input_tokens: 256, output_tokens: 1, pattern: constant}\n", "utf-8")
    run = Scenario.load(tmp_path / "s.yaml").run()
    alone = run.requests.ttft_s.min()
    assert alone == pytest.approx(0.008, abs=0.0005)  # 4 ms of a prompt on top of the 4 ms of any step
