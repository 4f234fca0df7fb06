"""The native build: what it compiles, what a wheel carries, and that it can be done without."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "mest_fed" / "kernels"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["scikit-build"]["wheel"]["packages"]


def test_every_source_is_compiled():
    listed = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    sources = sorted(path.name for path in (KERNELS / "native").rglob("*.cpp"))
    assert sources
    assert [name for name in sources if f"${{NATIVE}}/{name}" not in listed] == []


def test_the_wheel_names_every_package():
    assert sorted(PACKAGES) == sorted(PROJECT["tool"]["importlinter"]["root_packages"])


@pytest.mark.skipif(not os.environ.get("MEST_REQUIRE_NATIVE"), reason="MEST_REQUIRE_NATIVE unset")
def test_what_must_be_native_is():
    from mest_fed.kernels import _native

    assert Path(_native.__file__).suffix == ".so"


def test_the_stub_names_what_the_module_has():
    native = pytest.importorskip("mest_fed.kernels._native")
    tree = ast.parse((KERNELS / "_native.pyi").read_text(encoding="utf-8"))
    assert {name for name in vars(native) if not name.startswith("_")} == set(stub_names(tree))


@pytest.mark.soak
def test_without_a_compiler_the_wheel_is_whole_but_for_the_module(tmp_path):
    environment = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    environment.pop("MEST_REQUIRE_NATIVE", None)
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet"]
    command += ["--no-build-isolation", "--config-settings", f"build-dir={tmp_path / 'build'}"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path)], env=environment, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert carried == package_files()


def stub_names(tree):
    """Name the public functions, classes and values of a stub."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.AnnAssign):
            name = node.target.id
        else:
            continue
        if not name.startswith("_"):
            yield name


def package_files():
    """List what the packages hold, but for the C++ sources and what Python leaves behind."""
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for folder, _, names in os.walk(ROOT / package, followlinks=True)  # presets are a link
        for path in (Path(folder) / name for name in names)
        if path.is_file()
        and "__pycache__" not in path.parts
        and "native" not in path.relative_to(ROOT).parts
    }
