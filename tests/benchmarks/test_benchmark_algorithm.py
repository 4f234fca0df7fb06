"""Central training of each method: images as they are augmented, runs that go on."""

import json

import algorithm
import numpy as np
import pytest
import torch
from harness import write_json

from mest_fed.data import load_dataset
from mest_fed.errors import InputError


@pytest.fixture(scope="module")
def images():
    return algorithm.Images(load_dataset("digits"), 200, torch.device("cpu"))


def test_an_epoch_has_every_image_once_shifted_and_perhaps_mirrored(images):
    seen = []
    for inputs, labels in images.epoch(np.random.default_rng(0)):
        assert inputs.shape[1:] == images.train.shape[1:]
        assert len(inputs) == len(labels) >= algorithm.BATCH
        seen.append(labels)
    assert sorted(torch.cat(seen).tolist()) == sorted(images.labels[:200].tolist())


def test_a_shift_of_nothing_and_no_mirror_leave_an_image(images):
    class Still:
        """Draws the middle, and never mirrors."""

        def permutation(self, count):
            return np.arange(count)

        def integers(self, most, size):
            return np.full(size, most // 2)

        def random(self, count):
            return np.ones(count)

    inputs, _ = next(images.epoch(Still()))
    plain = (images.train[: len(inputs)].float() / 255 - images.mean) / images.std
    assert torch.allclose(inputs, plain)


def test_runs_that_are_there_are_not_done_again_and_others_are_refused(tmp_path):
    path, settings = tmp_path / "rows.json", {"epochs": 2, "density": 0.1}
    done = {("dense", 1): [0.5, 1.0], ("dense", 2): [0.7, 3.0], ("set", 1): [0.4, 1.0]}
    rows = algorithm.rows_of(done)
    write_json(path, rows, done=[[*key, *found] for key, found in done.items()], **settings)
    assert algorithm.known_runs(path, settings) == done
    assert algorithm.known_runs(tmp_path / "none", settings) == {}
    with pytest.raises(InputError, match="its epochs = 2 is not allowed; allowed: 3, as here"):
        algorithm.known_runs(path, settings | {"epochs": 3})
    by_name = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert (by_name["dense"]["ours"], by_name["dense"]["minutes"]) == (0.6, 2.0)
    assert (by_name["set"]["points_lost"], by_name["set"]["runs"]) == (20.0, 1)
