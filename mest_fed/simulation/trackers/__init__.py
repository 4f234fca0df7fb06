"""Watching a run: the live display, and trackers of the same rows for other tools."""
