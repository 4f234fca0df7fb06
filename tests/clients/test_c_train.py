"""The example in C trains what Python trains, to the last bit; its files go through the command."""

import re
import sys
from contextlib import suppress

import numpy as np
import pytest
from c_build import c_program, is_alike, run
from c_samples import linear_program, linear_weights, mlp_programs

from mest_fed import cli
from mest_fed.cli.planning.request import read_request
from mest_fed.cli.programs.files import PROGRAM, WEIGHTS, export_step
from mest_fed.cli.programs.report import ProgramReport
from mest_fed.runtime.flat import flat_program, read_arrays, write_arrays
from mest_fed.runtime.step import CompiledStep

RATE = 0.1
#: Of ResNet-8 at a batch of 16, all of the process.
MOST_KB = 24_000


class Case:
    """Files of a step, and the same step in Python."""

    def __init__(self, folder, program, weights):
        self.folder = folder
        (folder / "step.program").write_bytes(flat_program(program))
        write_arrays(folder / "weights.arrays", weights)
        self.step = CompiledStep(program)
        for name, array in weights.items():
            self.step.load(name, array)

    def train(self, x, targets, epochs, batch):
        write_arrays(self.folder / "examples.arrays", {"input": x, "targets": targets})
        names = ("step.program", "weights.arrays", "examples.arrays")
        files = [self.folder / name for name in names]
        trained = self.folder / "trained.arrays"
        said = run(c_program("mest_train"), *files, epochs, RATE, batch, trained)
        assert said.returncode == 0, said.stderr
        self.said = said.stdout
        return read_arrays(trained)

    def expected(self, x, targets, epochs, batch):
        group = self.step.program.examples
        whole = len(x) // group * group
        losses = []
        for _ in range(epochs):
            parts = [slice(at, min(at + batch, whole)) for at in range(0, whole, batch)]
            found = [self.step.step(x[it], targets[it], RATE) for it in parts]
            counts = [count_of(targets[it]) for it in parts]
            losses.append(sum(a * b for a, b in zip(found, counts, strict=True)) / sum(counts))
        return losses


def count_of(targets):
    return int((targets >= 0).sum()) if targets.dtype == np.int64 else len(targets)


