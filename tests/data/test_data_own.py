"""A device's own examples: what fits the run, and one line for what does not."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mest_fed.config import from_table
from mest_fed.data import DataRequest, Encoding, load_dataset, load_own
from mest_fed.errors import InputError
from mest_fed.task import Task

SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}


def arrays(name="digits", count=30, **changes):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, *SHAPES[name]), dtype=np.uint8)
    return {"images": images, "labels": np.arange(count) % 10} | changes


def write(file, **content):
    np.savez(file, **content)
    return str(file)


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_in_the_file(tmp_path, name):
    content = arrays(name)
    own = load_own(name, write(tmp_path / "own.npz", **content))
    assert own.inputs.dtype == torch.uint8
    assert np.array_equal(own.inputs, content["images"])
    assert own.targets.dtype == torch.int64
    assert own.targets.tolist() == content["labels"].tolist()
    assert own.num_classes == 10


def test_all_devices_normalise_alike(tmp_path):
    own = load_own("digits", write(tmp_path / "own.npz", **arrays()))
    common = load_dataset("digits").train
    assert (own.mean, own.std) == (common.mean, common.std)


IMAGES = arrays()["images"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (arrays("cifar10"), ": inputs are uint8, 3 x 32 x 32; allowed: uint8, 1 x 8 x 8, as in"),
        (arrays(images=IMAGES.transpose(0, 2, 3, 1)), ": inputs are uint8, 8 x 8 x 1"),
        (arrays(images=IMAGES / 255), ": inputs are float32, 1 x 8 x 8; allowed: uint8"),
        (arrays(images=np.uint8(3)), ": images are uint8, no shape"),
        (arrays(labels=np.arange(29)), ": 29 labels and 30 images; allowed: as many"),
        (arrays(labels=np.arange(30) / 2), ": targets are float64; allowed: whole numbers"),
        (arrays(labels=np.eye(30, dtype=int)), ": targets are int64, shape (30, 30)"),
        (arrays(labels=np.arange(30) % 11), ", row 11: label 10 is out of range; allowed: 0 to 9"),
        (arrays(labels=np.arange(30) % 10 - 1), ", row 1: label -1 is out of range"),
        (arrays(count=0), ": it holds no examples; allowed: at least one"),
        ({"images": IMAGES}, " has the arrays images; allowed: inputs, targets or images, labels"),
        (arrays(labels=np.array([None] * 30)), " cannot be read (ValueError)"),  # needs pickle
    ],
)
def test_what_does_not_fit_the_run(tmp_path, content, words):
    path = write(tmp_path / "own.npz", **content)
    with pytest.raises(InputError) as error:
        load_own("digits", path)
    assert str(error.value).startswith(f"data (of this node): {path}{words}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "folder", b"", b"no zip", b"\x93NUMPY"])
def test_what_is_no_file_of_arrays(tmp_path, content):
    file = tmp_path / "own.npz"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"data \(of this node\).*allowed: a"):
        load_own("digits", str(file))


def test_a_folder_of_images_by_class(tmp_path):
    for label in ("3", "7"):
        (tmp_path / label).mkdir()
        Image.fromarray(np.full((8, 8), 20 * int(label), np.uint8)).save(tmp_path / label / "a.png")
    own = load_own("digits", str(tmp_path))
    assert own.targets.tolist() == [3, 7]
    assert own.inputs[:, 0, 0, 0].tolist() == [60, 140]


def test_a_table_is_encoded_as_the_runs_training_data(tmp_path):
    """Classes, categories and statistics are those of the run, whatever the device has."""
    common, own = tmp_path / "common.csv", tmp_path / "own.csv"
    rows = [
        f"{number},{'red' if number % 2 else 'blue'},{'ab'[number % 2]}" for number in range(20)
    ]
    common.write_text("\n".join(["size,color,label", *rows]))
    own.write_text("size,color,label\n5,red,b\n5,red,b\n")
    request = DataRequest(str(common))
    found, data = load_own("csv", str(own), request), load_dataset("csv", str(common)).train
    assert (found.mean, found.std, found.num_classes) == (data.mean, data.std, 2)
    assert found.inputs.tolist() == [[5, 0, 1]] * 2
    assert found.targets.tolist() == [1, 1]
    own.write_text("size,color,label\n5,red,b\n5,green,b\n")
    with pytest.raises(InputError, match=r"own\.csv, row 2: column color 'green' was never seen"):
        load_own("csv", str(own), request)


def test_a_run_whose_data_is_not_on_the_device(tmp_path):
    """The encoding that a run leaves stands for its data; it travels as JSON."""
    common, own = tmp_path / "common.csv", tmp_path / "own.csv"
    common.write_text("\n".join(["size,color,label", *["1,red,a", "2,blue,b", "4,red,a"] * 4]))
    own.write_text("size,color,label\n3,blue,a\n")
    request = DataRequest(str(common))
    expected = load_own("csv", str(own), request)
    table = json.loads(json.dumps(load_dataset("csv", str(common)).encoding.as_table()))
    common.unlink()
    with pytest.raises(InputError, match=r"needs data\.encoding, or the run's data"):
        load_own("csv", str(own), request)
    given = DataRequest(str(common), encoding=Encoding.read(table, "data.encoding"))
    found = load_own("csv", str(own), given)
    assert torch.equal(found.inputs, expected.inputs)
    assert (found.mean, found.std, found.example) == (expected.mean, expected.std, expected.example)
    assert Encoding.read(table, "data.encoding").example == expected.example


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int8"}, "data.encoding is no encoding"),
        ({"shape": [3, "x"]}, "data.encoding.shape = [3, 'x'] is not allowed"),
        ({"mean": [float("nan")]}, "data.encoding.mean = [nan] is not allowed"),
        ({"std": [0.0]}, "data.encoding.std = [0.0] is not allowed"),
        ({"num_classes": "ten"}, "data.encoding.num_classes = 'ten' is not allowed"),
        ({"categories": {"a": 3}}, "data.encoding.categories.a = 3 is not allowed"),
        ({"more": 1}, "data.encoding.more is unknown or missing"),
    ],
)
def test_a_wrong_encoding(change, words):
    table = load_dataset("digits").encoding.as_table()
    with pytest.raises(InputError) as error:
        Encoding.read({**table, **change}, "data.encoding")
    assert words in str(error.value)


def test_a_task_of_own_examples(tmp_path):
    config = from_table({"fleet": {"devices": 4, "mix": "rpi-4:1"}}, "test")
    task = Task.with_own_data(config, write(tmp_path / "own.npz", **arrays()))
    training, held = task.examples(123)
    assert sorted([*training, *held]) == list(range(30))
    assert task.example_counts(123) == (len(training), len(held)) == (27, 3)
    assert task.num_examples(123) == 30
    assert len(task.data.test) == 0


def test_own_examples_are_not_drawn(tmp_path):
    table = {
        "data": {"partition": "sampled", "examples_per_device": 5},
        "fleet": {"devices": 4, "mix": "rpi-4:1"},
    }
    task = Task.with_own_data(from_table(table, "test"), write(tmp_path / "own.npz", **arrays()))
    assert sum(task.example_counts(9)) == task.num_examples(9) == 30
