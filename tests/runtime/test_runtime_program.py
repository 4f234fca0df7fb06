"""Programs as JSON: the same program comes back, and no other is accepted."""

import copy
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from program_cases import linear_step

from mest_fed.errors import InputError
from mest_fed.runtime import reading
from mest_fed.runtime.build import Builder
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_checks import MOST_BYTES, MOST_OPERATORS
from mest_fed.runtime.program_parts import Operator
from mest_fed.runtime.reading import parse_program, read_program
from mest_fed.runtime.reference import Reference


@pytest.fixture(scope="module")
def table():
    return linear_step().as_table()


def test_a_program_comes_back_from_its_json(tmp_path):
    program = linear_step()
    again = parse_program(program.to_json())
    assert again == program
    assert again.sha256 == program.sha256
    path = tmp_path / "step.json"
    path.write_text(json.dumps(program.as_table(), indent=3))
    assert read_program(path).sha256 == program.sha256


def test_words_that_many_parts_have_stand_in_memory_once():
    again = parse_program(linear_step().to_json())
    words = [it.dtype for it in again.buffers] + [it.role for it in again.buffers]
    words += [it.name for it in again.operators]
    assert len({id(word) for word in words}) == len(set(words)) < len(words)


def test_the_digest_is_that_of_the_content():
    program = linear_step()
    other = Program(program.buffers, program.operators[:-1], (*program.phases[:2], 0))
    assert other.sha256 != program.sha256
    assert len(program.sha256) == 64


def test_one_step_by_hand():
    """One example of two features, no momentum yet: loss log(2), gradient (p - onehot) x."""
    program = linear_step()
    reference = Reference(program, {"w": np.zeros((2, 3))}, "float64")
    x = np.array([[1.0, 0, 0]] * 4)
    inputs = {"input": x, "targets": [0, 0, 0, 0], "rates": [0.5], "share": [0.25]}
    reference.step(inputs)
    assert reference.read("loss") == pytest.approx(np.log(2))
    assert reference.read("w") == pytest.approx(np.array([[0.25, 0, 0], [-0.25, 0, 0]]))
    assert reference.read("w:momentum_buffer") == pytest.approx(
        np.array([[-0.5, 0, 0], [0.5, 0, 0]])
    )
    gradient = 1 / (1 + np.exp(0.5)) * -1.0
    reference.step(inputs)
    assert reference.read("w:momentum_buffer")[0, 0] == pytest.approx(0.9 * -0.5 + gradient)


def test_work_and_bytes_by_hand():
    program = linear_step()
    rows = {it.name: (program.work(it), program.traffic(it)) for it in program.operators}
    assert rows["linear"] == (4 * 2 * 3, 4 * (4 * 3 + 2 * 3 + 4 * 2))
    assert rows["linear_weight_gradient"] == (4 * 2 * 3, 4 * (4 * 3 + 4 * 2 + 2 * 3))
    # gradient, rate, parameter and momentum are read, two of them written
    assert rows["sgd"] == (0, 4 * (3 * 6 + 1 + 2 * 6))


def put(*path, value):
    """Return a damage: a value at a place of the table."""

    def damage(table):
        for key in path[:-1]:
            table = table[key]
        if value is None:
            del table[path[-1]]
        else:
            table[path[-1]] = value

    return damage


def swap_operators(table):
    operators = table["operators"]
    operators[0], operators[1] = operators[1], operators[0]


def write_twice(table):
    table["operators"].insert(1, copy.deepcopy(table["operators"][0]))
    table["phases"]["forward"] += 1


