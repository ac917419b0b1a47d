"""Time single engine steps of a decoder with random weights on a GPU, in the shape of Llama 3.1 8B; then fit a step-time table.

Needs nothing but PyTorch where the GPU is, and windtunnel where the fit is:

    python sims/measure_gpu.py measure --out h200.json                  # some minutes on one GPU
    python sims/measure_gpu.py measure --device cpu --small --out -     # seconds, to see that it runs
    python sims/measure_gpu.py fit h200.json --out h200.yaml            # prints the errors on steps that were held back

Times do not depend on the values of weights, only on shapes. Decodes are replayed as CUDA graphs, as engines do; prompts are not.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

LLAMA_8B = {"layers": 32, "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "vocabulary": 128256}
SMALL = {"layers": 2, "hidden": 256, "ffn": 768, "heads": 8, "kv_heads": 4, "vocabulary": 2048}
Step = tuple[int, int, int, int]  # chunk, prefix, batch, context


def steps(small: bool) -> list[Step]:
    """What is measured, in an order that covers the space early."""
    if small:
        prompts, prefixes, batches, contexts, chunks, most = (16, 64, 128), (0, 64), (1, 2, 4), (32, 64, 128), (32,), 1024
    else:
        prompts, prefixes = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192), (0, 1024, 4096)
        batches, contexts, chunks, most = (1, 2, 4, 8, 16, 32, 64, 128, 256), (128, 512, 1024, 2048, 4096, 8192), (256, 1024), 600_000
    wanted: list[Step] = [(n, p, 0, 0) for n in prompts for p in prefixes]
    wanted += [(0, 0, b, c) for b in batches for c in contexts if b * c <= most]
    wanted += [(n, 0, b, c) for n in chunks for b in batches[2::2] for c in contexts[1:4:2] if b * c <= most]
    random.Random(5).shuffle(wanted)
    return wanted


class Decoder:
    """Grouped-query attention, rotary positions, gated feed-forward; bfloat16."""

    def __init__(self, shape: dict[str, int], device: str) -> None:
        import torch

        self.torch, self.device, self.shape = torch, torch.device(device), shape
        self.head_dim = shape["hidden"] // shape["heads"]
        torch.manual_seed(1)
        hidden, ffn, kv = shape["hidden"], shape["ffn"], shape["kv_heads"] * self.head_dim
        self.embedding, self.head = self._weights(shape["vocabulary"], hidden), self._weights(hidden, shape["vocabulary"])
        self.blocks = [{"qkv": self._weights(hidden, hidden + 2 * kv), "out": self._weights(hidden, hidden),
                        "up": self._weights(hidden, 2 * ffn), "down": self._weights(ffn, hidden)} for _ in range(shape["layers"])]
        self.gain = torch.ones(hidden, device=self.device, dtype=torch.bfloat16)
        half = torch.arange(0, self.head_dim, 2, device=self.device)
        self.frequencies = 500_000.0 ** (-half / self.head_dim)

    def _weights(self, *size: int) -> Any:
        return self.torch.empty(*size, device=self.device, dtype=self.torch.bfloat16).normal_(0.0, 0.02)

    def cache(self, *size: int) -> Any:
        """Keys and values of all layers: (layers, 2, *size, head_dim)."""
        return self._weights(self.shape["layers"], 2, *size, self.head_dim)

    def _turn(self, x: Any, positions: Any) -> Any:
        angle = (positions[:, None] * self.frequencies)[:, None, :]
        a, b = x.float().chunk(2, dim=-1)
        return self.torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), dim=-1).to(x.dtype)

    def _norm(self, x: Any) -> Any:
        return self.torch.nn.functional.rms_norm(x, (self.shape["hidden"],), self.gain)

    def step(self, ids: Any, positions: Any, chunk: int, prompt: Any, mask: Any, decode: Any) -> Any:
        """The next token of every sequence. ids: the chunk's tokens, then one per decoding sequence; prompt, decode: their caches or None."""
        f, heads, kv_heads, dim = self.torch.nn.functional, self.shape["heads"], self.shape["kv_heads"], self.head_dim
        x = f.embedding(ids, self.embedding)
        for i, block in enumerate(self.blocks):
            q, k, v = (self._norm(x) @ block["qkv"]).split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
            q, k = self._turn(q.view(-1, heads, dim), positions), self._turn(k.view(-1, kv_heads, dim), positions)
            v = v.view(-1, kv_heads, dim)
            seen = []
            if chunk:
                keys, values = prompt[i]
                keys[:, -chunk:], values[:, -chunk:] = k[:chunk].transpose(0, 1), v[:chunk].transpose(0, 1)
                out = f.scaled_dot_product_attention(q[:chunk].transpose(0, 1)[None], keys[None], values[None], attn_mask=mask,
                                                     is_causal=mask is None, enable_gqa=True)
                seen.append(out[0].transpose(0, 1).reshape(chunk, heads * dim))
            if decode is not None:
                keys, values = decode[i]
                keys[:, :, -1], values[:, :, -1] = k[chunk:], v[chunk:]
                grouped = q[chunk:].view(-1, kv_heads, heads // kv_heads, dim)  # all queries of a key at once: its cache is read once
                seen.append(f.scaled_dot_product_attention(grouped, keys, values).reshape(-1, heads * dim))
            x = x + self.torch.cat(seen) @ block["out"]
            gate, up = (self._norm(x) @ block["up"]).chunk(2, dim=-1)
            x = x + (f.silu(gate) * up) @ block["down"]
        last = x[max(0, chunk - 1):]
        return (self._norm(last) @ self.head).argmax(-1)

    def seconds(self, what: Step, repeats: int) -> list[float]:
        """Seconds of each repeat of a step."""
        torch, (chunk, prefix, batch, context) = self.torch, what
        kv_heads = self.shape["kv_heads"]
        prompt = self.cache(kv_heads, prefix + chunk) if chunk else None
        decode = self.cache(batch, kv_heads, context) if batch else None
        ids = torch.randint(self.shape["vocabulary"], (chunk + batch,), device=self.device)
        decoded = torch.full((batch,), max(0, context - 1), device=self.device)
        positions = torch.cat((torch.arange(prefix, prefix + chunk, device=self.device), decoded))
        mask = None
        if chunk and prefix:
            mask = torch.ones(chunk, prefix + chunk, dtype=torch.bool, device=self.device).tril(prefix)

        def once() -> None:
            self.step(ids, positions, chunk, prompt, mask, decode)

        return self._timed(once, repeats, graph=not chunk)

    def _timed(self, once: Any, repeats: int, graph: bool) -> list[float]:
        torch = self.torch
        for _ in range(2):
            once()
        if self.device.type != "cuda":
            marks = [time.perf_counter()]
            for _ in range(repeats):
                once()
                marks.append(time.perf_counter())
            return [b - a for a, b in pairwise(marks)]
        torch.cuda.synchronize()
        if graph:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                once()
            once = recorded.replay
        out = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            once()
            end.record()
            end.synchronize()
            out.append(begin.elapsed_time(end) / 1e3)
        return out


def measure(args: argparse.Namespace) -> None:
    import torch

    torch.set_grad_enabled(False)
    if args.device == "cpu":
        torch.set_num_threads(1)  # others work on the other cores
    shape = SMALL if args.small else LLAMA_8B
    decoder, begun, points, left_out = Decoder(shape, args.device), time.monotonic(), [], 0
    for what in steps(args.small):
        if time.monotonic() - begun > args.budget_s:
            left_out += 1
            continue
        try:
            took = sorted(decoder.seconds(what, args.repeats))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            left_out += 1
            continue
        point = dict(zip(("chunk", "prefix", "batch", "context"), what))
        points.append({**point, "step_s": took[len(took) // 2], "least_s": took[0], "most_s": took[-1]})
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "cpu"
    model = f"{'small' if args.small else 'Llama-3.1-8B'}, random weights"
    measured = {"gpu": gpu, "model": model, "shape": shape, "dtype": "bfloat16",
                "torch": torch.__version__, "cuda": torch.version.cuda, "date": datetime.now(UTC).strftime("%Y-%m-%d"), "repeats": args.repeats,
                "left_out": left_out}
    text = json.dumps({"measured": measured, "points": points}, indent=1)
    print(text) if args.out == "-" else Path(args.out).write_text(text + "\n", "utf-8")
    print(f"{len(points)} steps in {time.monotonic() - begun:.0f} s, {left_out} left out (time or memory)", file=sys.stderr)


def fit(args: argparse.Namespace) -> None:
    from windtunnel.lab.calibrate.gpu_points import fit_steps, read_steps

    made = fit_steps(*read_steps(args.points))
    print(made.errors.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    print("median absolute error: " + ", ".join(f"{kind} {error:.1f} %" for kind, error in made.median_error_percent.items()))
    if args.out:
        print(f"profile: {made.write(args.out)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("--device", default="cuda")
    one.add_argument("--small", action="store_true", help="a model of two layers")
    one.add_argument("--budget-s", type=float, default=420.0)
    one.add_argument("--repeats", type=int, default=9)
    one.add_argument("--out", required=True, help="JSON file, - for standard output")
    one.set_defaults(work=measure)
    two = commands.add_parser("fit")
    two.add_argument("points")
    two.add_argument("--out", help="YAML profile for a pool")
    two.set_defaults(work=fit)
    args = parser.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
