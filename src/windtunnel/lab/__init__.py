"""Scenarios, runs and what is learnt from them: build, record, compare, sweep, tune, calibrate, validate."""
