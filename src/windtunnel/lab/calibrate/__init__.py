"""Calibration: observations of a real engine, a fit of a step-time model to them, a replay in the simulator and a table of the errors."""
