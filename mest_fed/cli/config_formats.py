"""The keys of the configuration as tables for other programs, TOML, JSON and Markdown."""

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from mest_fed.config.reference import ConfigKey, ConfigSection, config_sections

Sections = Sequence[ConfigSection]

#: Characters of a default in a table, and of a line of comment in TOML.
_LONGEST, _LINE = 40, 98
#: A page of the documentation, as docstrings name it.
_PAGE = re.compile(r"``docs/([\w-]+)\.md``")
_INTRODUCTION = """\
<!-- This page is written by: mest-fed config --format markdown > docs/configuration.md -->

# Configuration

A run is one TOML file: `mest-fed simulate my.toml`, or a preset, with single keys changed by
`--set section.key=value`. Every key has a default. A wrong key or value is one line that says what
is allowed, and status 2. A key of the type *name* also takes `package.module:attribute` or
`file.py:attribute`: [things of your own](own.md).

`mest-fed config` prints all of it, `mest-fed config server` a section, `mest-fed config
server.mode` a key. `mest-fed config --format toml > my.toml` writes a file to start from.

The value after `--set` is read as TOML, or as text where it is none: `2` and `nan` are numbers,
`true` is a truth value, `mnist` is text. A text that looks like something else needs the quotes of
TOML, within those of the shell: `--set 'data.options.mode="nan"'`.
"""


class ConfigFormat(StrEnum):
    """How other programs, and people's files, get the configuration's keys."""

    JSON = "json"
    TOML = "toml"
    MARKDOWN = "markdown"


def plain(text: str) -> str:
    """Return a meaning without the marks of code."""
    return text.replace("``", "")


def toml_value(value: object) -> str:
    """Write a default as it stands in a TOML file."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else f"{value}"


def shortened(value: object) -> str:
    """Write a default for a table, a long one without its end."""
    text = toml_value(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + '..."'


def allowed_in_full(key: ConfigKey) -> str:
    """Say what a key takes, references included."""
    return ", ".join([key.allowed, *key.references])


def as_tabs(sections: Sections) -> str:
    """Return a header and a row for each key, their columns apart by tabs."""
    rows = [("key", "type", "default", "allowed", "meaning")]
    rows += [
        (it.full_name, it.type, toml_value(it.default), allowed_in_full(it), plain(it.meaning))
        for section in sections
        for it in section.keys
    ]
    return "\n".join(map("\t".join, rows))


def as_json(sections: Sections) -> str:
    """Return a list with a table for each key."""
    return json.dumps([_table(it) for section in sections for it in section.keys], indent=2)


def _table(key: ConfigKey) -> dict[str, Any]:
    return {
        "key": key.full_name,
        "type": key.type,
        "default": key.default,
        "names": list(key.names),
        "allowed": allowed_in_full(key),
        "called": key.called,
        "meaning": plain(key.meaning),
    }


def as_toml(sections: Sections) -> str:
    """Return a configuration of all defaults, with what each key means in comments."""
    return "\n".join(_toml_lines(sections))


def _toml_lines(sections: Sections) -> Iterator[str]:
    yield "# A configuration of mest-fed; the values are the defaults. Run it with:"
    yield "#   mest-fed simulate FILE"
    for section in sections:
        yield ""
        yield from _comment(section.meaning)
        yield f"[{section.name}]"
        for key in section.keys:
            yield ""
            yield from _comment(key.meaning)
            yield from _comment(f"{key.type}: {key.allowed}" + (", or your own" * bool(key.called)))
            yield f"{key.name} = {toml_value(key.default)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        plain(text),
        _LINE,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def as_markdown(sections: Sections) -> str:
    """Return the page of the documentation, or sections of it."""
    introduction = [_INTRODUCTION] if sections == config_sections() else []
    return "\n".join([*introduction, *(_part(section) for section in sections)]).rstrip()


def _part(section: ConfigSection) -> str:
    lines = [f"## [{section.name}]", "", section.meaning, ""]
    lines += ["| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for key in section.keys:
        names = ", ".join(f"`{name}`" for name in key.names)
        cells = [f"`{key.name}`", key.type, f"`{shortened(key.default)}`"]
        cells += [names or _cell(key.form), _cell(_PAGE.sub(r"[\1](\1.md)", key.meaning))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


#: Format -> what writes it.
WRITERS: Mapping[ConfigFormat, Callable[[Sections], str]] = MappingProxyType(
    {
        ConfigFormat.JSON: as_json,
        ConfigFormat.TOML: as_toml,
        ConfigFormat.MARKDOWN: as_markdown,
    }
)
