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
    for row in head.itertuples():
        target = TARGETS[row.metric] if row.estimate == "cross-validated" else float("inf")
        checks.append(Check(SECTION, f"{row.estimate}", f"{row.metric} median absolute error", 0.0, float(row.median_abs_error),
                            f"≤ {target:.0%}" if row.estimate == "cross-validated" else "no target", bool(row.median_abs_error <= target),
                            int(row.n), note="" if row.estimate == "cross-validated" else "for comparison"))
    return checks
