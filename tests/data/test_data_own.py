"""A device's own examples: what fits the run, and one line for what does not."""

import numpy as np
import pytest
import torch

from mest_fed.config import from_table
from mest_fed.data import load_dataset, load_own
from mest_fed.errors import InputError
from mest_fed.task import task_of

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
        (
            arrays("cifar10"),
            "images are uint8, 3 x 32 x 32; allowed: uint8, 1 x 8 x 8, as data.name",
        ),
        (arrays(images=IMAGES[:, 0]), "images are uint8, 8 x 8; allowed: uint8, 1 x 8 x 8"),
        (arrays(images=IMAGES.transpose(0, 2, 3, 1)), "images are uint8, 8 x 8 x 1"),
        (arrays(images=IMAGES / 255), "images are float64, 1 x 8 x 8; allowed: uint8"),
        (arrays(images=np.uint8(3)), "images are uint8, no shape"),
        (arrays(labels=np.arange(29)), "labels are int64, shape (29,); allowed: whole numbers"),
        (arrays(labels=np.arange(30) / 2), "labels are float64, shape (30,)"),
        (arrays(labels=np.eye(30, dtype=int)), "labels are int64, shape (30, 30)"),
        (arrays(labels=np.arange(30) % 11), "labels go from 0 to 10; allowed: 0 to 9, the classes"),
        (arrays(labels=np.arange(30) % 10 - 1), "labels go from -1 to 8"),
        (arrays(count=0), "it has no images; allowed: at least one"),
        ({"images": IMAGES}, "it cannot be read (KeyError)"),
        (arrays(labels=np.array([None] * 30)), "it cannot be read (ValueError)"),  # needs pickle
    ],
)
def test_what_does_not_fit_the_run(tmp_path, content, words):
    path = write(tmp_path / "own.npz", **content)
    with pytest.raises(InputError) as error:
        load_own("digits", path)
    assert str(error.value).startswith(f"data (of this node) = {path!r}: {words}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "folder", b"", b"no zip", b"\x93NUMPY"])
def test_what_is_no_file_of_arrays(tmp_path, content):
    file = tmp_path / "own.npz"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"data \(of this node\) = .*an .npz file with images and"):
        load_own("digits", str(file))


def test_a_folder_of_the_runs_data_set_is_named_where_it_may_be(tmp_path):
    with pytest.raises(InputError, match=r"or a folder with train\.parquet"):
        load_own("cifar10", str(tmp_path))


def test_a_task_of_own_examples(tmp_path):
    config = from_table({"fleet": {"devices": 4, "mix": "rpi-4:1"}}, "test")
    task = task_of(config, write(tmp_path / "own.npz", **arrays()))
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
    task = task_of(from_table(table, "test"), write(tmp_path / "own.npz", **arrays()))
    assert sum(task.example_counts(9)) == task.num_examples(9) == 30
