"""Names and references: what is found, what is refused, and how a refusal reads."""

import subprocess
import sys

import pytest

from mest_fed.errors import InputError
from mest_fed.references import reference_of
from mest_fed.registry import Registry, accepted

OWN = """
import beside

def build(first, second=2, *, third=3):
    return [first, second, third]

def few(first):
    return first

class Holder:
    inner = dict
    def method(self): ...

number = 7

def broken(*args):
    raise KeyError("gone\\nfor ever")
"""


@pytest.fixture
def things():
    return Registry(
        "a.key",
        {"list": "builtins:list", "dict": "collections:OrderedDict"},
        with_argument={"times:N": "operator:itemgetter"},
    )


@pytest.fixture
def file(tmp_path, request):
    # A name of its own for each test: the module beside the file is imported by its name.
    path = tmp_path / f"own_{request.node.name.partition('[')[0]}.py"
    path.write_text(OWN.replace("import beside", f"import {path.stem}_beside"))
    (tmp_path / f"{path.stem}_beside.py").write_text("")
    return path


def refusal(call, *args, **options):
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("a.key = ")
    return text


def test_a_mapping_of_what_is_registered(things):
    assert list(things) == ["list", "dict"]
    assert len(things) == 2
    assert "list" in things
    assert "times:3" not in things
    assert things["list"] is list
    with pytest.raises(KeyError):
        things["set"]


def test_names_references_and_names_with_an_argument_are_found(things, file):
    assert things.find("list") is list
    assert things.find("collections:OrderedDict") is things["dict"]
    assert things.find(f"{file}:Holder.inner") is dict
    assert things.build("times:3", {"3": "third"}) == "third"


def test_a_thing_gets_the_arguments_that_it_takes(things, file):
    assert things.build(f"{file}:build", 1) == [1, 2, 3]
    assert things.build(f"{file}:build", 1, 5, third=4, fourth=6) == [1, 5, 4]
    assert things.build(f"{file}:build", 1, second=8) == [1, 8, 3]
    assert things.build(f"{file}:few", 1, 5, third=4) == 1
    assert things.takes(f"{file}:build", "third")
    assert not things.takes(f"{file}:few", "third")


def test_a_file_is_executed_once_in_a_process(things, file, monkeypatch):
    found = things.find(f"{file}:Holder")
    monkeypatch.chdir(file.parent)
    for path in (file.name, f"./{file.name}", f"../{file.parent.name}/{file.name}"):
        assert Registry("other.key", {}).find(f"{path}:Holder") is found


def test_paths_become_absolute(things, file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert things.check("x.py:f") == f"{file.parent}/x.py:f"
    assert things.check("sub/x.py:f", file.parent / "other") == f"{file.parent}/other/sub/x.py:f"
    assert things.check("/x.py:f", file.parent) == "/x.py:f"
    assert things.check("package.module:f") == "package.module:f"
    assert things.check("list") == "list"


@pytest.mark.parametrize(
    "name", ["set", "", "list:", ":list", "a b:c", "x.py:1", "x/y.txt:f", "x.py"]
)
def test_what_is_no_name(things, name):
    for call in (things.check, things.find):
        text = refusal(call, name)
        assert text.endswith(
            "allowed: list, dict, times:N, package.module:attribute, file.py:attribute"
        )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no.such.package:x", "cannot import no.such.package: ModuleNotFoundError"),
        ("collections:nothing", "collections has no attribute 'nothing'"),
        ("/no/such/file.py:f", "no such file: /no/such/file.py"),
        ("{file}:number", "is an int; allowed: a function or class"),
        ("{file}:Holder.outer", "has no attribute 'Holder.outer'"),
    ],
)
def test_references_that_lead_nowhere(things, file, name, words):
    assert words in refusal(things.find, name.format(file=file))


def test_a_file_that_raises_names_its_line(things, tmp_path):
    path = tmp_path / "raises.py"
    path.write_text("x = 1\n1 / 0\n")
    assert f"ZeroDivisionError: division by zero ({path}:2)" in refusal(things.find, f"{path}:x")
    path.write_text("x = (\n")
    assert "SyntaxError" in refusal(things.find, f"{path}:x")
    path.write_text("x = list\n")
    assert things.find(f"{path}:x") is list  # what failed was not kept


def test_a_thing_that_raises_names_its_line(things, file):
    text = refusal(things.build, f"{file}:broken")
    assert "KeyError: 'gone" in text
    assert f"({file}:{OWN.splitlines().index('def broken(*args):') + 2})" in text


def test_a_thing_that_makes_something_else(file):
    numbers = Registry("a.key", {"int": "builtins:int"}, makes="numbers:Number")
    assert numbers.build("int", "7") == 7
    text = refusal(numbers.build, f"{file}:few", None)
    assert text.endswith("gives None; allowed: what gives a numbers.Number")
    assert "gives a list" in refusal(numbers.build, f"{file}:build", 1)


def test_faults_of_our_own_keep_their_traceback(things):
    with pytest.raises(TypeError):
        things.build("list", 3)


def test_what_is_registered_is_found_and_refused_by_name(things):
    @things.register("mine")
    def mine():
        return "made"

    assert things.build("mine") == "made"
    assert "mine" in things
    assert "mine" in things.allowed
    things.register("mine")(mine)  # again, as when a module is reloaded
    for name in ("mine", "list", "a:b"):
        with pytest.raises(ValueError, match=repr(name)):
            things.register(name)(lambda: None)


def test_a_registered_thing_is_found_by_other_processes(things, tmp_path):
    things.register("here")(test_what_is_no_name)
    reference = things.check("here")
    assert reference == f"{__file__}:test_what_is_no_name"
    assert things.find(reference) is test_what_is_no_name
    assert things.check("list") == "list"
    things.register("nowhere")(lambda: None)  # no reference leads to it
    assert things.check("nowhere") == "nowhere"
    assert reference_of(InputError) == "mest_fed.errors:InputError"


@pytest.mark.soak
def test_the_script_that_runs_is_not_executed_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from mest_fed.catalogue import SELECTORS\n"
        "from mest_fed.config import from_table\n"
        "@SELECTORS.register('mine')\n"
        "class Mine: ...\n"
        "named = from_table({'server': {'selection': 'mine'}}, 'here').server.selection\n"
        "print(named, SELECTORS.find(named) is Mine)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{script}:Mine True\n"


def test_arguments_that_a_function_takes():
    class NoHash:
        __hash__ = None

        def __call__(self, first, *, option=0):
            return first, option

    for function in (lambda first, *, option=0: (first, option), NoHash()):
        for _ in range(2):
            args, options = accepted(function, (1, 2), {"option": 3, "other": 4})
            assert function(*args, **options) == (1, 3)
