"""Published measurements of real engines: how far a calibrated closed loop is from points that it has not seen."""

from __future__ import annotations

from windtunnel.lab.calibrate.silicon import TARGETS, validate_silicon
from windtunnel.lab.validation.check import Check

SECTION = "Measured engines, published points"


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