def check(case, x, targets, epochs, batch):
    trained = case.train(x, targets, epochs, batch)
    losses = case.expected(x, targets, epochs, batch)
    said = [float(it) for it in re.findall(r"epoch \d+: loss (\S+)", case.said)]
    np.testing.assert_allclose(said, losses, atol=2e-5)
    assert trained.keys() == case.step.arrays.keys()
    for name, array in case.step.arrays.items():
        if is_alike():
            assert trained[name].tobytes() == array.tobytes(), name
        else:  # another processor adds up in another order
            np.testing.assert_allclose(trained[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_linear_classifier_has_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    case = Case(tmp_path, linear_program(), linear_weights())
    x = rng.normal(size=(23, 3)).astype(np.float32)
    targets = rng.integers(-1, 2, 23)  # those that are -1 do not count
    check(case, x, targets, epochs=3, batch=8)
    assert "left out, being no whole group of 4: 3" in case.said
    arena = re.search(r"arena: (\d+) bytes", case.said).group(1)
    assert int(arena) == case.step.arena_bytes


def test_a_regression_has_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    programs = mlp_programs()
    captured = programs.captured(4)
    case = Case(tmp_path, programs.of(captured), captured.arrays())
    x, targets = (rng.normal(size=(12, n)).astype(np.float32) for n in (4, 3))
    check(case, x, targets, epochs=4, batch=12)


@pytest.fixture(scope="module")
def report():
    """The quickstart's model, batches of 16."""
    options = {"model.name": "resnet8", "model.width": 2.0, "training.batch_size": 16}
    return ProgramReport.of(read_request((None, None), options, (), ("1x8x8", 10)))


def test_resnet8_has_the_same_bits_and_takes_little_memory(report, tmp_path):
    export_step(report, tmp_path)
    rng = np.random.default_rng(0)
    case = Case(tmp_path, report.program, read_arrays(tmp_path / WEIGHTS))
    x = rng.normal(size=(64, 1, 8, 8)).astype(np.float32)
    check(case, x, rng.integers(0, 10, 64), epochs=2, batch=16)
    assert f"arena: {report.arena.peak} bytes" in case.said
    if is_alike():  # measured; sanitizers and emulators take more
        peak = int(re.search(r"peak of the process: (\d+) kB", case.said).group(1))
        assert peak < MOST_KB


def test_the_command_writes_a_program_and_weights(report, tmp_path, capsys, monkeypatch):
    options = ["--width", "2", "--batch", "16", "--image", "1x8x8", "--classes", "10"]
    command = ["mest-fed", "program", "resnet8", *options, "--export", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with suppress(SystemExit):
        cli.main()
    assert f"program and weights: {tmp_path / 'out'}" in capsys.readouterr().out
    assert (tmp_path / "out" / PROGRAM).read_bytes() == flat_program(report.program)
    weights = read_arrays(tmp_path / "out" / WEIGHTS)
    assert weights["stage1.0.conv1.slots"].dtype == np.int32
    assert weights.keys() <= {it.name for it in report.program.buffers}


@pytest.mark.parametrize(
    ("file", "data", "error"),
    [
        ("weights.arrays", b"", "is no file of arrays of version 1"),
        ("step.program", b"MESTPROG" * 20, "version "),
        ("step.program", b"MESTPROG", "a file of 8 bytes; allowed"),
        ("examples.arrays", b"MESTDATA" + b"\1" + bytes(15), "has no more arrays"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, file, data, error):
    case = Case(tmp_path, linear_program(), linear_weights())
    case.train(np.zeros((4, 3), np.float32), np.zeros(4, np.int64), 1, 4)
    (tmp_path / file).write_bytes(data)
    names = ("step.program", "weights.arrays", "examples.arrays")
    files = [tmp_path / name for name in names]
    said = run(c_program("mest_train"), *files, 1, RATE, 4, tmp_path / "out")
    assert said.returncode == 2
    assert error in said.stderr
    assert said.stderr.startswith(f"error: {tmp_path / file}: ")
    assert said.stderr.count("\n") == 1


def test_a_result_that_cannot_be_written_is_found_before_training(tmp_path):
    case = Case(tmp_path, linear_program(), linear_weights())
    case.train(np.zeros((4, 3), np.float32), np.zeros(4, np.int64), 1, 4)
    assert f"trained weights: {tmp_path / 'trained.arrays'}" in case.said
    names = ("step.program", "weights.arrays", "examples.arrays")
    files = [tmp_path / name for name in names]
    place = tmp_path / "none" / "out.arrays"
    said = run(c_program("mest_train"), *files, 1, RATE, 4, place)
    assert said.returncode == 2
    assert said.stderr == f"error: {place}: cannot be written: No such file or directory\n"
    assert said.stdout == ""
    # What is there stays as it is where training cannot begin, and nothing comes to be.
    kept, new = tmp_path / "kept.arrays", tmp_path / "new.arrays"
    kept.write_bytes(b"kept")
    for each in (kept, new):
        said = run(c_program("mest_train"), tmp_path / "absent", *files[1:], 1, RATE, 4, each)
        assert said.returncode == 2
        assert said.stderr == f"error: {tmp_path / 'absent'}: No such file or directory\n"
    assert kept.read_bytes() == b"kept"
    assert not new.exists()


def test_a_batch_that_is_no_whole_group_is_one_line(tmp_path):
    case = Case(tmp_path, linear_program(), linear_weights())
    case.train(np.zeros((4, 3), np.float32), np.zeros(4, np.int64), 1, 4)
    names = ("step.program", "weights.arrays", "examples.arrays")
    files = [tmp_path / name for name in names]
    said = run(c_program("mest_train"), *files, 1, RATE, 6, tmp_path / "out")
    assert said.returncode == 2
    assert said.stderr == "error: BATCH = 6; allowed: a multiple of 4, the program's examples\n"
