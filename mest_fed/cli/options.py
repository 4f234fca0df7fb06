"""Options that several commands have: which model, for which data, and where a picture goes."""

import math
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from click import Option, get_current_context
from click.core import ParameterSource

from mest_fed.catalogue import METHODS, NORMS, SCHEMES
from mest_fed.cli.app import needs
from mest_fed.errors import InputError, not_allowed
from mest_fed.system.files import check_writable

if TYPE_CHECKING:
    from mest_fed.server.claim import Claim

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key; repeatable."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
Scheme = Annotated[str | None, typer.Option(help=f"{SCHEMES.allowed}.")]
Density = Annotated[float | None, typer.Option(help="Target density.")]
Method = Annotated[str | None, typer.Option(help=f"{METHODS.allowed}.")]
Norm = Annotated[str | None, typer.Option(help=f"{NORMS.allowed}.")]
Width = Annotated[
    float | None,
    typer.Option(help="Factor on the channel counts; without a configuration 2 for resnet32."),
]
Batch = Annotated[
    int | None,
    typer.Option(help="Examples in one optimizer step; 64 without a configuration.", min=1),
]
Image = Annotated[
    str | None, typer.Option(help="CHANNELSxHEIGHTxWIDTH, instead of the data set's.")
]
Classes = Annotated[
    int | None,
    typer.Option(help="Number of classes, instead of the data set's.", min=2, max=1_000_000),
]
MoreRounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        metavar="N",
        min=1,
        help="Beside --resume, also of a finished run: N rounds more than were planned. "
        "Schedules go on as in a run of all these rounds: a cosine learning rate rises again.",
    ),
]
#: The option of a file for a picture.
PICTURE = "--picture"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def number_from(least: float) -> Callable[[float], float]:
    """Return the check that an option is a finite number from ``least``: click takes nan."""

    def check(value: float) -> float:
        if not least <= value < math.inf:
            raise typer.BadParameter(f"{value:g} is not allowed; allowed: a number from {least:g}")
        return value

    return check


def next_folder(name: str) -> Path:
    """Return ``runs/NAME``, or ``runs/NAME-2`` and so on where other runs have those before."""
    from mest_fed.server.claim import Claim

    names = chain([name], (f"{name}-{number}" for number in count(2)))
    folders = (Path("runs") / each for each in names)
    return next(folder for folder in folders if not folder.exists() or _is_new(Claim(folder)))


def newest_run(*, finished: bool) -> tuple[Path, int]:
    """Return the run beneath ``runs`` that was written last, and how many there are to choose from.

    Parameters
    ----------
    finished : bool
        Whether it may be finished, too; else it is one that ``--resume`` goes on with.

    Raises
    ------
    InputError
        If there is none.
    """
    from mest_fed.server.folder_names import CHECKPOINTS
    from mest_fed.server.run_folder import RunFolder

    runs = [run for path in Path("runs").glob("*/") if (run := RunFolder(path)).has_checkpoint]
    runs.sort(key=lambda run: (run.path / CHECKPOINTS).stat().st_mtime, reverse=True)
    found = [run for run in runs if finished or run.resumable]
    if not found:
        more = f"; --rounds N adds rounds to the newest, {runs[0].path}" if runs else ""
        which = "that is not finished " if runs else ""
        allowed = f"allowed: --out with the folder of one{more}"
        raise InputError(f"--resume: no run {which}is in the folder runs; {allowed}")
    return found[0].path, len(found)


def _is_new(claim: "Claim") -> bool:
    try:
        return claim.is_new() and not claim.is_held
    except OSError:  # a file, or a folder of another user
        return False


def as_typed(*left_out: str) -> str:
    """Return the options that this command was given as a person types them, each after a space.

    Parameters
    ----------
    left_out : str
        Parameters of the command's function that are none of them.
    """
    context = get_current_context(silent=True)
    if context is None:  # a program calls the function
        return ""
    given = []
    for option in context.command.params:
        name = option.name or ""
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if typed and name not in left_out and isinstance(option, Option):
            value, called = context.params[name], max(option.opts, key=len)
            values = value if isinstance(value, (list, tuple)) else [value]
            if option.is_flag:
                given += [f" {called}"] if value else []
            else:
                given += [f" {called} {quote(str(each))}" for each in values]
    return "".join(given)


def check_new_file(out: Path | None, *, force: bool, default: Path | None = None) -> None:
    """Refuse to replace a file, unless asked to.

    Parameters
    ----------
    out : Path or None
        The file of ``--out``.
    force : bool
        Whether it may be replaced.
    default : Path, optional
        The file where ``--out`` is left out.

    Raises
    ------
    InputError
        If it is there already.
    """
    path = out or default
    if path is None or force or not path.exists():
        return
    there = f"{path} is there already; allowed: --force, which replaces it"
    raise InputError(f"{there}, or --out FILE" if out is None else f"--out: {there}")


def check_picture(picture: Path | None) -> None:
    """Find what would keep a picture from being drawn, before anything slow.

    Raises
    ------
    InputError
        If its name or folder is wrong, or matplotlib is missing.
    """
    if picture is None:
        return
    if picture.suffix.lower() not in (".svg", ".png"):
        raise not_allowed(PICTURE, str(picture), "a file that ends in .svg or .png")
    if not picture.absolute().parent.is_dir():
        raise not_allowed(PICTURE, str(picture), "a file in a folder that exists")
    check_writable(picture, PICTURE)
    needs("simulation", "matplotlib", "jinja2")
