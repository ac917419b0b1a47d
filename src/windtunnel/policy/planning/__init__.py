"""How many replicas: the planner, its plugins and what they exchange."""
