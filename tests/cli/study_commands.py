"""Small studies for the tests of ``mest-fed study``, and commands that do them."""

import csv
import io
import subprocess
import sys

import pyarrow.parquet
import pytest

from mest_fed import cli

SMALL = """
[study]
preset = "plain"
REFERENCE

[settings]
run.rounds = ROUNDS
run.checkpoint_every = 1
model.width = 0.25
training.device = "cpu"
server.clients_per_round = 2
server.evaluate_every = 5
server.evaluate_clients_every = 0
fleet.devices = 6
fleet.mix = "rpi-4:1"
behaviour.availability = "always"
"""
AXES = '[axes]\nmethod = ["static", "mest-em"]\nseed = [1]\n'
SEEDS = "[axes]\nseed = [1, 2]\n"
COMMAND = [sys.executable, "-c", "from mest_fed.cli import main; main()", "study"]
#: For a command that a test waits for.
PATIENCE = 240


def write_study(folder, axes=AXES, rounds=2):
    path = folder / "small.toml"
    reference = 'reference = { method = "static" }' if axes == AXES else ""
    text = SMALL.replace("ROUNDS", str(rounds)).replace("REFERENCE", reference)
    path.write_text(text + axes, encoding="utf-8")
    return path


def begin(*arguments, workers=0):
    """Start a study in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments):
    """Run a study to its end; return status, rows of standard output, standard error."""
    process = begin(*arguments)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, table_of(out), err


def run_here(monkeypatch, capsys, *arguments):
    """Run a study whose command is no process of its own, and so loads no libraries again.

    Returns its status and what it printed.
    """
    command = ["mest-fed", "study", *map(str, arguments), "--workers", "0"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def table_of(out):
    return list(csv.DictReader(io.StringIO(out), delimiter="\t"))


def rows_of(folder):
    return pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
