"""The pages that are made from the code say something of everything, and say it right."""

import inspect
import re
from dataclasses import is_dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import griffe
import pytest

import mest_fed
from mest_fed.config import RunConfig, to_flat

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def load(name):
    spec = spec_from_file_location(name, REFERENCE / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = load("make_reference")
#: Sections of those pages that are no examples.
GUIDES = {
    "A home network, step by step",
    "Updates that do harm",
    "Nodes of both kinds in one run",
    "A server as a service",
    "What there is",
    "What they cost",
    "What differs from the papers",
}
#: What divides cells: a bar that is neither in code nor behind a backslash.
BAR = re.compile(r"(?<!\\)\|(?=(?:[^`]*`[^`]*`)*[^`]*$)")


def cells(page):
    """Return the cells of all rows of a page's tables that begin with code."""
    rows = [line for line in "\n".join(page).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in BAR.split(row)[1:-1]] for row in rows]


def test_each_key_of_the_configuration_has_a_meaning():
    rows = cells((PAGES.DOCS / "configuration.md").read_text(encoding="utf-8").splitlines())
    assert [row[0].strip("`") for row in rows] == [
        key.partition(".")[2] for key in to_flat(RunConfig())
    ]
    assert [row for row in rows if len(row) != 5 or not all(row)] == []


def test_each_argument_of_a_command_has_a_meaning():
    rows = cells(PAGES.commands())
    assert rows
    assert [row for row in rows if len(row) != 3 or not row[1]] == []


def test_each_kind_of_the_catalogue_has_a_row_that_says_how_it_is_called():
    rows = cells(PAGES.catalogue_table())
    assert [row[0] for row in rows] == [
        ", ".join(f"`{key}`" for key in registry.key.split(" or "))
        for registry in PAGES.registries()
    ]
    assert [row for row in rows if not row[1] or "(" not in row[2]] == []


def test_each_example_is_of_a_kind_of_the_catalogue():
    keys = {key for registry in PAGES.registries() for key in registry.key.split(" or ")}
    for page in ("methods.md", "server.md", "clients.md", "fleet.md"):
        headings = PAGES.HEADING.findall((PAGES.DOCS / page).read_text(encoding="utf-8"))
        for heading in set(headings) - GUIDES:
            named = re.findall(r"`([^`]+)`", heading)
            assert named
            assert {name.rpartition(" ")[2] for name in named} <= keys


@pytest.fixture(scope="module")
def package():
    """Return the package as the library reference reads it."""
    extensions = griffe.load_extensions(load("one_item_each").OneItemEach)
    return griffe.load("mest_fed", extensions=extensions, docstring_parser="numpy")


def has_own_parameters(thing):
    """Say whether a thing's docstring has to say what its parameters are."""
    if not isinstance(thing, type) or getattr(thing, "_is_protocol", False):
        return not isinstance(thing, type)
    is_record = is_dataclass(thing) and bool(vars(thing).get("__annotations__"))
    return is_record or ("__init__" in vars(thing) and not issubclass(thing, RunConfig))


@pytest.mark.parametrize("name", mest_fed.__all__)
def test_the_documented_parameters_are_those_of_the_signature(name, package):
    thing = getattr(mest_fed, name)
    if not callable(thing) or not thing.__module__.startswith("mest_fed"):
        return
    shown = package[f"{thing.__module__}.{thing.__qualname__}".removeprefix("mest_fed.")]
    sections = shown.docstring.parse("numpy")
    documented = {
        item.name.lstrip("*"): item
        for section in sections
        if section.kind is griffe.DocstringSectionKind.parameters
        for item in section.value
    }
    if not documented and not has_own_parameters(thing):
        return
    expected = inspect.signature(thing).parameters
    own = {key: item for key, item in expected.items() if not inherited(thing, key)}
    assert documented.keys() <= expected.keys()
    assert own.keys() <= documented.keys()
    for key, item in documented.items():
        if key in shown.parameters and "*" not in item.name:
            assert str(item.default) == str(shown.parameters[key].default), key
            if f"\n{key} : " not in shown.docstring.value:
                assert str(item.annotation) == str(shown.parameters[key].annotation), key


def inherited(thing, field):
    """Say whether a field of a dataclass is documented in a base class."""
    return is_dataclass(thing) and field not in vars(thing).get("__annotations__", {})


def test_parameters_that_share_an_item_have_their_own_types():
    divided = load("one_item_each").divided
    before, shared = "Do.\n\nParameters\n----------\n", "a, b : int\n    Both.\n"
    after = "c\n    One.\n\nRaises\n------\nE, F\n    No."
    each = "a : int\n    Both.\nb : int\n    Both.\n"
    assert divided(before + shared + after) == before + each + after
