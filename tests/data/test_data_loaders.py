"""Loaders of users: what they may return, and one line for what is wrong."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from mest_fed.catalogue import DATASETS
from mest_fed.data import Batches, load_dataset
from mest_fed.errors import InputError

RESULT = {}


def load(path, **options):
    """Return what the test says."""
    given = RESULT["it"]
    return given(path, **options) if callable(given) else given


NAME = f"{__file__}:load"


def loaded(result, **options):
    RESULT["it"] = result
    DATASETS.find(NAME).__globals__["RESULT"]["it"] = result
    return load_dataset(NAME, "here", **options)


def error_of(result, **options):
    with pytest.raises(InputError) as error:
        loaded(result, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def arrays(count=12, shape=(3,), classes=4):
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, *shape)), np.arange(count) % classes


class Pairs(Dataset):
    """A map-style data set of pairs with the group of each."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, number):
        return self.inputs[number], int(self.targets[number])

    def groups(self):
        return ["b" if number % 2 else "a" for number in range(len(self))]


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 4, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y),
        lambda x, y: [torch.from_numpy(x), torch.from_numpy(y)],
        lambda x, y: (x.tolist(), y.tolist()),
        Pairs,
        lambda x, y: TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        lambda x, y: list(zip(x, y, strict=True)),
    ],
)
def test_arrays_of_any_shape_in_any_form(form, shape):
    data = loaded((form(*arrays(shape=shape)), form(*arrays(4, shape))))
    inputs, targets = arrays(shape=shape)
    assert np.array_equal(data.train.inputs.numpy(), inputs.astype(np.float32))
    assert data.train.targets.tolist() == targets.tolist()
    assert (len(data.test), data.train.num_classes) == (4, 4)
    # Floats are as the loader made them.
    (batch,) = Batches(data.train, np.arange(12), 12)
    assert torch.equal(batch.inputs, data.train.inputs)


def test_bytes_are_normalised_by_channel():
    images = np.random.default_rng(0).integers(0, 256, (12, 2, 4, 4), dtype=np.uint8)
    data = loaded(((images, arrays()[1]), (images, arrays()[1])))
    (batch,) = Batches(data.train, np.arange(12), 12)
    assert data.train.inputs.dtype == torch.uint8
    assert batch.inputs.mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert batch.inputs.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int16, bool])
def test_other_numbers_become_float32(kind):
    inputs = (np.arange(24).reshape(12, 2) % 2).astype(kind)
    data = loaded(((inputs, arrays()[1]), (inputs, arrays()[1]))).train
    assert data.inputs.dtype == torch.float32
    assert data.inputs.tolist() == inputs.astype(float).tolist()


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_tokens_and_the_next_ones(kind):
    generator = np.random.default_rng(0)
    train, test = (generator.integers(0, most, (10, 7)).astype(kind) for most in (5, 9))
    data = loaded(((train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:]))).train
    assert data.inputs.dtype == data.targets.dtype == torch.int64
    assert data.targets.tolist() == train[:, 1:].tolist()
    # A number of test that train lacks is a token of the vocabulary, too.
    assert data.example.num_tokens == data.example.num_outputs == int(test.max()) + 1


@pytest.mark.parametrize(
    ("targets", "dtype", "shape", "outputs"),
    [
        (np.arange(12.0), torch.float32, (12, 1), 1),
        (np.ones((12, 3)), torch.float32, (12, 3), 3),
        (np.arange(24).reshape(12, 2) % 2, torch.float32, (12, 2), 2),
        (np.arange(12)[:, None] % 3, torch.int64, (12,), 3),
        (np.arange(12) % 2 == 0, torch.int64, (12,), 2),
        (np.array(["b", "a", "c"] * 4), torch.int64, (12,), 3),
    ],
)
def test_targets(targets, dtype, shape, outputs):
    inputs, _ = arrays()
    data = loaded(((inputs, targets), (inputs, targets))).train
    assert (data.targets.dtype, tuple(data.targets.shape)) == (dtype, shape)
    assert data.example.num_outputs == outputs


def test_groups():
    x, y = arrays()
    names = ["zoe", "ann", "ben"] * 4
    triple = loaded(((x, y, names), (x, y))).train
    assert triple.groups.tolist() == [2, 0, 1] * 4
    assert loaded((Pairs(x, y), Pairs(x, y))).train.groups.tolist() == [0, 1] * 6


def test_path_and_options_reach_the_loader():
    def own(path, count=3, *, kind):
        assert (path, kind) == ("here", "x")
        return arrays(count), arrays(count)

    assert len(loaded(own, options={"count": 7, "kind": "x"}).train) == 7


