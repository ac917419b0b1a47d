"""May a ready task of a pipeline start? Frontier, task admission and scheduling of row groups."""
