"""Where the programs in C of a build are: the one of the editable install, or MEST_C_BUILD's."""

import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]


@cache
def c_program(name):
    """Return the command of a program in C, built if need be; skip where there is no build."""
    given = os.environ.get("MEST_C_BUILD")
    folders = [Path(given)] if given else sorted((ROOT / "build" / "editable").glob("*/"))
    if not folders:
        pytest.skip("nothing was built here; MEST_C_BUILD=FOLDER names a build by cmake")
    folder = folders[-1]
    ninja = _builder(folder)
    if not given and ninja is not None:
        with FileLock(folder / "c_build.lock"):  # tests of another process build, too
            made = subprocess.run([ninja, "-C", folder, name], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"{name} was not built: {made.stdout[-300:]}")
    if not (folder / name).exists():
        pytest.skip(f"{folder} has no {name}")
    return [*shlex.split(os.environ.get("MEST_C_EMULATOR", "")), str(folder / name)]


def _builder(folder):
    """Return the ninja that built a folder: one of another version builds all of it again."""
    cache = folder / "CMakeCache.txt"
    lines = cache.read_text().splitlines() if cache.exists() else []
    named = [line.partition("=")[2] for line in lines if line.startswith("CMAKE_MAKE_PROGRAM:")]
    # pytest's own bin folder has a ninja where the environment is the project's
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    return next((it for it in named if os.access(it, os.X_OK)), shutil.which("ninja", path=path))


def is_alike():
    """Say whether programs are compiled as the package is, for this machine: the same bits."""
    return os.environ.get("MEST_C_ALIKE", "1") == "1"


def run(command, *arguments, **how):
    """Run a program; return what it says."""
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, **how
    )
