"""Passes: from a program to another of the same meaning, one idea a file; each may be left out."""
