"""Following a run: the display, and trackers of the same rows for other tools."""
