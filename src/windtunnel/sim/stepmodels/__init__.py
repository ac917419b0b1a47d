"""How long a step of an engine takes."""
