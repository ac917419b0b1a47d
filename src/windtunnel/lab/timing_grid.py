"""Step times as a grid that another simulator interpolates: the NPZ file that the replay of ai-dynamo 1.4 reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number
from windtunnel.sim.stepmodels.model import Batch, StepModel

Floats = NDArray[np.float64]
PROMPTS = tuple(int(x) for x in np.unique(np.geomspace(1, 131_072, 69).round()))
CONTEXTS = tuple(int(x) for x in np.unique(np.geomspace(16, 131_072, 53).round()))
BATCHES = 256  # the largest batch of the default axis of KV tokens


def timing_grid(model: StepModel, *, prompts: Sequence[int] = PROMPTS, kv_tokens: Sequence[int] | None = None,
                contexts: Sequence[int] = CONTEXTS) -> dict[str, Floats]:
    """The model on a grid; all arrays are float64 and times are milliseconds.

    prefill_isl (P): prompt tokens of a step; prefill_ttft_ms (P): a step of one such prompt alone.
    decode_active_kv_tokens (K): tokens that all decodes of a step attend; decode_context_length (C): their mean; decode_itl (K, C): that step,
    of `K / C` requests (a request at least), linear between whole numbers of requests.
    kv_tokens None: 63 numbers from the shortest context to 256 requests of the longest, even in their logarithm. The reader is linear between
    the points, goes on with the last slope beyond them, and takes no decode step to be shorter than a millisecond.
    Raises ConfigValueError unless each axis is ascending, from 1 on, with two points at least.
    """
    if kv_tokens is None:
        kv_tokens = np.unique(np.geomspace(contexts[0], BATCHES * contexts[-1], 63).round()).astype(int).tolist() if contexts else ()
    for name, axis in (("prompts", prompts), ("contexts", contexts), ("kv_tokens", kv_tokens)):
        for value in axis:
            check_number(name, value, lo=1, whole=True)
        if len(axis) < 2 or list(axis) != sorted(set(axis)):
            raise ConfigValueError(name, "expected at least two ascending numbers")
    return {
        "prefill_isl": np.asarray(prompts, dtype="f8"),
        "prefill_ttft_ms": np.array([1e3 * model.seconds(Batch(0, 0, [(n, 0)], n, 1, 1)) for n in prompts]),
        "decode_active_kv_tokens": np.asarray(kv_tokens, dtype="f8"),
        "decode_context_length": np.asarray(contexts, dtype="f8"),
        "decode_itl": np.array([[1e3 * _decode_s(model, kv, context) for context in contexts] for kv in kv_tokens]),
    }


def _decode_s(model: StepModel, kv: int, context: int) -> float:
    """A decode step over kv tokens by kv / context requests."""
    requests = max(1.0, kv / context)
    below = int(requests)
    at = model.seconds(Batch(below, kv, [], below, below, below))
    if below == requests:
        return at
    above = model.seconds(Batch(below + 1, kv, [], below + 1, below + 1, below + 1))
    return at + (above - at) * (requests - below)


def write_timing_grid(path: str | Path, model: StepModel, *, prompts: Sequence[int] = PROMPTS, kv_tokens: Sequence[int] | None = None,
                      contexts: Sequence[int] = CONTEXTS) -> Path:
    """`timing_grid` as an NPZ file, exactly at `path`."""
    path = Path(path)
    grid = timing_grid(model, prompts=prompts, kv_tokens=kv_tokens, contexts=contexts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **grid)  # type: ignore[arg-type]
    return path
