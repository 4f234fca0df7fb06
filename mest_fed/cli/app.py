"""``mest-fed``: its commands, and how errors leave it."""

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from shutil import get_terminal_size
from typing import Any, get_type_hints

import typer
from click import Abort, Context, HelpFormatter, Parameter, UsageError
from click.exceptions import NoArgsIsHelpError
from rich.console import Console
from typer.core import TyperArgument, TyperCommand
from typer.models import ArgumentInfo

import mest_fed
from mest_fed.errors import InputError, MestFedError, RefusedError, not_allowed

#: ``NOTHING_TRAINED``: of ``mest-fed simulate`` and ``run``, if nothing came of any client in the
#: whole run, or the run diverged.
#: ``REFUSED``: of ``mest-fed client``, if no SuperLink answers or it does not take this device.
OK, FAILED, WRONG_INPUT, NOTHING_TRAINED, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130


#: Columns below which a table cuts the names of options off, or words of their texts.
_NARROW = 100
app = typer.Typer(
    name="mest-fed",
    help="Federated memory-economic sparse training: simulate fleets, plan memory, run clients.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mest-fed {mest_fed.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Federated memory-economic sparse training."""


class _Command(TyperCommand):
    """A command whose arguments have their help: typer 0.20, which flwr pins, loses it to click."""

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, **options)
        hints = get_type_hints(options["callback"], include_extras=True)
        for parameter in self.params:
            for info in getattr(hints.get(parameter.name or ""), "__metadata__", ()):
                if isinstance(parameter, TyperArgument) and isinstance(info, ArgumentInfo):
                    parameter.help = info.help
        # A line of the source is no line of the screen.
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(each.split()) for each in paragraphs)

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the help; without a table where that would cut words off."""
        if get_terminal_size().columns >= _NARROW:
            super().format_help(ctx, formatter)
            return
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(self.help or "")
        of_kinds: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                name, text = record
                kind = "Arguments" if isinstance(parameter, TyperArgument) else "Options"
                of_kinds[kind].append((name, text.replace("\\[", "[")))  # as typer escapes it
        for kind, records in of_kinds.items():
            if records:
                with formatter.section(kind):
                    formatter.write_dl(records)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Refuse an empty text, which a path would take for the current folder."""
        given, _, order = self.make_parser(ctx).parse_args(list(args))
        for parameter in order:
            value = given.get(parameter.name or "")
            if value == "" or (isinstance(value, (list, tuple)) and "" in value):
                raise not_allowed(_called(parameter, ctx), "", "a text that is not empty")
        return super().parse_args(ctx, args)


def _called(parameter: Parameter, ctx: Context) -> str:
    """Return what a person calls a parameter: its longest option, or its place in the usage."""
    if isinstance(parameter, TyperArgument):
        return parameter.make_metavar(ctx).strip("[]").removesuffix("...").strip("[]")
    return max(parameter.opts, key=len)


def register_commands() -> None:
    """Bring all commands into :data:`app`."""
    from mest_fed.cli import (
        calibrate,
        certs,
        client,
        compare,
        config,
        devices,
        export,
        node,
        plan,
        program,
        report,
        run,
        server,
        shares,
        simulate,
        study,
    )

    commands = (
        simulate.simulate,
        study.study,
        run.run,
        client.client,
        server.server,
        shares.shares,
        config.config,
        devices.devices,
        calibrate.calibrate,
        plan.plan,
        program.program,
        report.report,
        export.export,
        compare.compare,
    )
    if app.registered_commands:  # called before, by this process
        return
    for command in commands:
        app.command(cls=_Command)(command)
    app.command(cls=_Command)(node.node)
    app.add_typer(_group(certs.__doc__ or "", *certs.COMMANDS), name="certs")


def _group(text: str, *commands: Callable[..., None]) -> typer.Typer:
    """Return a command that has commands; the first line of the text is its help."""
    group = typer.Typer(help=text.splitlines()[0], no_args_is_help=True, rich_markup_mode="rich")
    for command in commands:
        group.command(cls=_Command)(command)
    return group


def main() -> None:
    """Run the command line; wrong input is one line on standard error and exit status 2."""
    warnings.formatwarning = _warning_line
    # Torch says so of complex weights; the error's line says that they are not allowed.
    warnings.filterwarnings("ignore", message="Complex modules are a new feature")
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        status = app(prog_name="mest-fed", standalone_mode=False) or OK
        if status == INTERRUPTED:  # typer has made it of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(status)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(WRONG_INPUT)
    except UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "mest-fed"
        line = f"{error.format_message()} See: {where} --help"
        errors.print("[bold red]error:[/bold red]", _one_line(line), markup=True)
        sys.exit(WRONG_INPUT)
    except (Abort, KeyboardInterrupt):
        errors.print("interrupted")
        sys.exit(INTERRUPTED)
    except InputError as error:
        errors.print("[bold red]error:[/bold red]", _one_line(error), markup=True)
        sys.exit(WRONG_INPUT)
    except MestFedError as error:
        errors.print("[bold red]error:[/bold red]", _one_line(error), markup=True)
        sys.exit(REFUSED if isinstance(error, RefusedError) else FAILED)


def _warning_line(message: Warning | str, *_: object, **__: object) -> str:
    """Show a warning as a line, without the code that gave it."""
    return f"warning: {' '.join(str(message).split())}\n"


def _one_line(error: Exception | str) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))


def needs(extra: str, *modules: str) -> None:
    """Check that modules can be imported.

    Raises
    ------
    InputError
        If one is missing; says which extra brings it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InputError(f"{missing[0]} is not installed; run: pip install 'mest-fed[{extra}]'")
