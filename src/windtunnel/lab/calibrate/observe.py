"""What was measured: steps, requests or whole load points of a real engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from windtunnel.errors import ConfigFileError, ConfigValueError, TraceFormatError
from windtunnel.policy.param import check_number
from windtunnel.sim.stepmodels.model import Batch


@dataclass(frozen=True, slots=True)
class StepObs:
    """One engine step: what was in it and how long it took (s)."""

    batch: Batch
    seconds: float

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, above=0.0)


@dataclass(frozen=True, slots=True)
class RequestObs:
    """One request: seconds from the start of the run; tokens; blocks: hashes of its prompt's prefix blocks, if known.

    scheduled_s None: the engine does not tell when it left the queue.
    """

    arrival_s: float
    input_tokens: int
    output_tokens: int
    first_s: float
    last_s: float
    scheduled_s: float | None = None
    blocks: tuple[int, ...] | None = None
    id: str = ""

    def __post_init__(self) -> None:
        check_number("arrival_s", self.arrival_s, lo=0.0)
        check_number("input_tokens", self.input_tokens, lo=1, whole=True)
        check_number("output_tokens", self.output_tokens, lo=1, whole=True)
        check_number("first_s", self.first_s, lo=self.arrival_s)
        check_number("last_s", self.last_s, lo=self.first_s)

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def e2e_s(self) -> float:
        return self.last_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for one token."""
        return (self.last_s - self.first_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


@dataclass(frozen=True, slots=True)
class PointObs:
    """One load point: `concurrency` clients in a closed loop, mean TTFT and TPOT (s).

    model, gpu: names of the catalogue; gpus: GPUs that serve it together, ep of them share the experts and dp split the requests;
    origin: who measured; id: unique.
    """

    id: str
    model: str
    gpu: str
    engine: str
    version: str
    dtype: str
    isl: int
    osl: int
    concurrency: int
    ttft_s: float
    tpot_s: float
    gpus: int = 1
    ep: int = 1
    dp: int = 1
    origin: str = ""

    def __post_init__(self) -> None:
        for name in ("isl", "osl", "concurrency", "gpus", "ep", "dp"):
            check_number(name, getattr(self, name), lo=1, whole=True)
        check_number("ttft_s", self.ttft_s, above=0.0)
        check_number("tpot_s", self.tpot_s, above=0.0)

    @property
    def group(self) -> str:
        """Everything that is alike in an engine's set-up."""
        return f"{self.system}|{self.version}|{self.gpus}.{self.ep}.{self.dp}"

    @property
    def system(self) -> str:
        """Model, GPU, engine and precision."""
        return f"{self.model}|{self.gpu}|{self.engine}|{self.dtype}"

    @property
    def throughput(self) -> float:
        """Output tokens per second of the closed loop."""
        return self.concurrency * self.osl / (self.ttft_s + (self.osl - 1) * self.tpot_s)


KINDS = ("steps", "requests", "points")


@dataclass(frozen=True, slots=True)
class Observations:
    """A profile may mix kinds; weights: of all observations of a kind together, by kind, 1 for each that is not named."""

    steps: Sequence[StepObs] = field(default_factory=tuple)
    requests: Sequence[RequestObs] = field(default_factory=tuple)
    points: Sequence[PointObs] = field(default_factory=tuple)
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, weight in self.weights.items():
            if kind not in KINDS:
                raise ConfigValueError("weights", f"expected some of {', '.join(KINDS)}, got {kind!r}")
            check_number(f"weights.{kind}", weight, above=0.0)

    def __len__(self) -> int:
        return len(self.steps) + len(self.requests) + len(self.points)

    def weight(self, kind: str) -> float:
        """Of one observation of a kind: the kind's weight, shared out evenly."""
        n = len(getattr(self, kind))
        return self.weights.get(kind, 1.0) / n if n else 0.0


RUN_COLUMNS = ("request_id", "input_toks", "output_toks", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")


def read_run(path: Path, blocks: Path | None = None) -> list[RequestObs]:
    """Requests of a measured run: a CSV of RUN_COLUMNS, times in seconds from the first queued request, in order of arrival.

    blocks: a Parquet file with `input_tokens` and `block16_ids` of the same requests in the same order. Raises TraceFormatError.
    """
    frame = _csv(path)
    missing = [c for c in RUN_COLUMNS if c not in frame]
    if missing:
        raise TraceFormatError(f"no column {', '.join(missing)}", where=str(path))
    hashes = None if blocks is None else _block_ids(blocks)
    order = frame.sort_values("queued_ts", kind="stable").index
    return [
        RequestObs(float(r.queued_ts), int(r.input_toks), int(r.output_toks), float(r.first_token_ts), float(r.last_token_ts),
                   float(r.scheduled_ts), None if hashes is None else hashes.get(i), str(r.request_id))
        for i, r in ((i, frame.loc[i]) for i in order)]


def _csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ConfigFileError(f"{path}: {error}") from None


def _block_ids(path: Path) -> dict[int, tuple[int, ...]]:
    frame = pd.read_parquet(path)
    return {i: tuple(int(x) for x in ids) for i, ids in enumerate(frame["block16_ids"])}


# Names of the published points -> names of the catalogue.
MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": "Llama-3.1-8B", "Qwen/Qwen3-235B-A22B-FP8": "Qwen3-235B-A22B", "nvidia/Qwen3-32B-NVFP4": "Qwen3-32B",
    "nvidia/DeepSeek-R1-NVFP4": "DeepSeek-R1", "nvidia/DeepSeek-V3.1-NVFP4": "DeepSeek-V3",
}


def read_points(path: Path) -> list[PointObs]:
    """The aggregated points of a CSV of silicon measurements (columns as in data/PROVENANCE.md). Raises ConfigFileError, TraceFormatError."""
    frame = _csv(path)
    missing = [c for c in ("id", "backend", "model_path", "system", "mode", "isl", "osl", "silicon_ttft_ms", "silicon_tpot_ms") if c not in frame]
    if missing:
        raise TraceFormatError(f"no column {', '.join(missing)}", where=str(path))
    frame = frame[frame["mode"] == "agg"]
    clients = frame["concurrency"].fillna(frame["batch_size"])
    return [_point(r, int(c)) for r, c in zip(frame.itertuples(), clients) if np.isfinite(c) and c >= 1]


def _point(r: object, concurrency: int) -> PointObs:
    def text(name: str, otherwise: str) -> str:
        value = getattr(r, name)
        return otherwise if pd.isna(value) else str(value)

    name = text("model_path", "")
    gpus, ep, dp = ranks(*(_rank(getattr(r, key)) for key in ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")))
    return PointObs(
        text("id", ""), MODELS.get(name, name.rpartition("/")[2]), text("system", ""), text("backend", ""), text("backend_version", "?"),
        text("precision", "bf16"), int(r.isl), int(r.osl), concurrency, r.silicon_ttft_ms / 1e3, r.silicon_tpot_ms / 1e3,  # type: ignore[attr-defined]
        gpus, ep, dp, text("origin", ""))


def _rank(value: float) -> int:
    return 1 if pd.isna(value) or value < 1 else int(value)


def ranks(tp: int, dp: int, moe_tp: int, moe_ep: int) -> tuple[int, int, int]:
    """(GPUs, expert ranks, attention ranks) from the published sizes, which sometimes are products: tp 64 with 8 × 8 experts is 8 GPUs."""
    if dp > 1 and tp == dp:
        gpus, ep = tp, min(moe_ep, tp)
    elif moe_tp == moe_ep > 1:
        gpus, ep, dp = moe_tp, moe_ep, moe_tp if dp > 1 else 1
    else:
        gpus, ep = max(tp, moe_tp * moe_ep), moe_ep
        dp = dp if dp > 1 else max(1, gpus // tp)
    return gpus, _divisor(gpus, ep), _divisor(gpus, dp)


def _divisor(of: int, at_most: int) -> int:
    return max(d for d in range(1, min(of, at_most) + 1) if of % d == 0)
