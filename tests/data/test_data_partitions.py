"""Partitions: complete, disjoint, reproducible; and their file."""

import errno
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.catalogue import PARTITIONERS
from mest_fed.data import hold_out, load_partitions, partition, save_partitions
from mest_fed.errors import InputError
from mest_fed.rng import derive_seed, numpy_generator

SCHEMES = [name for name in PARTITIONERS if name not in ("sampled", "groups")]
LABELS = np.arange(600) % 10
COMPLETE = ("iid", "dirichlet", "linear", "square")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_disjoint_not_empty_and_reproducible(scheme, capfd):
    count = 4 if scheme in ("square", "exponential") else 12
    parts = partition(LABELS, count, scheme=scheme, seed=3)
    together = np.concatenate(parts)
    assert len(parts) == count
    assert all(part.dtype == np.int64 and len(part) > 0 for part in parts)
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < len(LABELS)
    if scheme in COMPLETE:
        assert len(together) == len(LABELS)
    for part in parts:
        assert (np.diff(part) > 0).all()
    again = partition(LABELS, count, scheme=scheme, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = partition(LABELS, count, scheme=scheme, seed=4)
    assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_each_partition_is_a_group():
    groups = np.repeat([7, 2, 5], [1, 4, 2])[[6, 2, 4, 0, 1, 3, 5]]
    parts = partition(np.zeros(7, np.int64), 3, scheme="groups", seed=0, groups=groups)
    assert [set(groups[part]) for part in parts] == [{2}, {5}, {7}]
    assert [len(part) for part in parts] == [4, 2, 1]
    assert PARTITIONERS.find("column:user_id") is PARTITIONERS.find("groups")


def test_groups_are_drawn_where_there_are_more_than_devices():
    groups = np.arange(40) % 20

    def drawn(seed):
        parts = partition(LABELS[:40], 5, scheme="groups", seed=seed, groups=groups)
        assert all(len(set(groups[part])) == 1 and len(part) == 2 for part in parts)
        return [groups[part[0]] for part in parts]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("groups", "count", "words"),
    [
        (
            np.arange(60) % 4,
            5,
            r"fleet\.devices = 5 is not allowed; allowed: 1 to 4, the number of g",
        ),
        (None, 5, r"data\.partition needs the group of each example"),
    ],
)
def test_too_few_groups(groups, count, words):
    with pytest.raises(InputError, match=words):
        partition(LABELS[:60], count, scheme="groups", seed=0, groups=groups)


def test_iid_sizes_are_even():
    assert {len(part) for part in partition(LABELS, 7, scheme="iid", seed=0)} == {85, 86}


def test_pathological_has_its_number_of_classes():
    parts = partition(LABELS, 10, scheme="pathological", seed=0, classes_per_partition=3)
    assert [len(np.unique(LABELS[part])) for part in parts] == [3] * 10


def test_shards_are_runs_of_few_classes():
    parts = partition(LABELS, 10, scheme="shard", seed=0, shards_per_partition=2)
    assert all(len(part) == 60 for part in parts)
    assert all(len(np.unique(LABELS[part])) <= 4 for part in parts)


def test_linear_sizes():
    sizes = [len(part) for part in partition(LABELS, 3, scheme="linear", seed=0)]
    assert sizes == [100, 200, 300]


def unlikeness(alpha):
    parts = partition(LABELS, 10, scheme="dirichlet", seed=1, alpha=alpha)
    counts = np.array([np.bincount(LABELS[part], minlength=10) / len(part) for part in parts])
    return np.abs(counts - 0.1).mean()


def test_smaller_alpha_is_less_alike():
    assert unlikeness(0.05) > 2 * unlikeness(5.0) > 2 * unlikeness(1000.0)


