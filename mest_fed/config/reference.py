"""What every key of the run configuration is: type, default, allowed values and meaning.

All of it is read off :class:`RunConfig`: types, checks, and the docstrings of attributes, which
need the source (an installed package has it). ``mest-fed config`` and ``docs/configuration.md`` are
written from it.
"""

import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any

from mest_fed.config.base import Form, Named, Section, is_table
from mest_fed.config.load import current_key, table_key, unknown_key
from mest_fed.config.sections import RunConfig
from mest_fed.errors import InputError
from mest_fed.references import REFERENCES
from mest_fed.registry import Registry

_TYPES = {int: "whole number", float: "number", bool: "truth value"}
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


@dataclass(frozen=True)
class ConfigKey:
    """A key of the configuration.

    Parameters
    ----------
    section, name : str
        Where it stands.
    type : str
        ``text``, ``name`` (a text, of something that may be a user's own), ``whole number``,
        ``number``, ``truth value`` or ``table``.
    default : object
        Its value where nothing is said.
    meaning : str
        What it does: plain text with ````code````.
    names : tuple of str
        The values that it takes, where it takes certain ones.
    form : str
        What it takes else, in words.
    called : str
        How a thing of a user's own is called, which the key takes by a reference; empty where it
        takes none.
    """

    section: str
    name: str
    type: str
    default: Any
    meaning: str
    names: tuple[str, ...] = ()
    form: str = ""
    called: str = ""

    @property
    def full_name(self) -> str:
        """The key as ``section.key``."""
        return f"{self.section}.{self.name}"

    @property
    def references(self) -> tuple[str, ...]:
        """The forms of a reference, if the key takes one."""
        return REFERENCES if self.called else ()

    @property
    def allowed(self) -> str:
        """What it takes, for people; references are not listed."""
        return ", ".join(self.names) or self.form


@dataclass(frozen=True)
class ConfigSection:
    """A section of the configuration, with its keys in order."""

    name: str
    meaning: str
    keys: tuple[ConfigKey, ...]


@cache
def config_sections() -> tuple[ConfigSection, ...]:
    """Return all sections of the configuration, in order."""
    sections = ((name, type(field.default)) for name, field in RunConfig.model_fields.items())
    return tuple(
        ConfigSection(name, inspect.getdoc(model) or "", _keys(name, model))
        for name, model in sections
    )


def section_names() -> list[str]:
    """Return the names of the sections, in order."""
    return list(RunConfig.model_fields)


def find_sections(name: str | None) -> Sequence[ConfigSection]:
    """Return the sections that a person asks for, with the keys asked for.

    Parameters
    ----------
    name : str or None
        A section, or ``section.key``, also as earlier versions called it; None for all.

    Raises
    ------
    InputError
        If there is no such section or key.
    """
    if name is None:
        return config_sections()
    wanted = name.strip().removeprefix("[").removesuffix("]")
    section, dot, key = current_key(wanted).partition(".")
    for each in config_sections():
        if each.name == section and not dot:
            return [each]
        if each.name == section and table_key(f"{section}.{key}"):
            key = key.partition(".")[0]
        chosen = tuple(it for it in each.keys if it.full_name == f"{section}.{key}")
        if chosen:
            return [ConfigSection(each.name, each.meaning, chosen)]
    if section in section_names():
        raise unknown_key(wanted, "config")
    raise _no_section(wanted)


def _no_section(name: str) -> InputError:
    """Build the error for what is no section: it may be the name of a key without its section."""
    key = name.rpartition(".")[2]
    near = [it.full_name for each in config_sections() for it in each.keys if it.name == key]
    near = near or get_close_matches(name, section_names(), n=1)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(
        f"unknown section {name}; {hint}allowed: {', '.join(section_names())}, or section.key"
    )


def _keys(section: str, model: type[Section]) -> tuple[ConfigKey, ...]:
    meanings = attribute_docstrings(model)
    return tuple(
        _key(section, name, field, " ".join(meanings.get(name, "").split()))
        for name, field in model.model_fields.items()
    )


def _key(section: str, name: str, field: Any, meaning: str) -> ConfigKey:
    checks = [getattr(check, "func", None) for check in field.metadata]
    named = next((check for check in checks if isinstance(check, Named)), None)
    kind = "table" if is_table in checks else _TYPES.get(field.annotation, "text")
    default = {} if kind == "table" else field.default
    if named is None:
        return ConfigKey(section, name, kind, default, meaning, *_values(field))
    called, names = "", tuple(named.names)
    if isinstance(named.choices, Registry):
        kind, called = "name", named.choices.called
    return ConfigKey(section, name, kind, default, meaning, names, called=called)


def _values(field: Any) -> tuple[tuple[str, ...], str]:
    """Return the values of a key that takes no name: certain ones, or a phrase."""
    if field.annotation is bool:
        return ("true", "false"), ""
    forms = [check.text for check in field.metadata if isinstance(check, Form)]
    bounds = [
        f"{sign} {_number(getattr(check, name))}"
        for check in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(check, name, None) is not None
    ]
    return (), ", ".join(forms or bounds) or "any"


def _number(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def attribute_docstrings(model: type) -> dict[str, str]:
    """Return the string that follows each attribute of a class, as its source has it."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for before, after in pairwise(definition.body):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
            found[ast.unparse(before.target)] = str(ast.literal_eval(after.value))
    return found
