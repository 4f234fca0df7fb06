"""The command line: thin, and the only place where all floors meet."""

from mest_fed.cli.app import main

__all__ = ["main"]
