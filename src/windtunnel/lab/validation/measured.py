"""Measurements of real engines: published points of steady load, and two recorded runs of vLLM."""

from __future__ import annotations

from math import isnan

from windtunnel.lab.calibrate.runs import validate_runs
from windtunnel.lab.calibrate.silicon import TARGETS, validate_silicon
from windtunnel.lab.validation.check import Check

SECTION = "Measured engines, published points"
RUNS_SECTION = "Measured engines, recorded runs of vLLM"
RUN_TARGETS = {"ttft": 0.10, "tpot": 0.05, "e2e": 0.10, "output_tok_per_s": 0.05, "makespan": 0.05}


def run_silicon() -> list[Check]:
    """Median absolute relative errors of the cross-validated predictions; the other estimates for comparison, without a target."""
    errors = validate_silicon().errors
    head = errors[errors["slice"] == "all"]
    checks = []
    for row in head.to_dict("records"):
        held, error = row["estimate"] == "cross-validated", float(row["median_abs_error"])
        target = TARGETS[str(row["metric"])] if held else float("inf")
        checks.append(Check(SECTION, str(row["estimate"]), f"{row['metric']} median absolute error", 0.0, error,
                            f"≤ {target:.0%}" if held else "no target", error <= target, int(row["n"]), note="" if held else "for comparison"))
    return checks


def run_vllm() -> list[Check]:
    """Two recorded runs replayed request by request: signed errors of mean, median and whole; targets for the cross-validated ones."""
    errors = validate_runs().errors
    checks = []
    for row in errors.to_dict("records"):
        metric, measured = str(row["metric"]), float(row["measured"])
        if row["statistic"] not in ("mean", "p50", "all") or metric not in RUN_TARGETS or isnan(measured):
            continue
        target = RUN_TARGETS[metric] if row["estimate"] == "cross-validated" else None
        bound, note = ("no target", "for comparison") if target is None else (f"± {target:.0%}", "")
        checks.append(Check(RUNS_SECTION, f"{row['run']}, {row['estimate']}", f"{metric} {row['statistic']}", measured, float(row["simulated"]),
                            bound, target is None or abs(float(row["error"])) <= target, int(row["n"]), "tok/s" if "tok" in metric else "s",
                            note=note))
    return checks
