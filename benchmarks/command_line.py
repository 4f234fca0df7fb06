"""The command line that the benchmarks share: options, refusals in one line, tables."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness import Row
from rich.console import Console
from rich.table import Table

from mest_fed.errors import InputError, not_allowed

WRONG_INPUT = 2


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are :class:`InputError`, with the options that benchmarks share.

    ``quick`` holds the defaults under ``--quick``; what is given beside it still counts.
    """

    def __init__(self, description: str, quick: Mapping[str, object] | None = None) -> None:
        super().__init__(description=description)
        self.add_argument("--json", type=Path, help="file to write the result to")
        self.quick = quick
        if quick:
            self.add_argument("--quick", action="store_true", help="few rows and runs, no figures")

    def error(self, message: str) -> NoReturn:
        """Refuse."""
        raise InputError(message)

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:  # type: ignore[override]
        """Parse; refuse a file that could not be written before anything is measured."""
        options = super().parse_args(*args, **kwargs)
        if self.quick and options.quick:
            self.set_defaults(**self.quick)
            options = super().parse_args(*args, **kwargs)
        if options.json and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
            raise not_allowed("--json", str(options.json), "a file in an existing folder")
        return options


def positive(text: str) -> int:
    """Parse a positive whole number of the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: a positive integer")
    return int(text)


def share(text: str) -> float:
    """Parse a number in (0, 1] of the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: a number in (0, 1]")
    return value


def run(main: Callable[[], None]) -> NoReturn:
    """Run a benchmark; wrong input is one line on standard error and exit status 2."""
    try:
        main()
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(WRONG_INPUT)
    sys.exit(0)


def collect(rows: Iterable[Row]) -> list[Row]:
    """Take rows as they are measured and say so; Ctrl-C keeps those that are done."""
    done: list[Row] = []
    try:
        for row in rows:
            done.append(row)
            print(f"{row['name']}: {row['ratio']:g} times", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"interrupted after {len(done)} rows", file=sys.stderr)
    return done


def show(title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Print a table; ``columns`` maps headings to keys of the rows, a missing key is a dash."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for heading, key in columns.items():
        numeric = any(isinstance(row.get(key), int | float) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns.values()))
    # A pipe has no width, and a table cut to 80 columns loses its names.
    Console(highlight=False, width=max(Console().width, 150)).print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
