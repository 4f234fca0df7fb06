"""How a data set is shared out among the devices.

The schemes are those of flwr-datasets 0.6, draw for draw: the same seed gives the partitions that
its partitioners give. They are written out here because a device needs them, and the library with
what it brings (pandas, pyarrow, the hub's client) is 27 packages and 195 MB of its memory.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mest_fed.data.images import Indices
from mest_fed.errors import InputError, not_allowed
from mest_fed.rng import derive_seed, numpy_generator

SCHEMES = ("iid", "dirichlet", "pathological", "shard", "linear", "square", "exponential")

_MINIMUM = 10  # examples a Dirichlet partition holds at least, as flwr-datasets' default


def partition(
    labels: npt.NDArray[np.int64],
    num_partitions: int,
    *,
    scheme: str,
    seed: int,
    alpha: float = 0.3,
    classes_per_partition: int = 2,
    shards_per_partition: int = 2,
) -> list[Indices]:
    """Share examples out among partitions.

    Parameters
    ----------
    labels : int64 array
        Shape ``(n,)``.
    num_partitions : int
        Number of devices.
    scheme : str
        ``iid``; ``dirichlet`` (Yurochkin et al. 2019; where a partition stays too small, it is
        filled up from the largest ones to 10 examples, or to half of the mean size where that is
        less); ``pathological`` (each partition has some classes only); ``shard`` (McMahan et al.
        2017); or ``linear``, ``square``, ``exponential``: sizes that grow with the number of the
        partition. ``pathological`` and ``shard`` may leave a few examples out.
    seed : int
        The run's seed; the same seed gives the same partitions.
    alpha : float
        Dirichlet concentration.
    classes_per_partition : int
        For ``pathological``.
    shards_per_partition : int
        For ``shard``.

    Returns
    -------
    list of int64 array
        Increasing indices of each partition; disjoint, none empty.

    Raises
    ------
    InputError
        If a value is not allowed, or there are too many partitions for the examples.
    """
    if scheme not in SCHEMES:
        raise not_allowed("data.partition", scheme, SCHEMES)
    if not 1 <= num_partitions <= len(labels):
        raise not_allowed(
            "fleet.devices", num_partitions, f"1 to {len(labels)}, the number of examples"
        )
    order = numpy_generator(seed, "partition", "order").permutation(len(labels))
    generator = np.random.default_rng(derive_seed(seed, "partition", "scheme"))
    shuffled, count = labels[order], num_partitions
    parts: list[Indices] | None
    if scheme == "iid":
        parts = np.array_split(np.arange(len(labels)), count)
    elif scheme == "dirichlet":
        parts = _dirichlet(shuffled, count, alpha, generator)
        _fill_up(parts, max(1, min(_MINIMUM, len(labels) // (2 * count))))
    elif scheme == "pathological":
        parts = _pathological(shuffled, count, classes_per_partition, generator)
    elif scheme == "shard":
        parts = _shard(shuffled, count, shards_per_partition, generator)
    else:
        parts = _growing(len(labels), count, _SIZES[scheme])
    if parts is None or min(len(part) for part in parts) < 1:
        raise InputError(
            f"fleet.devices = {count} is too many for data.partition = {scheme!r} of "
            f"{len(labels)} examples; some partitions would be empty"
        )
    return [np.sort(order[part]) for part in parts]


def _dirichlet(
    labels: Indices, count: int, alpha: float, generator: np.random.Generator
) -> list[Indices]:
    """Share out each class by proportions that a Dirichlet distribution gives."""
    if not 0 < alpha < np.inf:
        raise not_allowed("data.alpha", alpha, "a positive number")
    parts: list[list[Indices]] = [[] for _ in range(count)]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shares = generator.dirichlet(np.full(count, float(alpha)))
        cuts = (np.cumsum(shares) * len(members)).astype(np.int64)[:-1]
        for number, share in enumerate(np.split(members, cuts)):
            parts[number].append(share)
    joined = [np.concatenate(shares) for shares in parts]
    for part in joined:
        generator.shuffle(part)
    return joined


def _pathological(
    labels: Indices, count: int, classes_per_partition: int, generator: np.random.Generator
) -> list[Indices] | None:
    """Give each partition some classes: one in turn, the others drawn.

    Return None where a class has fewer examples than partitions that should hold some.
    """
    classes = np.unique(labels)
    if not 1 <= classes_per_partition <= len(classes):
        key = "data.classes_per_partition"
        raise not_allowed(key, classes_per_partition, f"1 to {len(classes)}")
    chosen: list[list[int]] = []
    for number in range(count):
        own = [int(classes[number % len(classes)])]
        while len(own) < classes_per_partition:
            label = int(generator.choice(classes, size=1)[0])
            if label not in own:
                own.append(label)
        chosen.append(own)
    parts: list[list[Indices]] = [[] for _ in range(count)]
    for label in classes:
        holders = [number for number, own in enumerate(chosen) if label in own]
        members = np.flatnonzero(labels == label)
        if len(members) < len(holders):
            return None
        if holders:
            for number, share in zip(holders, np.array_split(members, len(holders)), strict=True):
                parts[number].append(share)
    return [np.concatenate(shares) for shares in parts]


def _shard(
    labels: Indices, count: int, shards_per_partition: int, generator: np.random.Generator
) -> list[Indices]:
    """Cut the examples, sorted by class, into equal shards, and deal them out."""
    most = len(labels) // count
    if not 1 <= shards_per_partition <= most:
        raise not_allowed("data.shards_per_partition", shards_per_partition, f"1 to {most}")
    used = count * shards_per_partition
    size = len(labels) // used
    dealt = generator.permutation(len(labels) // size)[:used].reshape(count, -1)
    by_class = np.argsort(labels, kind="stable")
    shards = by_class[: len(labels) // size * size].reshape(-1, size)
    return [shards[own].reshape(-1) for own in dealt]


#: From a partition's number, counted from 1, to its size in units.
_SIZES: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "linear": lambda number: number,
    "square": np.square,
    "exponential": np.exp,
}


def _growing(
    examples: int, count: int, units: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
) -> list[Indices]:
    """Cut the examples into parts of growing sizes; the last one takes what rounding leaves."""
    numbers = np.arange(1.0, count + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        shares = units(numbers) / units(numbers).sum()
        sizes = (np.nan_to_num(shares) * examples).astype(np.int64)
    return np.split(np.arange(examples), np.cumsum(sizes)[:-1])


def _fill_up(parts: list[Indices], minimum: int) -> None:
    """Move examples from the largest partitions until each has ``minimum``."""
    sizes = np.array([len(part) for part in parts])
    for short in np.flatnonzero(sizes < minimum):
        while sizes[short] < minimum:
            donor = sizes.argmax()
            parts[short] = np.append(parts[short], parts[donor][-1])
            parts[donor] = parts[donor][:-1]
            sizes[short] += 1
            sizes[donor] -= 1


def hold_out(
    indices: Indices, fraction: float, generator: np.random.Generator
) -> tuple[Indices, Indices]:
    """Split a partition into examples to train on and examples held out for evaluation.

    Parameters
    ----------
    indices : int64 array
        The partition.
    fraction : float
        Share to hold out, in [0, 1); rounded, and at least one example stays to train on.
    generator : numpy.random.Generator
        Decides which.

    Returns
    -------
    train, held : int64 array
        In the order of ``indices``.

    Raises
    ------
    InputError
        If the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise not_allowed("data.hold_out", fraction, "a number in [0, 1)")
    count = num_held_out(len(indices), fraction)
    is_held = np.zeros(len(indices), dtype=bool)
    is_held[generator.permutation(len(indices))[:count]] = True
    return indices[~is_held], indices[is_held]


def num_held_out(examples: int, fraction: float) -> int:
    """Return how many of a partition's examples :func:`hold_out` holds out."""
    return max(0, min(round(fraction * examples), examples - 1))
