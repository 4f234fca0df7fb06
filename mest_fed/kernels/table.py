"""The table of a run's choices, for people to read and for machines to repeat."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mest_fed.kernels import native
from mest_fed.kernels.choice import Case, Choice, Choices

#: How a table came about.
BY_RULE, TIMED, ALL_DENSE = MODES = ("rule", "tuned", "dense")

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One case and what was chosen for it.

    Parameters
    ----------
    layers : tuple of str
        Where it occurs; for people alone.
    case : Case
        The case.
    choice : Choice
        What runs.
    milliseconds : dict
        Product -> implementation -> measured time; empty where nothing was timed.
    """

    layers: tuple[str, ...]
    case: Case
    choice: Choice
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The choices of a run, and the machine that made them.

    Parameters
    ----------
    mode : str
        One of :data:`MODES`: by rule, timed, or dense everywhere.
    rows : tuple of Row
        One for each case.
    variant : str or None
        Instruction set of the compiled kernels where the table was made; None without them.
    threads : int
        torch's, there.
    torch : str
        Its version, there.
    """

    mode: str
    rows: tuple[Row, ...]
    variant: str | None
    threads: int
    torch: str

    @classmethod
    def made_here(cls, mode: str, rows: Iterable[Row]) -> "Table":
        """Return a table that this process made, with its present number of threads."""
        here = (native.variant(), torch.get_num_threads(), str(torch.__version__))
        return cls(mode, tuple(rows), *here)

    @property
    def choices(self) -> Choices:
        """What a process is to be told.

        The rule's rows are not named: it decides anew at each density, within a band as well.
        """
        if self.mode != TIMED:
            return Choices(dense=self.mode == ALL_DENSE)
        return Choices({row.case: row.choice for row in self.rows})


def choices_to_rows(table: Table) -> dict[str, Any]:
    """Return a table as what JSON can hold."""
    return {
        "format": FORMAT,
        "mode": table.mode,
        "variant": table.variant,
        "threads": table.threads,
        "torch": table.torch,
        "rows": [
            {
                "layers": list(row.layers),
                "case": _case_to_json(row.case),
                "choice": row.choice._asdict(),
                "milliseconds": row.milliseconds,
            }
            for row in table.rows
        ],
    }


def _case_to_json(case: Case) -> dict[str, Any]:
    facts = {"cut": case.cut, "shape": list(case.shape), "size": list(case.size)}
    sides = {name: list(pair) for name, pair in asdict(case.geometry).items()}
    return facts | sides | {"band": case.band, "threads": case.threads}
