"""Sources of a user's own modules, imported where the files are not."""

import gc
import subprocess
import sys
from types import ModuleType

import cloudpickle
import pytest

from mest_fed.own_code import OwnCode
from mest_fed.references import resolve

SEND = """
import sys
import cloudpickle
from mest_fed.references import resolve
from mest_fed.own_code import OwnCode

assert resolve(sys.argv[1] + "/nets.py:build")() == 7
assert resolve("pack.inner.deep:value") == 3
open(sys.argv[2], "wb").write(cloudpickle.dumps(OwnCode.imported()))
"""
RECEIVE = """
import inspect
import sys
import cloudpickle
from mest_fed.references import resolve

cloudpickle.load(open(sys.argv[2], "rb")).install()
build = resolve(sys.argv[1] + "/nets.py:build")
assert build() == 7
assert resolve("pack.inner.deep:value") == 3
assert "def build" in inspect.getsource(build)
assert build.__module__ == sys.argv[3]
"""


def run(code, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_process_without_the_files_imports_them(tmp_path):
    folder, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "pack" / "inner").mkdir(parents=True)
    (folder / "helper.py").write_text("SEVEN = 7\n")
    (folder / "nets.py").write_text("from helper import SEVEN\n\ndef build():\n    return SEVEN\n")
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "inner" / "deep.py").write_text("from pack import __name__\nvalue = 3\n")
    run(SEND, folder, tmp_path / "code", cwd=folder)
    code = cloudpickle.loads((tmp_path / "code").read_bytes())
    (name,) = [name for name in code.sources if name.startswith("nets_")]
    assert {"helper", "pack", "pack.inner", "pack.inner.deep"} <= code.sources.keys()
    folder.rename(tmp_path / "away")
    run(RECEIVE, folder, tmp_path / "code", name, cwd=elsewhere)


def test_installed_modules_are_not_sent():
    names = OwnCode.imported().sources
    assert not {"torch", "numpy", "json", "mest_fed", "pytest"} & names.keys()
    assert __name__ in names  # this test is the user's own


@pytest.fixture
def imports_of_others(monkeypatch):
    """Modules appear whenever garbage is collected, as those that other threads import."""
    made = []

    def another(phase, _):
        made.append(f"module_of_another_thread_{len(made)}")
        sys.modules[made[-1]] = ModuleType(made[-1])

    kept = gc.get_threshold()
    gc.callbacks.append(another)
    gc.set_threshold(1)
    yield made
    gc.set_threshold(*kept)
    gc.callbacks.remove(another)
    for name in made:
        del sys.modules[name]


def test_other_threads_may_import_meanwhile(imports_of_others, tmp_path):
    assert __name__ in OwnCode.imported().sources
    (tmp_path / "late.py").write_text("value = 5\n")
    assert resolve(f"{tmp_path}/late.py:value") == 5
    assert len(imports_of_others) > 1
