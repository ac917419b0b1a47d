"""A live run that Prometheus may scrape, over a real socket."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from windtunnel import default_control
from windtunnel.cli import main
from windtunnel.errors import ConfigError
from windtunnel.lab.metrics_door import metrics_door

SCENARIO = """\
windtunnel: 1
name: scraped
duration_s: 4
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm}}}
source: {kind: arrivals, rate_rps: 20, input_tokens: 16, output_tokens: 4}
control:
  planner: {kind: pipeline, pools: {agg: {component: chat, capacity_rps: 5}}, throughput: {enabled: true, interval_s: 0.5}, load: {enabled: false}}
"""
FLEET = "name: scraped\npools:\n  chat: {engine: mock, model: Llama-3.1-8B, slots: 8, scaling: {kind: virtual}}\n"


def scraped(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=5) as reply:
        text = reply.read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_PL_801_a_live_run_is_scraped_while_it_flies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "s.yaml").write_text(SCENARIO, "utf-8")
    (tmp_path / "fleet.yaml").write_text(FLEET, "utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    seen: list[dict[str, float]] = []

    def scrape() -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end and not any(s.get("windtunnel_planner_ticks_total", 0) >= 2 for s in seen):
            time.sleep(0.05)
            try:
                seen.append(scraped(f"http://127.0.0.1:{port}/metrics"))
            except OSError:
                continue

    thread = threading.Thread(target=scrape)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        main(["drive", str(tmp_path / "s.yaml"), "--fleet", str(tmp_path / "fleet.yaml"), "--metrics", str(port)])
    thread.join()
    assert not ended.value.code, capsys.readouterr().err
    assert seen[-1]["windtunnel_planner_ticks_total"] >= 2 and seen[-1]["windtunnel_planner_observed_requests_per_second"] > 0
    with pytest.raises(OSError):
        scraped(f"http://127.0.0.1:{port}/metrics")


def test_PL_801_without_such_a_planner_there_is_one_sentence() -> None:
    control = default_control(["chat"])
    with pytest.raises(ConfigError, match="only a planner of kind pipeline has metrics"), metrics_door(control, "9100"):
        pass
    with pytest.raises(ConfigError, match="expected PORT or HOST:PORT"), metrics_door(control, "localhost:metrics"):
        pass
    with metrics_door(control, None) as url:
        assert url is None
