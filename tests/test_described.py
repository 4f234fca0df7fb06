"""How errors and values read in the lines that name them."""

import json
import os
import sys

import pytest

from mest_fed.described import LONGEST, described, is_installed, kind_of, one_line


def raised(call, *args):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call(*args)
    return described(caught.value)


def test_a_value_has_its_article():
    given = (3, 0.5, None, int, OSError())
    assert [kind_of(it) for it in given] == [
        "an int",
        "a float",
        "None",
        "the class int",
        "an OSError",
    ]


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_the_place_is_the_users_line_whichever_environment_the_package_is_in(tmp_path, folder):
    """The interpreter's own prefix says nothing about packages of another one."""
    package = tmp_path / "other" / "lib" / folder / "deep.py"
    package.parent.mkdir(parents=True)
    package.write_text("def fails():\n    raise KeyError('x')\n", encoding="utf-8")
    scope = {}
    exec(compile(package.read_text(encoding="utf-8"), str(package), "exec"), scope)
    own = tmp_path / "own.py"
    text = "def load():\n    return fails()\n"
    exec(compile(text, str(own), "exec"), scope)
    assert raised(scope["load"]) == f"KeyError: 'x' ({own}:2)"


def test_the_place_is_not_in_pythons_library(monkeypatch, tmp_path):
    """In a virtual environment the library is outside ``sys.prefix``."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    line = test_the_place_is_not_in_pythons_library.__code__.co_firstlineno
    assert raised(lambda: json.loads("{")).endswith(f"({__file__}:{line + 4})")
    assert is_installed(json.__file__)


def test_a_folder_with_a_like_name_is_not_the_package():
    folder = os.path.dirname(sys.modules[described.__module__].__file__)
    assert is_installed(f"{folder}/own.py")
    assert not is_installed(f"{folder}_of_mine/own.py")


def test_what_an_error_says_is_a_line():
    assert one_line(ValueError("a\n  b\n")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert raised(int, "x" * 9).startswith("ValueError: invalid literal")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("word " * 200, "word …"),
        ("A sentence of some length. " * 20 + "more " * 40, "length. …"),
        ("x" * 1000, "x …"),
    ],
)
def test_a_long_text_ends_after_a_sentence_or_a_word(text, end):
    line = one_line(ValueError(text))
    assert line.endswith(end)
    assert LONGEST // 2 < len(line) <= LONGEST
    assert text.startswith(line.removesuffix(" …"))
