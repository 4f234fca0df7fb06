"""The report of a run: one self-contained HTML page written from the run folder."""

from simulations.report.render import write_report

__all__ = ["write_report"]
