"""``mest-fed config``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from mest_fed.cli.app import needs

if TYPE_CHECKING:  # pydantic is imported when the command runs
    from mest_fed.config.reference import ConfigKey, ConfigSection

#: Below this the columns beside a key's name become lines; wider text is hard to read.
_WIDE, _WIDEST = 100, 140
_WIDTHS = {"type": 12, "default": 16, "allowed": 26}
_HINT = (
    "A key of the type name also takes package.module:attribute or file.py:attribute of your own. "
    "config SECTION.KEY shows one key; --format toml writes a file to start from."
)


def _complete(incomplete: str) -> list[str]:
    """Return sections, or the keys of a section once its dot is typed."""
    from mest_fed.config.load import known_keys
    from mest_fed.config.reference import section_names

    names = known_keys() if "." in incomplete else section_names()
    return [name for name in names if name.startswith(incomplete)]


def config(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[SECTION[.KEY]]",
            help="A section, or one key; all if left out.",
            autocompletion=_complete,
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="json, markdown, or toml: a file of all defaults, with comments.",
        ),
    ] = None,
) -> None:
    """List the keys of the configuration: type, default, allowed values and meaning."""
    needs("client", "pydantic", "tomli_w")
    from mest_fed.cli.config_formats import WRITERS, ConfigFormat, as_tabs
    from mest_fed.config.reference import find_sections
    from mest_fed.errors import not_allowed

    if form is not None and form not in list(ConfigFormat):
        raise not_allowed("--format", form, ConfigFormat)
    sections = find_sections(name)
    console = Console(highlight=False)
    if form is not None:
        typer.echo(WRITERS[ConfigFormat(form)](sections))
    elif not console.is_terminal:  # another program reads it
        typer.echo(as_tabs(sections))
    else:
        print_sections(sections, console)


def print_sections(sections: "Sequence[ConfigSection]", console: Console) -> None:
    """Print sections as tables, or a single key in detail."""
    from mest_fed.cli.config_formats import plain

    width = min(console.width, _WIDEST)
    if len(sections) == len(sections[0].keys) == 1:
        console.print(_one(sections[0].keys[0]), width=width)
        return
    longest = max(len(key.name) for section in sections for key in section.keys)
    for section in sections:
        title = Text.assemble((f"[{section.name}]", "bold"), " ", plain(section.meaning))
        console.print(title, width=width)
        table = _columns(section, longest) if width >= _WIDE else _stacked(section, longest)
        console.print(table, width=width)
        console.print()
    console.print(_HINT, style="dim", width=width)


def _columns(section: "ConfigSection", longest: int) -> Table:
    """Return a section as a table of five columns."""
    from mest_fed.cli.config_formats import plain, shortened

    table = Table(box=None, header_style="dim")
    table.add_column("key", style="bold", no_wrap=True, width=longest)
    for heading, width in _WIDTHS.items():
        table.add_column(heading, width=width, overflow="fold")
    table.add_column("meaning", ratio=1)
    for key in section.keys:
        cells = (key.name, key.type, shortened(key.default), key.allowed, plain(key.meaning))
        table.add_row(*map(Text, cells))
    return table


def _stacked(section: "ConfigSection", longest: int) -> Table:
    """Return a section as a table in which all that is said of a key stands beside its name."""
    from mest_fed.cli.config_formats import plain, shortened

    table = Table(box=None, show_header=False)
    table.add_column("key", style="bold", no_wrap=True, width=longest)
    table.add_column("meaning", ratio=1)
    for key in section.keys:
        facts = f"{key.type}, default {shortened(key.default)}; allowed: {key.allowed}"
        table.add_row(Text(key.name), Group(Text(plain(key.meaning)), Text(facts, style="dim")))
    return table


def _one(key: "ConfigKey") -> Table:
    """Return all that is known of a key."""
    from mest_fed.cli.config_formats import plain, toml_value

    title = Text(key.full_name, style="bold")
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    table.add_column("what", style="dim", no_wrap=True)
    table.add_column("value", ratio=1)
    rows = {
        "meaning": plain(key.meaning),
        "type": key.type,
        "default": toml_value(key.default),
        "allowed": key.allowed,
    }
    if key.references:
        rows["your own"] = f"{' or '.join(key.references)}, called as {key.called}"
    for what, value in rows.items():
        table.add_row(what, Text(value))
    return table