X, Y = arrays()
NAN = np.where(np.arange(36).reshape(12, 3) == 16, np.nan, 0.0)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "returned None; allowed: (train, test)"),
        ((X, Y, X, Y), "returned a tuple of 4; allowed: (train, test)"),
        (((X, Y), None), ": test is None; allowed: (inputs, targets[, groups])"),
        (((X, Y), (X,)), ": test has 1 arrays; allowed: (inputs, targets[, groups])"),
        (((X, Y[:5]), (X, Y)), ": train: 5 targets and 12 inputs; allowed: as many"),
        (((X, Y, Y[:5]), (X, Y)), ": train: 5 groups and 12 inputs; allowed: as many"),
        (((X[:0], Y[:0]), (X, Y)), ": train: it holds no examples"),
        (((X, Y), ([], [])), ": test: it holds no examples"),
        (((X, Y), (X[:, :2], Y)), ": test: inputs are float32, 2; allowed: float32, 3, as in the"),
        (((NAN, Y), (X, Y)), ": train, example 5: inputs has nan; allowed: finite numbers"),
        (((X, Y), (NAN, Y)), ": test, example 5: inputs has nan"),
        (((X, np.where(Y > 2, np.nan, 0)), (X, Y)), ": train, example 3: target targets has nan"),
        (((X, Y), (X, Y + 1)), ": test, example 3: label 4 is out of range; allowed: 0 to 3"),
        (((X, Y - 1), (X, Y)), ": train, example 0: label -1 is out of range"),
        (((X, Y), (X, Y + 0.5)), ": test: targets are float64; allowed: whole numbers"),
        (((X, list("abcd" * 3)), (X, list("abce" * 3))), ": test, example 3: label 'e' was never"),
        (
            (([[1.0], [1.0, 2.0]], [0, 1]), (X, Y)),
            ": train is ragged; allowed: arrays of one shape",
        ),
        (([(X[0], 0), (X[1, :2], 1)], (X, Y)), ": train, example 1: its input has shape (2,)"),
        (([{"x": 1}], (X, Y)), ": train, example 0 is a value of type dict; allowed: a pair"),
        (((X.astype(complex), Y), (X, Y)), ": train: inputs is complex128; allowed: numbers"),
        (
            ((np.full((12, 3), -1), Y), (X, Y)),
            "inputs has -1 among whole numbers, which are tokens",
        ),
    ],
)
def test_wrong_results(result, words):
    message = error_of(result)
    assert message.startswith(f"data.name = {NAME!r}")
    assert words in message


def raises(path):
    raise RuntimeError("no\nluck")


@pytest.mark.parametrize(
    ("loader", "options", "words"),
    [
        (raises, {}, f"': RuntimeError: no luck ({__file__}:"),
        (lambda path, size: None, {}, "': TypeError"),
    ],
)
def test_a_loader_that_raises(loader, options, words):
    assert words in error_of(loader, options=options)


def fails_in_numpy(path):
    return np.zeros(3).reshape(2, 2), None  # the place


class Broken(Pairs):
    def __getitem__(self, number):
        return np.concatenate([]), 0  # the place


def fails_while_it_is_read(path):
    return Broken(*arrays()), Broken(*arrays())


@pytest.mark.parametrize("loader", [fails_in_numpy, fails_while_it_is_read])
def test_the_place_is_the_users_line_not_that_in_numpy(loader):
    message = error_of(loader)
    file, _, line = message.rpartition("(")[2].rstrip(")").rpartition(":")
    assert file == __file__
    with open(file, encoding="utf-8") as text:
        assert "# the place" in text.readlines()[int(line) - 1]


def test_an_option_that_the_loader_does_not_take(tmp_path):
    file = tmp_path / "my_data.py"
    file.write_text("def load(path, size=3): return None\ndef all(path, size): return None\n")
    with pytest.raises(InputError, match=r"data\.options\.side = 3 is not allowed; allowed: size"):
        load_dataset(f"{file}:load", options={"side": 3})
    with pytest.raises(InputError, match=r"cannot be called: missing a required argument: 'size'"):
        load_dataset(f"{file}:all")
    with pytest.raises(InputError, match=r"allowed with data\.name = .*data\.partition = 'groups'"):
        load_dataset(f"{file}:load", columns={"groups": "user"})
    with pytest.raises(InputError, match=r"my_data\.py has no attribute 'lode'"):
        load_dataset(f"{file}:lode")
    with pytest.raises(InputError, match=r"no such file: .*other\.py"):
        load_dataset(f"{tmp_path / 'other.py'}:load")
