"""Passes: each makes a program another of the same meaning."""
