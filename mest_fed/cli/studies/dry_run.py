"""The cells of a study that does not start, and what each is priced at."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mest_fed.cli.planning.forecast import RunForecast
from mest_fed.cli.studies.display import StudyConsole
from mest_fed.cli.tables import fill_table
from mest_fed.errors import InputError
from mest_fed.process_tasks import PROCESS_TASKS
from mest_fed.simulation.simulate import open_run
from mest_fed.simulation.study.grid import Cell
from mest_fed.simulation.study.study_file import StudyFile
from mest_fed.simulation.study.study_folder import RunState, StudyFolder, distinct_runs
from mest_fed.units import format_bytes, format_seconds, number_of

_WIDEST = 160
_CAVEAT = (
    "Modelled, as mest-fed simulate --dry-run has it: the largest peak of a device, bytes and "
    "virtual time of all rounds. Nothing was started."
)


def print_cells(
    study: StudyFile, cells: Sequence[Cell], folder: StudyFolder, shown: StudyConsole
) -> None:
    """Print the cells, what is done of them, and what each would cost."""
    runs = distinct_runs(cells)
    shown.say(f"{study.name}: pricing {number_of(len(runs), 'run')}", "dim")
    prices = {cell.run: _price(folder, cell) for cell in runs}
    rows = [_row(cell, folder, prices[cell.run]) for cell in cells]
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDEST)
    table = Table(box=None, header_style="dim")
    fill_table(table, rows, console.width, left=("cell", "state"))
    console.print(table)
    for run, price in prices.items():
        if isinstance(price, str):
            console.print(Text(f"{run} would fail: {price}", style="red"))
    shared = len(cells) - len(runs)
    text = f"{number_of(len(cells), 'cell')}, {number_of(len(runs), 'run')}"
    if shared:
        text += f": {number_of(shared, 'cell')} of the same configuration as another"
    console.print(Text(f"\n{text}; protocol {study.about.protocol}; folder {folder.path}"))
    console.print(Text(_CAVEAT, style="dim"))


def _price(folder: StudyFolder, cell: Cell) -> RunForecast | str:
    """Return the forecast of a cell, or why it would fail."""
    try:
        place = folder.path / ".not-begun" / cell.run
        return RunForecast(open_run(cell.run, cell.config, place))
    except InputError as error:
        return str(error)
    finally:
        PROCESS_TASKS.forget()


def _row(cell: Cell, folder: StudyFolder, price: RunForecast | str) -> dict[str, str]:
    state = folder.state(cell)
    named = {RunState.NEW: "to do", RunState.BEGUN: "to do", RunState.RESUMABLE: "to resume"}
    named[RunState.KNOWN] = "in the record"
    said = named.get(state, "done")
    if cell.run != cell.id:
        said = f"as {cell.run}"
    if isinstance(price, str):
        return {"cell": cell.id, "state": "would fail"} | dict.fromkeys(
            ("rounds", "predicted peak", "up", "down", "virtual time"), ""
        )
    peak = max(each.device.plan.footprint.total for each in price.devices)
    traffic, seconds = price.run_traffic, price.run_seconds
    return {
        "cell": cell.id,
        "state": said,
        "rounds": str(len(price.rounds)),
        "predicted peak": format_bytes(peak),
        "up": "—" if traffic is None else format_bytes(traffic.up),
        "down": "—" if traffic is None else format_bytes(traffic.down),
        "virtual time": "—" if seconds is None else format_seconds(seconds),
    }
