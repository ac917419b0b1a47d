"""The step loop of an engine, layer by layer: members, intake, room, progress, timing, runs; and what each batching policy composes."""
