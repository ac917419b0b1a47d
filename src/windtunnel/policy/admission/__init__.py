"""May this attempt go to this endpoint now? Limits, gates, budgets and leases of requests."""
