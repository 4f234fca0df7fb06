"""The report of a run: one self-contained HTML page written from the run folder."""

from mest_fed.simulation.report.figure_files import write_figures
from mest_fed.simulation.report.load import read_summary
from mest_fed.simulation.report.render import write_report
from mest_fed.simulation.report.run_tables import run_tables

__all__ = ["read_summary", "run_tables", "write_figures", "write_report"]
