"""The cells of a study that does not start, and what each is priced at."""

from collections.abc import Mapping, Sequence

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

#: Runs that are not begun again.
_COMPUTED = (RunState.ENDED, RunState.KNOWN)
_WIDEST = 160
_CAVEAT = (
    "Modelled, as mest-fed simulate --dry-run has it: the largest peak of a device, bytes and "
    "virtual time of all rounds. Nothing was started."
)


def print_cells(
    study: StudyFile, cells: Sequence[Cell], folder: StudyFolder, shown: StudyConsole
) -> int:
    """Print the cells, what is done of them, and what each would cost.

    Returns
    -------
    int
        How many cells would fail.
    """
    runs = distinct_runs(cells)
    shown.say(f"{study.name}: pricing {number_of(len(runs), 'run')}", "dim")
    prices = {cell.run: _price(folder, cell) for cell in runs}
    rows = [_row(cell, folder, prices[cell.run]) for cell in cells]
    console = Console(highlight=False)
    wraps = console.is_terminal
    if not wraps:
        console = Console(highlight=False, width=_WIDEST)
    table = Table(box=None, header_style="dim")
    fill_table(table, rows, console.width, left=("cell", "state"))
    console.print(table)

    def say(line: str, style: str) -> None:
        console.print(Text(line, style=style), soft_wrap=not wraps)

    failing = _failing(cells, folder, prices)
    for reason, ids in failing.items():
        say(f"{_which(ids)}: {reason}", "red")
    shared = len(cells) - len(runs)
    text = f"{number_of(len(cells), 'cell')}, {number_of(len(runs), 'run')}"
    if shared:
        text += f": {number_of(shared, 'cell')} of the same configuration as another"
    say(f"\n{text}; protocol {study.about.protocol}; folder {folder.path}", "")
    say(_CAVEAT, "dim")
    return sum(map(len, failing.values()))


def _failing(
    cells: Sequence[Cell], folder: StudyFolder, prices: Mapping[str, RunForecast | str]
) -> dict[str, list[str]]:
    """Return the cells that would fail, by reason: most are the same for all seeds."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        price = prices[cell.run]
        if isinstance(price, str) and folder.state(cell) not in _COMPUTED:
            found.setdefault(price, []).append(cell.id)
    return found


def _which(ids: Sequence[str]) -> str:
    if len(ids) == 1:
        return f"{ids[0]} would fail"
    return f"{number_of(len(ids), 'cell')} would fail, the first {ids[0]}"


def _price(folder: StudyFolder, cell: Cell) -> RunForecast | str:
    """Return the forecast of a cell, or why it would fail."""
    try:
        place = folder.path / ".not-begun" / cell.run
        return RunForecast(open_run(cell.run, cell.config, place))
    except InputError as error:
        return " ".join(str(error).split())
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
        said = said if state in _COMPUTED else "would fail"
        return {"cell": cell.id, "state": said} | dict.fromkeys(
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
