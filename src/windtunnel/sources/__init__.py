"""Where work comes from: arrivals, traces, closed loops, clients that retry, pipelines."""