@pytest.mark.parametrize(
    ("num_partitions", "smallest"),
    [(20, 10), (60, 5), (300, 1), (600, 1)],  # 10 as flwr-datasets, then half of the mean size
)
def test_dirichlet_is_filled_up(num_partitions, smallest):
    parts = partition(LABELS, num_partitions, scheme="dirichlet", seed=0, alpha=0.05)
    sizes = [len(part) for part in parts]
    assert min(sizes) == smallest
    assert sum(sizes) == len(LABELS)


@pytest.mark.parametrize(
    ("num_partitions", "options", "words"),
    [
        (601, {"scheme": "iid"}, "fleet.devices = 601 is not allowed; allowed: 1 to 600"),
        (0, {"scheme": "iid"}, "fleet.devices = 0"),
        (30, {"scheme": "exponential"}, "fleet.devices = 30 is too many"),
        (400, {"scheme": "linear"}, "fleet.devices = 400 is too many"),
        (400, {"scheme": "pathological"}, "fleet.devices = 400 is too many"),
        (4, {"scheme": "natural"}, "data.partition = 'natural' is not allowed; allowed: iid"),
        (4, {"scheme": "dirichlet", "alpha": 0.0}, "data.alpha = 0.0"),
        (4, {"scheme": "dirichlet", "alpha": float("nan")}, "data.alpha = nan"),
        (
            4,
            {"scheme": "pathological", "classes_per_partition": 11},
            "data.classes_per_partition = 11 is not allowed; allowed: 1 to 10",
        ),
        (
            300,
            {"scheme": "shard", "shards_per_partition": 3},
            "data.shards_per_partition = 3 is not allowed; allowed: 1 to 2",
        ),
    ],
)
def test_wrong_input_names_the_key(num_partitions, options, words):
    with pytest.raises(InputError) as error:
        partition(LABELS, num_partitions, seed=0, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_parameters_of_other_schemes_do_not_matter():
    assert len(partition(LABELS, 600, scheme="iid", seed=0, classes_per_partition=99)) == 600


SKEWED = np.minimum(numpy_generator(0, "labels").geometric(0.3, 700) - 1, 6)


@pytest.mark.filterwarnings("ignore")  # the library's own, and its libraries'
@pytest.mark.parametrize("labels", [LABELS, SKEWED], ids=["even", "skewed"])
@pytest.mark.parametrize(
    ("scheme", "count", "theirs", "ours"),
    [
        ("iid", 7, {}, {}),
        ("dirichlet", 2, {"alpha": 0.3}, {"alpha": 0.3}),
        ("dirichlet", 7, {"alpha": 5.0}, {"alpha": 5.0}),
        (
            "pathological",
            5,
            {"num_classes_per_partition": 3},
            {"classes_per_partition": 3},
        ),
        ("shard", 6, {"num_shards_per_partition": 4}, {"shards_per_partition": 4}),
        ("linear", 9, {}, {}),
        ("square", 5, {}, {}),
        ("exponential", 4, {}, {}),
    ],
)
def test_the_draws_are_those_of_flwr_datasets(labels, scheme, count, theirs, ours):
    library = pytest.importorskip("flwr_datasets.partitioner")
    datasets = pytest.importorskip("datasets")
    order = numpy_generator(3, "partition", "order").permutation(len(labels))
    if theirs:
        theirs = theirs | {"partition_by": "label", "seed": derive_seed(3, "partition", "scheme")}
    if scheme == "dirichlet":
        theirs["min_partition_size"] = 0  # where one is too small, both fill it up by our rule
    if scheme == "pathological":
        theirs["class_assignment_mode"] = "first-deterministic"
    reference = getattr(library, f"{scheme.capitalize()}Partitioner")(count, **theirs)
    columns = {"index": np.arange(len(labels)), "label": labels[order]}
    reference.dataset = datasets.Dataset.from_dict(columns)
    parts = partition(labels, count, scheme=scheme, seed=3, **ours)
    for number, part in enumerate(parts):
        chosen = order[np.array(reference.load_partition(number)["index"])]
        assert np.array_equal(part, np.sort(chosen))


@pytest.mark.soak
def test_no_library_is_needed():
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['datasets', 'flwr_datasets', 'pandas', 'pyarrow'])\n"
        "import numpy as np\n"
        "from mest_fed.data import partition\n"
        "labels = np.arange(60) % 10\n"
        f"print([len(partition(labels, 3, scheme=s, seed=0)) for s in {SCHEMES}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[3] * len(SCHEMES)}\n"


