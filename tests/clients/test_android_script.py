"""The script of phones: the node ends with it, and the wake-lock does in any case."""

import os
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "clients" / "android" / "start.sh"
NODE = """#!/bin/sh
trap 'echo node ends; exit 143' TERM
echo "$@" > arguments
[ -e short ] && exit 4
while :; do sleep 0.05; done
"""


@pytest.fixture
def phone(tmp_path):
    """Return the environment of a phone whose programs only say what they would do."""
    programs = {
        "termux-wake-lock": "#!/bin/sh\necho locked\n",
        "termux-wake-unlock": "#!/bin/sh\necho unlocked\n",
        "termux-battery-status": "#!/bin/sh\ncat battery\n",
        "python": NODE,
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (tmp_path / "battery").write_text('{"plugged": "PLUGGED_AC"}')
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def start(phone, folder):
    command = ["sh", str(SCRIPT), "home:9443", "examples.npz", "rpi-4", "--threads", "2"]
    return subprocess.Popen(command, env=phone, cwd=folder, stdout=subprocess.PIPE, text=True)


def test_sigterm_ends_the_node_and_gives_the_wake_lock_back(phone, tmp_path):
    process = start(phone, tmp_path)
    while not (tmp_path / "arguments").exists():
        time.sleep(0.02)
    process.terminate()
    said, _ = process.communicate(timeout=10)
    assert (process.returncode, said.split("\n")) == (143, ["locked", "node ends", "unlocked", ""])
    arguments = (tmp_path / "arguments").read_text()
    assert "--link home:9443 --data examples.npz --device rpi-4" in arguments
    assert arguments.endswith("--threads 2\n")


def test_the_status_of_a_node_that_ends_is_the_scripts(phone, tmp_path):
    (tmp_path / "short").touch()
    process = start(phone, tmp_path)
    said, _ = process.communicate(timeout=10)
    assert (process.returncode, said) == (4, "locked\nunlocked\n")


def test_a_phone_that_is_not_plugged_in_does_not_begin(phone, tmp_path):
    (tmp_path / "battery").write_text('{"plugged": "UNPLUGGED"}')
    process = start(phone, tmp_path)
    said, _ = process.communicate(timeout=10)
    assert (process.returncode, said) == (1, "")
