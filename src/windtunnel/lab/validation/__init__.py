"""The simulator beside theory, measurements and other simulators."""
