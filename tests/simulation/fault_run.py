"""Runs of the command line with the client of fault_apps.py; as a script, the command line."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mest_fed.config import to_toml

SECONDS = 90


@dataclass
class Folders:
    """Where a run and what disturbs it leave their files.

    Parameters
    ----------
    base : Path
        An empty folder.
    config : RunConfig
        The run.
    """

    base: Path
    config: object

    def __post_init__(self):
        self.run = self.base / "run"
        self.faults = self.base / "faults"
        self.faults.mkdir()
        self.config_file = self.base / "tiny.toml"
        self.config_file.write_text(to_toml(self.config), encoding="utf-8")
        self.started = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """End what still runs, so that a test that fails disturbs no other."""
        for run in self.started:
            with run:
                run.kill()

    def simulate(self, *options, resume=False, **environment):
        """Start ``mest-fed simulate`` in a process of its own."""
        source = ["--resume"] if resume else ["--config", str(self.config_file)]
        command = [sys.executable, __file__, "simulate", *source, "--out", str(self.run)]
        run = subprocess.Popen(
            [*command, "--quiet", *options],
            env=os.environ | {"MEST_FAULTS": str(self.faults)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(run)
        return run

    def held(self, run):
        """Wait until a client holds still; return the id of its process."""
        end = time.monotonic() + SECONDS
        while not (self.faults / "held").exists():
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        return int((self.faults / "held").read_text(encoding="utf-8"))


def finish(run):
    """Wait for the end; return exit status and what was written to standard error."""
    try:
        _, errors = run.communicate(timeout=SECONDS)
    finally:
        run.kill()
    return run.returncode, errors


def main():
    """Run the command line; memory is not measured."""
    import mest_fed.simulation.simulate
    from mest_fed.cli import main as command_line
    from mest_fed.simulation.peak_measurement import PeakMeasurement

    mest_fed.simulation.simulate.CLIENT_APP = "fault_apps:app"
    PeakMeasurement.start = lambda *_: PeakMeasurement(None)
    command_line()


if __name__ == "__main__":
    main()
