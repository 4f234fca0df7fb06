"""The report of a run: one self-contained HTML page written from the run folder."""

from mest_fed.simulation.report.load import read_summary, run_tables
from mest_fed.simulation.report.render import write_report

__all__ = ["read_summary", "run_tables", "write_report"]
