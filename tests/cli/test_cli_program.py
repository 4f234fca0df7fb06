"""``mest-fed program``: operators, bytes, work, the arena and its picture."""

import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from mest_fed.cli.planning.request import read_request
from mest_fed.cli.programs.picture import draw_arena
from mest_fed.cli.programs.report import ProgramReport, format_count, print_report
from mest_fed.runtime.program import PHASES
from mest_fed.runtime.reading import parse_program

SMALL = ("program", "resnet8", "--width", "0.5", "--batch", "4", "--image", "3x8x8")


@pytest.fixture(scope="module")
def report():
    options = {"model.name": "resnet8", "model.width": 0.5, "training.batch_size": 4}
    return ProgramReport.of(read_request((None, None), options, (), ("3x8x8", None)))


def test_it_prints_operators_and_the_arena(says, report):
    text = says(*SMALL)
    assert "resnet8 (width 0.5; group norm), mest-ems, block at density 0.1, 4 examples of" in text
    for phase, count in zip(PHASES, report.program.phases, strict=True):
        assert f"{phase.capitalize()}: {count} operators" in text
    assert report.program.phases[2] == 29
    for part in ("stage2.0.conv1.values", "lower bound", "unshared", "modelled", "sha256"):
        assert part in text


def test_json_holds_the_program_and_where_its_buffers_lie(says):
    table = json.loads(says(*SMALL, "--json"))
    program = parse_program(json.dumps(table["program"]))
    assert program.sha256 == table["sha256"]
    rows = table["operators"]
    assert [row["operator"] for row in rows] == [it.name for it in program.operators]
    assert [row["phase"] for row in rows] == sorted(
        (row["phase"] for row in rows), key=PHASES.index
    )
    arena = table["arena"]
    assert arena["lower_bound_bytes"] <= arena["peak_bytes"] <= arena["unshared_bytes"] * 1.1
    assert max(row["arena_bytes"] for row in rows) == arena["lower_bound_bytes"]
    first = next(row for row in rows if row["operator"] == "conv2d")
    # 4 images of 8x8 pixels, 8 filters of 3x3x3
    assert first["multiply_adds"] == 4 * 64 * 8 * 27
    # planes of 9 rows of 8 pixels, in lines of 16, behind a line of zeros
    assert first["bytes"] == 4 * (4 * (16 + 3 * 80) + 64 + 8 * 27 + 4 * (16 + 8 * 80) + 64)
    assert table["multiply_adds"] == sum(row["multiply_adds"] for row in rows)
    assert table["input_bytes"] == 4 * (4 * 3 * 64) + 8 * 4
    assert table["sum_bytes"] == table["parameter_bytes"] + 4
    assert table["group"] == table["batch"] == 4


@pytest.mark.soak
def test_groups(says):
    whole, groups, of_three = (
        json.loads(says(*SMALL, "--group", group, "--json")) for group in ("4", "1", "3")
    )
    assert [it["group"] for it in (whole, groups, of_three)] == [4, 1, 3]
    for key in ("multiply_adds", "parameter_bytes", "sum_bytes", "input_bytes"):
        assert whole[key] == groups[key] == of_three[key], key
    assert groups["bytes"] > of_three["bytes"] > whole["bytes"]
    peaks = [it["arena"]["peak_bytes"] for it in (groups, of_three, whole)]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[2] / 2
    text = says(*SMALL, "--group", "1")
    assert "A batch of 4 in groups of 1" in text
    assert "activations of 1 example, for each thread" in text
    batch = json.loads(says(*SMALL, "--norm", "batch", "--json"))
    assert batch["group"] == 4


@pytest.mark.soak
def test_sparse_and_dense(says):
    sparse, dense = (
        json.loads(says(*SMALL, *more, "--json"))
        for more in (("--scheme", "unstructured", "--density", "0.2"), ("--method", "dense"))
    )
    assert {"sparse_conv2d", "conv2d"} <= {row["operator"] for row in sparse["operators"]}
    assert not any("sparse" in row["operator"] for row in dense["operators"])
    assert sparse["multiply_adds"] < dense["multiply_adds"]
    assert sparse["parameter_bytes"] < dense["parameter_bytes"]


@pytest.mark.parametrize("name", ["arena.svg", "arena.png"])
def test_the_picture(report, tmp_path, name):
    path = tmp_path / name
    draw_arena(report, path)
    if name.endswith(".png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        return
    first = path.read_bytes()
    text = "".join(ElementTree.fromstring(first).itertext())
    for part in ("forward", "backward", "update", "kept for the backward pass", "lower bound"):
        assert part in text
    draw_arena(report, path)
    assert path.read_bytes() == first


def test_lines_fit_a_terminal_of_80_columns(report):
    console = Console(width=80, record=True, file=io.StringIO())
    print_report(report, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line.split()[-1] for line in lines if line.strip())


def test_what_else_a_step_may_have(says, tmp_path_factory):
    drawn, tokens = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "tokens.npz"
    np.savez(tokens, inputs=drawn.integers(0, 9, (50, 8)), targets=np.arange(50) % 3)
    limits = ("training.clip_norm=1.0", "training.proximal=0.1")
    small = ("--width", "0.1", "--scheme", "channel", "--batch", "4", "--json")
    settings = ["data.name=npz", f"data.path={tokens}", *limits]
    sets = [it for setting in settings for it in ("--set", setting)]
    table = json.loads(says("program", "lstm", *small, *sets))
    names = [row["operator"] for row in table["operators"]]
    assert {"lstm", "lstm_gradient", "place_channels", "clip", "proximal"} <= set(names)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("resnet9",), "MODEL = 'resnet9' is not allowed"),
        (("resnet8", "--set", "training.optimizer=torch.optim:SGD"), "in a program: sgd, adam"),
        (("resnet8", "--density", "2"), "--density = 2.0"),
        (("resnet8", "--group", "0"), "group = '0' is not allowed; allowed: auto, or a whole"),
        (("resnet8", "--group", "two"), "group = 'two' is not allowed"),
        (
            ("resnet8", "--norm", "batch", "--group", "2", "--batch", "4"),
            "group = 2 is not allowed; allowed: 4, the batch",
        ),
        (("resnet8", "--picture", "arena.gif"), "a file that ends in .svg or .png"),
        (("resnet8", "--picture", "none/arena.svg"), "a file in a folder that exists"),
        (("transformer",), "does not take inputs of shape"),
    ],
)
def test_wrong_input_is_one_line(fails, arguments, says):
    assert says in fails("program", *arguments)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (28_311_552, "28.3 M"), (2e9, "2 G")]
)
def test_counts(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        (("--group", "9"), "group = 9 is not allowed; allowed: auto, or 1 to 4, the batch"),
        (("--set", "memory.saved=int8"), "memory.saved = 'int8' have no program; allowed: none or"),
        (("--set", "memory.recompute=segments"), "memory.recompute = 'segments', memory.saved"),
    ],
)
def test_what_training_would_not_run(fails, given, allowed):
    assert allowed in fails(*SMALL, *given)
