"""A program and a model's first weights as files, for the C interface."""

from pathlib import Path

from mest_fed.cli.programs.report import ProgramReport
from mest_fed.errors import InputError
from mest_fed.runtime.flat import flat_program, write_arrays
from mest_fed.runtime.program_parts import KEPT

PROGRAM, WEIGHTS = "step.program", "weights.arrays"
_REFERENCE = ":reference"


def export_step(report: ProgramReport, folder: Path) -> None:
    """Write a step and the weights that it begins with.

    Raises
    ------
    InputError
        If the program draws numbers, or the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--export: {folder} is a file; allowed: a folder")
    data = flat_program(report.program)
    held = [report.program.buffers[it].name for it in report.program.of_role(*KEPT)]
    # A reference, to which FedProx draws, is what its parameter begins with.
    sources = {name: name.removesuffix(_REFERENCE) for name in held}
    weights = {name: report.weights[it] for name, it in sources.items() if it in report.weights}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRAM).write_bytes(data)
        write_arrays(folder / WEIGHTS, weights)
    except OSError as error:
        raise InputError(f"--export: {folder} cannot be written: {error.strerror}") from None
