"""Write data/profiles/ from the measurements in data/validation/: `python sims/calibrate_profiles.py`. Same data, same files."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from windtunnel.datafiles import data_path
from windtunnel.lab.calibrate.observe import PointObs, read_points
from windtunnel.lab.calibrate.profile import PriorSpec, of_points, of_run
from windtunnel.lab.calibrate.runs import RUNS, validate_runs
from windtunnel.lab.calibrate.silicon import POINTS, validate_silicon

KEEP = 12  # the set-ups with the most measurements


def main(folder: Path) -> None:
    runs = validate_runs()
    for run in RUNS:
        held = runs.errors[(runs.errors["run"] == run.name) & (runs.errors["estimate"] == "cross-validated") & (runs.errors["statistic"] == "mean")]
        name = f"{run.gpu}-{run.model.lower()}-vllm0.19"
        of_run(name, run.model, run.gpu, run.tp, runs.fits[run.name], PriorSpec("llmservingsim", link=run.link), engine="vllm 0.19.0",
               source=f"300 requests of {run.name}, {run.notes}", kv_blocks=run.config.num_blocks,
               errors={r.metric: abs(float(r.error)) for r in held.itertuples()}).write(folder / f"{name}.yaml")
    report = validate_silicon()
    table = report.points[~report.points["saturated"]]
    by_id: dict[str, PointObs] = {p.id: p for p in read_points(data_path(POINTS))}
    for group in table.groupby("group").size().sort_values(ascending=False, kind="stable").index[:KEEP]:
        part = table[table["group"] == group]
        points = [by_id[i] for i in part["id"]]
        p = points[0]
        name = f"{p.gpu}x{p.gpus}-{p.model.lower()}-{p.dtype}-{p.engine}{p.version.replace('?', '')}" + (f"-ep{p.ep}" if p.ep > 1 else "")
        errors = {m: float((part[f"cross-validated {m}_s"] / part[f"{m}_s"] - 1).abs().median()) for m in ("tpot", "ttft")}
        of_points(name, report.model, points, source="published closed loops", errors=errors).write(folder / f"{name}.yaml")
    pd.set_option("display.width", 200)
    print(runs.text, report.text, sep="\n\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else data_path("calibration").parent / "profiles")
