"""`windtunnel calibrate`: measure a running engine and write the profile that the simulator then uses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from windtunnel.cli import Answer, app
from windtunnel.lab.destination import check_file

SHOWN = {"ttft_s": ("TTFT", "ms", 1e3), "tpot_s": ("TPOT", "ms", 1e3), "tokens_per_s": ("throughput", "tok/s", 1.0)}
Engine = Literal["llamacpp", "openai", "vllm"]


@app.command
def calibrate(*, engine: Engine, url: str, model: str = "", slots: int | None = None, budget_s: float = 60.0, seed: int = 7,
              full: bool = False, out: Path | None = None) -> Answer:
    """Measure a running engine, fit its step times, check them on load that was not fitted.

    Example: `windtunnel calibrate --engine llamacpp --url http://127.0.0.1:8090 --out my-engine.yaml`

    Nothing else should use the engine meanwhile; it is asked for random prompts, greedy, to their full length.

    Args:
        engine: How it is spoken to.
        url: Its address.
        model: Its name for the model, where it wants one.
        slots: Calls it runs at once; left out: what it says, else 4.
        budget_s: About how long to measure (s); a longer time means more rounds and steadier medians.
        seed: Of prompts and arrivals.
        full: Measure 1 to 16 at once, prompts to 2048, answers to 256 tokens.
        out: File for the profile; a pool names it: profile: {kind: measured, path: FILE}.
    """
    from windtunnel.lab.calibrate.running import calibrate as measure

    if out is not None:
        check_file(out)

    def tell(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    try:
        made = measure(engine, url, model=model, slots=slots, budget_s=budget_s, seed=seed, full=full, tell=tell)
    finally:
        tell("")
    rows = [f"{'held-back load':38} {'':12} {'measured':>12} {'simulated':>12} {'error':>8}"]
    for row in made.table.to_dict("records"):
        label, unit, scale = SHOWN[str(row["metric"])]
        rows.append(f"{row['cell'] if label == 'TTFT' else '':38} {label:12} {row['measured'] * scale:>8.2f} {unit:<5}"
                    f"{row['simulated'] * scale:>8.2f} {unit:<5}{row['error_percent']:>+7.1f}%")
    said = ", ".join(f"{name} {value:.1f} %" for name, value in made.median_error_percent.items())
    rows += ["", f"median absolute error: {said}  ({made.rounds} round{'s' * (made.rounds > 1)} in {made.took_s:.0f} s; medians over repeats)"]
    result = {"profile": made.profile.plain(), "errors": made.table.to_dict("records"), "median_error_percent": made.median_error_percent,
              "rounds": made.rounds, "took_s": made.took_s}
    if out is not None:
        result["saved"] = str(made.write(out))
        rows.append(f"profile: {out}")
    return Answer(result, "\n".join(rows))
