"""Readers of trace files, and the operations that change a trace."""
