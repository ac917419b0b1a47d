"""What several benchmarks share: how results are written, and how other simulators are run beside this one. No benchmark itself."""
