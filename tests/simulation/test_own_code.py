"""Sources of a user's own modules, imported where the files are not."""

import subprocess
import sys

import cloudpickle

from mest_fed.own_code import OwnCode

SEND = """
import sys
import cloudpickle
from mest_fed.registry import resolve
from mest_fed.own_code import OwnCode

assert resolve(sys.argv[1] + "/nets.py:build")() == 7
assert resolve("pack.inner.deep:value") == 3
open(sys.argv[2], "wb").write(cloudpickle.dumps(OwnCode.imported()))
"""
RECEIVE = """
import inspect
import sys
import cloudpickle
from mest_fed.registry import resolve

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
