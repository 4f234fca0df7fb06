"""The report of a run: one self-contained HTML page written from the run folder."""

from mest_fed.simulation.report.load import run_tables
from mest_fed.simulation.report.render import write_report

__all__ = ["run_tables", "write_report"]
