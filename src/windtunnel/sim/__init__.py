"""The simulated world: engines, fleets, faults and cost on virtual time."""
