"""The names that ``import mest_fed`` offers, and what they need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mest_fed
from mest_fed import devices


@pytest.mark.parametrize("package", [mest_fed, devices], ids=lambda it: it.__name__)
def test_every_name_is_there(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


@pytest.mark.parametrize("package", [mest_fed, devices], ids=lambda it: it.__name__)
def test_what_types_are_read_from_is_what_is_imported(package):
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: home for home, names in package._HOMES.items() for name in names}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'sparsly'"):
        mest_fed.sparsly  # noqa: B018


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, mest_fed; print({'torch', 'flwr', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_library_needs_torch_alone():
    blocked = ("flwr", "ray", "pydantic", "sklearn", "pyarrow")
    names = "sparsify, to_dense, Mutator, MestEM, SGD, memory_saving, Planner, GroupNorm"
    code = (
        f"import sys; sys.modules |= dict.fromkeys({blocked!r})\n"
        f"from mest_fed import {names}, limit_memory, load_profile, TaskStatus"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