def test_file_round_trip(tmp_path):
    parts = partition(LABELS, 12, scheme="dirichlet", seed=0)
    path = tmp_path / "deep" / "parts.npz"
    save_partitions(path, parts)
    loaded = load_partitions(path, num_examples=600)
    assert all(np.array_equal(a, b) for a, b in zip(parts, loaded, strict=True))
    assert [entry.name for entry in path.parent.iterdir()] == ["parts.npz"]


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(stream, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"cannot write .*parts.npz: No space left on device"):
        save_partitions(tmp_path / "parts.npz", [np.arange(3)])
    assert not list(tmp_path.iterdir())


def test_file_of_a_larger_data_set(tmp_path):
    save_partitions(tmp_path / "parts.npz", [np.array([1, 7])])
    with pytest.raises(InputError, match="index 7, but the data have 7 examples"):
        load_partitions(tmp_path / "parts.npz", num_examples=7)


def arrays(**changes):
    return {"indices": np.array([3, 1, 2]), "sizes": np.array([2, 1])} | changes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (arrays(sizes=np.array([2, 2])), "sizes that do not fit"),
        (arrays(sizes=np.array([3, 0])), "sizes that do not fit"),
        (arrays(sizes=np.array([], dtype=np.int64)), "sizes that do not fit"),
        (arrays(sizes=np.array([2.0, 1.0])), "int64 vectors"),
        (arrays(indices=np.array([[3, 1, 2]])), "int64 vectors"),
        (arrays(indices=np.array([3, 3, 2])), "repeated"),
        (arrays(indices=np.array([-1, 1, 2])), "negative"),
        (arrays(indices=np.array([3, None, 2])), "cannot be read (ValueError)"),  # needs pickle
        ({"sizes": np.array([1])}, "cannot be read (KeyError)"),
    ],
)
def test_wrong_file(tmp_path, content, words):
    path = tmp_path / "parts.npz"
    np.savez(path, **content)
    with pytest.raises(InputError) as error:
        load_partitions(path)
    assert words in str(error.value)
    assert f"data.partition_file = {str(path)!r}" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_corrupt_file(tmp_path, content):
    path = tmp_path / "parts.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        load_partitions(path)


def test_truncated_and_plain_array_files(tmp_path):
    path = tmp_path / "parts.npz"
    save_partitions(path, [np.arange(500)])
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match="cannot be read"):
        load_partitions(path)
    np.save(tmp_path / "plain.npy", np.arange(3))
    with pytest.raises(InputError, match="cannot be read"):
        load_partitions(tmp_path / "plain.npy")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="FileNotFoundError"):
        load_partitions(tmp_path / "none.npz")


@given(count=st.integers(1, 40), fraction=st.floats(0, 0.999), seed=st.integers(0, 3))
def test_hold_out_splits(count, fraction, seed):
    indices = np.arange(100, 100 + count)
    train, held = hold_out(indices, fraction, numpy_generator(seed))
    assert len(train) >= 1
    assert sorted([*train, *held]) == list(indices)
    assert len(held) == min(round(fraction * count), count - 1)
    same_train, _ = hold_out(indices, fraction, numpy_generator(seed))
    assert np.array_equal(train, same_train)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_hold_out_fraction(fraction):
    with pytest.raises(InputError, match=r"data\.hold_out"):
        hold_out(np.arange(4), fraction, numpy_generator(0))
