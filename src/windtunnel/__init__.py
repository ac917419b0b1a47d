"""windtunnel: try a control policy in simulation, then fly the very same object against real engines."""
