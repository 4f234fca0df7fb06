"""``mest-fed config``: tables for people, programs and files."""

import io
import json
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from mest_fed.cli.config import print_sections
from mest_fed.cli.config_formats import as_markdown
from mest_fed.config import RunConfig, from_table
from mest_fed.config.reference import config_sections, find_sections

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def shown(name, width):
    out = io.StringIO()
    print_sections(find_sections(name), Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


def test_the_page_of_the_documentation_is_what_the_code_makes():
    made = as_markdown(config_sections())
    assert PAGE.read_text(encoding="utf-8") == f"{made}\n", (
        "run: mest-fed config --format markdown > docs/configuration.md"
    )


def test_in_a_pipe_there_is_a_row_for_each_key(says):
    rows = [line.split("\t") for line in says("config").splitlines()]
    assert rows[0] == ["key", "type", "default", "allowed", "meaning"]
    assert len(rows) == 1 + sum(len(section.keys) for section in config_sections())
    assert {len(row) for row in rows} == {5}
    assert [row[0] for row in rows if row[0] == "server.mode"] == ["server.mode"]


def test_the_toml_file_is_the_default_configuration(says):
    text = says("config", "--format", "toml")
    assert from_table(tomllib.loads(text), "the file") == RunConfig()
    assert "# Devices of the fleet." in text


def test_json_of_one_key(says):
    (key,) = json.loads(says("config", "server.mode", "--format", "json"))
    assert key["key"] == "server.mode"
    assert key["default"] == "sync"
    assert key["names"] == ["sync", "buffered", "semi-sync"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_key_and_its_values_stand_at_any_width(width):
    text = shown("server", width)
    assert max(map(len, text.splitlines())) <= width
    for key in find_sections("server")[0].keys:
        assert key.name in text
    assert "semi-sync" in text


def test_one_key_says_how_your_own_is_called():
    text = shown("sparsity.scheme", 80)
    for part in ("unstructured", "block:ROWS", '"block"', "file.py:attribute", "scheme(shape)"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sever"], "did you mean server?"),
        (["server.modes"], "did you mean server.mode?"),
        (["--format", "yaml"], "allowed: json, toml, markdown"),
    ],
)
def test_what_is_wrong_is_one_line(fails, arguments, said):
    assert said in fails("config", *arguments)
