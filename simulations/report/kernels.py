"""The report's table of kernels: which implementations the sparse layers ran."""

from dataclasses import dataclass

from simulations.report.formats import format_percent
from simulations.report.schema import KernelRow, Kernels, Run

_PRODUCTS = {
    "forward": "forward",
    "backward_input": "gradient of input",
    "backward_values": "gradient of values",
}
_HOW = {
    "rule": "Chosen by shape and density; nothing was timed",
    "tuned": "Timed before the first round, one thread; the fastest was chosen",
    "dense": "Dense weights everywhere, as configured",
}


@dataclass(frozen=True)
class KernelTable:
    """The table, formatted; a cell is an implementation and its time."""

    caption: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def kernel_table(run: Run) -> KernelTable | None:
    """Format ``kernels.json``; None where no sparse layer had a choice."""
    kernels = run.kernels
    if kernels is None or not kernels.rows:
        return None
    basis = "measured" if any(row.milliseconds for row in kernels.rows) else ""
    columns = [("input", ""), ("density up to", "")]
    columns += [(title, basis) for title in _PRODUCTS.values()]
    rows = tuple((", ".join(row.layers), _cells(row)) for row in kernels.rows)
    return KernelTable(_caption(kernels), tuple(columns), rows)


def _caption(kernels: Kernels) -> str:
    how = _HOW.get(kernels.mode, kernels.mode)
    compiled = f"compiled for {kernels.variant}" if kernels.variant else "not compiled"
    return (
        f"{how}. dense: a dense weight for the moment; channels: the live channels alone; "
        f"padded, shifted: sparse kernels ({compiled})"
    )


def _cells(row: KernelRow) -> tuple[tuple[str, str], ...]:
    height, width = row.case.size
    facts = [(f"{height}\N{MULTIPLICATION SIGN}{width}", ""), (format_percent(row.case.band), "")]
    return (*facts, *(_choice(row, product) for product in _PRODUCTS))


def _choice(row: KernelRow, product: str) -> tuple[str, str]:
    """Return the implementation, and its time beside the others'."""
    chosen, times = row.choice.get(product, ""), row.milliseconds.get(product, {})
    if chosen not in times:
        return chosen, ""
    others = (f"{name} {times[name]:.3g}" for name in times if name != chosen)
    return chosen, ", ".join([f"{times[chosen]:.3g} ms", *others])
