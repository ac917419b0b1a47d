"""Vidur 0.0.26 on a file of requests, its step times from the roofline of `windtunnel.sim.stepmodels.vidur`. Run in Vidur's own environment.

    python vidur_replay.py requests.csv out.json

Vidur would fetch measured tables over the network; it is handed tables made here instead, so what is timed is its event loop alone.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(WANDB_MODE="disabled", HF_HUB_OFFLINE="1")

FLOPS, BYTES, LAUNCH_MS = 989e12 * 0.60, 3.35e12 * 0.80, 0.002
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM = 4096, 14336, 32, 8, 128
LONGEST, BATCH = 4096, 128

Table = dict[tuple[int, ...], float]


def linear(n: int, k: int) -> Table:
    """ms of a matrix product of t tokens, by t."""
    return {(t,): max(2 * t * n * k / FLOPS, 2 * (n * k + t * (n + k)) / BYTES) * 1e3 + LAUNCH_MS for t in range(1, LONGEST + 1)}


def elementwise(width: int) -> Table:
    return {(t,): 4 * t * width / BYTES * 1e3 + LAUNCH_MS for t in range(1, LONGEST + 1)}


def prefill_ms(kv: int, chunk: int) -> float:
    flops_s = 4 * HEADS * HEAD_DIM * chunk * (kv + chunk / 2) / (0.8 * FLOPS)
    return max(flops_s, 4 * KV_HEADS * HEAD_DIM * (kv + chunk) / BYTES) * 1e3 + LAUNCH_MS


def decode_ms(batch: int, kv: int) -> float:
    return batch * kv * 4 * KV_HEADS * HEAD_DIM / BYTES * 1e3 + LAUNCH_MS


def tables(longest_chunk: int, grain: int) -> dict[str, Table]:
    """What Vidur looks up after training: operation → features → ms per layer."""
    lengths = range(0, LONGEST + 1, grain)
    norms = {name: elementwise(HIDDEN) for name in ("attn_rope", "input_layernorm", "post_attention_layernorm", "add")}
    return norms | {
        "attn_pre_proj": linear((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN), "attn_post_proj": linear(HIDDEN, HEADS * HEAD_DIM),
        "mlp_up_proj": linear(2 * FFN, HIDDEN), "mlp_down_proj": linear(HIDDEN, FFN), "mlp_act": elementwise(FFN),
        "attn_kv_cache_save": elementwise(2 * KV_HEADS * HEAD_DIM),
        "attn_prefill": {(kv, c): prefill_ms(kv, c) for kv in lengths for c in range(32, longest_chunk + 1, 32)},
        "attn_decode": {(b, kv): decode_ms(b, kv) for b in range(1, BATCH + 1) for kv in lengths},
    }


def simulator(requests: Path, folder: Path) -> Any:
    """A Vidur simulator, one replica, sarathi with chunks of 512 and 128 sequences; its own metrics are off."""
    from vidur import config as c
    from vidur.execution_time_predictor import sklearn_execution_time_predictor as predictor
    from vidur.simulator import Simulator
    from vidur.utils.random import set_seeds

    trace = folder / "trace.csv"
    with requests.open() as src, trace.open("w") as out:
        out.write("Date,Time,PromptTokenCount,CompletionTokenCount\n")
        out.writelines(f"d,{r['arrival_s']},{r['input_tokens']},{r['output_tokens']}\n" for r in csv.DictReader(src))
    times = c.RandomForrestExecutionTimePredictorConfig(
        prediction_max_tokens_per_request=LONGEST, prediction_max_batch_size=BATCH, use_native_execution_time_predictor=False,
        cache_dir=str(folder / "cache"))
    made = tables(times.prediction_max_prefill_chunk_size, times.kv_cache_prediction_granularity)
    predictor.SklearnExecutionTimePredictor._load_predictions_from_hf = lambda self: made
    config = c.SimulationConfig(
        cluster_config=c.ClusterConfig(
            num_replicas=1,
            replica_config=c.ReplicaConfig(model_name="meta-llama/Llama-3-8B", num_pipeline_stages=1, tensor_parallel_size=1, device="h100",
                                           network_device="h100_dgx"),
            replica_scheduler_config=c.SarathiSchedulerConfig(chunk_size=512, batch_size_cap=BATCH)),
        request_generator_config=c.TraceRequestGeneratorConfig(
            trace_file=str(trace), date="d", prefill_scale_factor=1, decode_scale_factor=1, time_scale_factor=1, max_tokens=LONGEST),
        execution_time_predictor_config=times,
        metrics_config=c.MetricsConfig(output_dir=str(folder / "out"), write_metrics=False, store_plots=False, enable_chrome_trace=False))
    set_seeds(config.seed)
    return Simulator(config)


def kept(cls: type, of: Callable[[Any], Any]) -> list[Any]:
    """A list that gets `of(object)` of every object of a class made from now on."""
    made: list[Any] = []
    init = cls.__init__  # type: ignore[misc]

    def remember(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        made.append(of(self))

    cls.__init__ = remember  # type: ignore[misc]
    return made


def main() -> None:
    requests, out = Path(sys.argv[1]), Path(sys.argv[2])
    from vidur.entities import Request

    logging.disable(logging.INFO)
    seen = kept(Request, lambda r: r)
    with tempfile.TemporaryDirectory() as folder:
        sim = simulator(requests, Path(folder))
        ended: list[float] = []
        sim._write_output = lambda: ended.append(time.process_time())
        start = time.process_time()
        sim.run()
    done = [r for r in seen if r._completed]
    out.write_text(json.dumps({
        "speed": {"cpu_s": ended[0] - start},
        "simulated": {"requests": len(done), "input_tokens": sum(r._num_prefill_tokens for r in done),
                      "output_tokens": sum(r._num_decode_tokens for r in done), "makespan_s": max(r._completed_at for r in done)}}))


if __name__ == "__main__":
    main()
