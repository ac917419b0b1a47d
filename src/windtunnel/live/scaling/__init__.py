"""Connectors: how a live world changes the number of replicas."""