#: What is done to the table of a program, and what the one line says.
DAMAGES = {
    "format": (put("format", value="onnx"), "format = 'onnx' is not allowed"),
    "version": (put("version", value=1), "version = 1 is not allowed; allowed: 2"),
    "version-bool": (put("version", value=True), "version = True is not allowed"),
    "key-missing": (put("phases", value=None), "program must be an object with the keys"),
    "key-more": (put("more", value=1), "program must be an object with the keys"),
    "buffers-kind": (put("buffers", value={}), "buffers must be a list"),
    "buffer-kind": (put("buffers", 0, value=[]), r"buffers\[0\] must be an object"),
    "buffer-key": (put("buffers", 0, "size", value=1), r"buffers\[0\] must be an object"),
    "name-kind": (put("buffers", 0, "name", value=1), r"buffers\[0\].name is not allowed"),
    "name-empty": (put("buffers", 0, "name", value=""), r"buffers\[0\].name is not allowed"),
    "name-line": (put("buffers", 0, "name", value="a\nb"), r"buffers\[0\].name is not allowed"),
    "name-long": (put("buffers", 0, "name", value="a" * 201), r"buffers\[0\].name is not allowed"),
    "name-twice": (put("buffers", 0, "name", value="w"), "two have one name"),
    "shape-kind": (put("buffers", 0, "shape", value="4"), r"buffers\[0\].shape is not allowed"),
    "shape-zero": (put("buffers", 0, "shape", value=[4, 0]), r"buffers\[0\].shape is not allowed"),
    "shape-less": (put("buffers", 0, "shape", value=[-4, -3]), r"\[0\].shape is not allowed"),
    "shape-float": (put("buffers", 0, "shape", value=[4.0, 3]), r"\[0\].shape is not allowed"),
    "shape-bool": (put("buffers", 0, "shape", value=[True, 3]), r"\[0\].shape is not allowed"),
    "shape-deep": (put("buffers", 0, "shape", value=[1] * 9), r"\[0\].shape is not allowed"),
    "shape-huge": (put("buffers", 0, "shape", value=[10**30]), r"\[0\].shape is not allowed"),
    "bytes": (put("buffers", 0, "shape", value=[2**20, 2**20]), r"buffers\[0\] takes .* allowed"),
    "dtype": (put("buffers", 0, "dtype", value="float64"), r"buffers\[0\].dtype = 'float64'"),
    "dtype-unused": (
        put("buffers", 0, "dtype", value="float16"),
        r"buffers\[0\].dtype: no operator takes float16; allowed: float32, bfloat16, uint8, int",
    ),
    "dtype-kind": (put("buffers", 0, "dtype", value=[]), r"buffers\[0\].dtype = \[\]"),
    "role": (put("buffers", 0, "role", value="weight"), r"buffers\[0\].role = 'weight'"),
    "margin-kind": (put("buffers", 0, "margin", value=True), r"buffers\[0\].margin = True"),
    "margin-less": (put("buffers", 0, "margin", value=-1), r"buffers\[0\].margin = -1"),
    "margin-more": (put("buffers", 0, "margin", value=65), "allowed: a whole number from 0 to 64"),
    "margin-role": (
        put("buffers", 0, "margin", value=1),
        r"buffers\[0\].margin = 1 is not allowed; allowed: 0 but for float32 and bfloat16 temp",
    ),
    "operator-kind": (put("operators", 0, value=3), r"operators\[0\] must be an object"),
    "operator": (put("operators", 0, "name", value="exec"), r"operators\[0\]: name = 'exec'"),
    "operator-name": (put("operators", 0, "name", value={}), r"operators\[0\]: name = {}"),
    "inputs-kind": (put("operators", 0, "inputs", value=1), r"operators\[0\]: inputs and outputs"),
    "inputs-few": (put("operators", 0, "inputs", value=[0]), "linear has 1 arguments"),
    "number-high": (put("operators", 0, "inputs", 0, value=99), "linear.x = 99 is not allowed"),
    "number-low": (put("operators", 0, "inputs", 0, value=-1), "linear.x = -1 is not allowed"),
    "number-lower": (put("operators", 0, "inputs", 2, value=-2), "linear.b = -2 is not allowed"),
    "number-float": (put("operators", 0, "inputs", 0, value=0.0), "linear.x = 0.0 is not allowed"),
    "number-bool": (put("operators", 0, "inputs", 0, value=False), "linear.x = False"),
    "attributes-kind": (put("operators", 0, "attributes", value=[]), "attributes must be an obj"),
    "attribute": (
        put("operators", 0, "attributes", "relu", value=True),
        "linear: 'relu' is no attribute; allowed: none",
    ),
    "attribute-line": (
        put("operators", 0, "attributes", "a\nb", value=True),
        r"linear: 'a\\nb' is no attribute; allowed: none",
    ),
    "attribute-missing": (
        put("operators", -1, "attributes", "momentum", value=None),
        "sgd.momentum is missing",
    ),
    "attribute-kind": (
        put("operators", -1, "attributes", "nesterov", value=1),
        "sgd.nesterov = 1 is not allowed; allowed: true or false",
    ),
    "attribute-range": (
        put("operators", -1, "attributes", "momentum", value=1.5),
        "sgd.momentum = 1.5 is not allowed",
    ),
    "attribute-nested": (
        put("operators", -1, "attributes", "momentum", value=[[0.5]]),
        "sgd.momentum = .* is not allowed",
    ),
    "shape-of-output": (put("buffers", 2, "shape", value=[4, 5]), r"operators\[0\]: linear: y has"),
    "dtype-of-argument": (
        put("buffers", 3, "dtype", value="int32"),
        "cross_entropy.targets = 'int32'",
    ),
    "update-of-input": (put("buffers", 1, "role", value="input"), "sgd.parameter = 'input'"),
    "order": (swap_operators, "reads 'logits' before it is written"),
    "written-twice": (write_twice, "writes 'logits', which is written"),
    "input-written": (
        put("buffers", 2, "role", value="input"),
        "writes 'logits', which is written",
    ),
    "output-twice": (
        put("operators", 1, "outputs", 1, value=2),
        "writes 'logits', which is written",
    ),
    "never-written": (
        put("buffers", -1, "role", value="output"),
        "sgd.momentum_buffer = 'output' is not allowed",
    ),
    "phases-sum": (put("phases", "forward", value=9), r"phases = \(9, 2, 1\) is not allowed"),
    "phases-kind": (put("phases", "forward", value=2.0), "phases = .* is not allowed"),
    "phases-less": (put("phases", "forward", value=-1), "phases = .* is not allowed"),
    "phases-key": (put("phases", "loss", value=0), "phases must be an object with the keys"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_program_is_one_line(table, damage):
    hurt, says = DAMAGES[damage]
    damaged = copy.deepcopy(table)
    hurt(damaged)
    with pytest.raises(InputError, match=says) as caught:
        parse_program(json.dumps(damaged), "step.json")
    assert str(caught.value).startswith("step.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", "null", "[" * 100_000, '{"a":1,"a":1}', b"\xff"]
)
def test_what_is_no_program_is_one_line(text):
    with pytest.raises(InputError) as caught:
        parse_program(text, "step.json")
    assert str(caught.value).startswith("step.json: ")
    assert "\n" not in str(caught.value)


def test_too_long_a_text_is_not_parsed(monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "MOST_TEXT", 10)
    with pytest.raises(InputError, match="are not read"):
        parse_program("x" * 11)
    path = tmp_path / "long.json"
    path.write_text("x" * 11)
    with pytest.raises(InputError, match="are not read"):
        read_program(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_program(tmp_path / "none.json")


def test_sizes_are_checked_before_anything_is_allocated(table):
    """Buffers that are each allowed, and too large together; a large one that is allowed."""
    damaged = copy.deepcopy(table)
    for number in range(3):
        buffer = {**table["buffers"][1], "name": f"more{number}", "shape": [2**37]}
        damaged["buffers"].append(buffer)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"allowed: at most {MOST_BYTES:,}"):
            parse_program(json.dumps(damaged))
        del damaged["buffers"][-2:]
        parse_program(json.dumps(damaged))
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_too_many_operators():
    builder = Builder()
    x = builder.buffer("x", (1,), role="input")
    y = builder.buffer("y", (1,))
    many = (Operator("relu", (x,), (y,)),) * (MOST_OPERATORS + 1)
    with pytest.raises(InputError, match="at most 100,000 operators"):
        Program(tuple(builder.buffers), many, (len(many), 0, 0))


def test_what_an_operator_adds_to_must_be_there():
    builder = Builder()
    x = builder.buffer("x", (2,), role="input")
    y = builder.buffer("y", (2,))
    builder.operator("accumulate", {"a": x}, {"into": y})
    with pytest.raises(InputError, match="reads 'y' before it is written"):
        builder.end_phase(0).program()


STEP = {"input": np.zeros((4, 3)), "targets": [0] * 4, "rates": [1], "share": [0.25]}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "no values for the input 'input'"),
        ({"input": np.zeros((4, 3)), "targets": [0] * 4, "rates": [1]}, "for the setting 'share'"),
        ({**STEP, "input": np.zeros((4, 2))}, "'input' has shape"),
        ({**STEP, "targets": [0, 0, 0, 2]}, "targets are from 0 to 2"),
    ],
)
def test_wrong_values_are_one_line(inputs, says):
    program = linear_step()
    with pytest.raises(InputError, match="no values for the parameter 'w'"):
        Reference(program, {})
    with pytest.raises(InputError, match=says):
        Reference(program, {"w": np.zeros((2, 3))}).step(inputs)


def test_the_runtime_brings_in_no_torch():
    code = (
        "import sys, pkgutil, importlib, mest_fed.runtime as r\n"
        "[importlib.import_module(f'mest_fed.runtime.{it.name}') for it in"
        " pkgutil.iter_modules(r.__path__) if not it.name.startswith('_')]\n"
        "print({'torch', 'flwr', 'ray', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
