"""Seconds from the start of a fresh process to the end of its first training step."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
#: How a lean node's process is started: as ``mest-fed node`` becomes one.
FLAGS = {"lean": ["-OO"], "stock": []}
ENVIRONMENT: dict[str, dict[str, str]] = {"lean": {"MALLOC_ARENA_MAX": "1"}, "stock": {}}


@dataclass(frozen=True)
class FirstStep:
    """A fresh process that trained one batch.

    Parameters
    ----------
    parts : dict of str to float
        What ended then -> seconds since the mark before.
    update : str
        SHA-256 of what it made.
    """

    parts: dict[str, float]
    update: str

    @property
    def seconds(self) -> float:
        """From the start of the process to the end of its first step."""
        return sum(self.parts.values())


def prepare(folder: Path) -> None:
    """Write the files of a message, in a process of its own."""
    subprocess.run([sys.executable, HERE / "edge_prepare.py", folder], check=True)


def first_step(side: str, folder: Path) -> FirstStep:
    """Run a fresh process of a side; it finds compiled Python files and a warm file cache.

    Raises
    ------
    SystemExit
        If it fails.
    """
    command = [sys.executable, *FLAGS[side], HERE / "edge_process.py", side, folder]
    begin = time.monotonic()
    environment = os.environ | ENVIRONMENT[side]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: the {side} process failed\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    parts, before = {}, begin
    for mark, at in found["marks"].items():
        parts[mark], before = at - before, at
    return FirstStep(parts, found["update"])
