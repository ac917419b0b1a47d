"""What other simulators can read of us: a grid of step times, and traces as Mooncake JSONL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from windtunnel.cli import run_cli
from windtunnel.errors import ConfigValueError
from windtunnel.lab.timing_grid import timing_grid, write_timing_grid
from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.stepmodels.affine import Affine
from windtunnel.sim.stepmodels.model import Batch, StepModel
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.vidur import VidurRoofline
from windtunnel.sources.traces.open import open_trace

NAMES = ["prefill_isl", "prefill_ttft_ms", "decode_active_kv_tokens", "decode_context_length", "decode_itl"]
AFFINE = Affine(6e-3, 2.6e-5, 2e-5, 2.4e-8, 1e-10)
MODELS: dict[str, StepModel] = {"affine": AFFINE, "vidur": VidurRoofline(), "roofline": Roofline(model("Llama-3.1-8B"), gpu("h100_sxm"))}


def bilinear(grid: dict[str, Any], kv: float, context: float) -> float:
    """As the reader does between the points of a grid."""
    xs, ys, z = grid["decode_active_kv_tokens"], grid["decode_context_length"], grid["decode_itl"]
    i = int(np.clip(np.searchsorted(xs, kv) - 1, 0, len(xs) - 2))
    j = int(np.clip(np.searchsorted(ys, context) - 1, 0, len(ys) - 2))
    u, v = (kv - xs[i]) / (xs[i + 1] - xs[i]), (context - ys[j]) / (ys[j + 1] - ys[j])
    return float(z[i, j] * (1 - u) * (1 - v) + z[i + 1, j] * u * (1 - v) + z[i, j + 1] * (1 - u) * v + z[i + 1, j + 1] * u * v)


def test_SQ_22_values_on_the_points_are_the_models() -> None:
    grid = timing_grid(AFFINE, prompts=(1, 100, 512), kv_tokens=(100, 1000, 4000), contexts=(100, 400))
    assert list(grid) == NAMES and all(a.dtype == np.float64 for a in grid.values())
    assert [grid[name].shape for name in NAMES] == [(3,), (3,), (3,), (2,), (3, 2)]
    assert grid["prefill_ttft_ms"] == pytest.approx([1e3 * AFFINE.seconds(Batch(0, 0, [(n, 0)], n, 1, 1)) for n in (1, 100, 512)])
    # 1000 tokens by ten requests of 100; by two and a half of 400, between two and three; 100 tokens are one request at least
    requests, kv = np.array([[1, 1], [10, 2.5], [40, 10]]), np.array([[100], [1000], [4000]])
    assert grid["decode_itl"] == pytest.approx(1e3 * (6e-3 + 2e-5 * requests + 2.4e-8 * kv))


@pytest.mark.parametrize("name", MODELS)
def test_SQ_22_between_the_points_the_reader_comes_close(name: str) -> None:
    """A prompt within 3 %, a decode step within 3 % in the mean and 10 % at worst (kernels have edges, a grid has none)."""
    step, grid, rng = MODELS[name], timing_grid(MODELS[name]), np.random.default_rng(3)
    for n in rng.integers(64, 100_000, 40):
        exact = 1e3 * step.seconds(Batch(0, 0, [(int(n), 0)], int(n), 1, 1))
        assert np.interp(n, grid["prefill_isl"], grid["prefill_ttft_ms"]) == pytest.approx(exact, rel=0.03)
    errors = []
    for _ in range(200):
        requests, context = int(rng.integers(1, 200)), int(rng.integers(50, 20_000))
        exact = 1e3 * step.seconds(Batch(requests, requests * context, [], requests, requests, requests))
        errors.append(abs(bilinear(grid, requests * context, context) / exact - 1))
    assert np.mean(errors) < 0.03 and max(errors) < 0.10


def test_SQ_22_the_file_holds_the_grid_and_is_the_same_each_time(tmp_path: Path) -> None:
    axes: dict[str, Any] = {"prompts": (1, 10), "kv_tokens": (10, 20, 30), "contexts": (5, 10)}
    where = write_timing_grid(tmp_path / "new" / "grid", AFFINE, **axes)
    assert where.name == "grid"
    with np.load(where) as found:
        assert sorted(found.files) == sorted(NAMES)
        for name, values in timing_grid(AFFINE, **axes).items():
            assert found[name].dtype == np.float64 and (found[name] == values).all()
    assert where.read_bytes() == write_timing_grid(tmp_path / "again.npz", AFFINE, **axes).read_bytes()


@pytest.mark.parametrize("axes", [{"prompts": ()}, {"prompts": (5,)}, {"contexts": (5, 5)}, {"contexts": ()}, {"kv_tokens": (20, 10)},
                                  {"prompts": (0, 5)}, {"prompts": (-1, 5)}, {"contexts": (1.5, 2)}, {"kv_tokens": (1, float("nan"))}])
def test_SQ_22_axes_that_no_reader_takes_are_refused(axes: dict[str, Any]) -> None:
    with pytest.raises(ConfigValueError, match=next(iter(axes))):
        timing_grid(AFFINE, **axes)


def test_SQ_22_the_command_writes_the_grid_of_a_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["--json", "scenario", "timing", "azure-chat", str(tmp_path / "chat.npz")]) == 0
    said = json.loads(capsys.readouterr().out)["result"]
    with np.load(said["saved"]) as found:
        assert (found["decode_itl"] > 0).all() and found["decode_itl"].shape == (63, 53)
    assert "h100_sxm" in said["timing"]
    assert run_cli(["scenario", "timing", "azure-chat", str(tmp_path / "x.npz"), "--pool", "nope"]) == 2
    assert 'no pool "nope"' in capsys.readouterr().err and not (tmp_path / "x.npz").exists()
    assert run_cli(["scenario", "timing", "retry-storm", str(tmp_path / "x.npz")]) == 2
    assert "serves in seconds" in capsys.readouterr().err


def test_SQ_22_a_trace_goes_out_as_mooncake_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "t.csv"
    source.write_text("arrival_s,input_tokens,output_tokens\n0.5,100,7\n0.5,2000,0\n1.25,1,1\n")
    assert run_cli(["trace", "convert", str(source), str(tmp_path / "t.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    first = rows[0]["timestamp"]
    assert [(r["timestamp"] - first, r["input_length"], r["output_length"]) for r in rows] == [(0, 100, 7), (0, 2000, 0), (750, 1, 1)]
    assert "3 requests" in capsys.readouterr().out
    before, after = open_trace(source).table(), open_trace(tmp_path / "t.jsonl").table()
    for column in ("input_tokens", "output_tokens"):
        assert before[column].equals(after[column])
    assert run_cli(["trace", "convert", str(source), str(tmp_path / "t.xml")]) == 2
