"""Watching a run: the live display, and sinks of the same rows for other tools."""
