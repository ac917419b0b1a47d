"""Everything that decides, pure: `(event, now) -> effects`, no clock, no I/O, no framework."""
