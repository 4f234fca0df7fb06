"""Studies: many runs that differ in a few settings, as one file, one folder and one page."""
