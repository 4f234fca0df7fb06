"""How a data set is shared out among the devices.

The schemes are those of flwr-datasets 0.6, draw for draw: the same seed gives the partitions that
its partitioners give. They are written out here because a device needs them, and the library with
what it brings (pandas, pyarrow, the hub's client) is 27 packages and 195 MB of its memory.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mest_fed.catalogue import PARTITIONERS
from mest_fed.data.minibatches import Indices
from mest_fed.errors import InputError, not_allowed
from mest_fed.rng import derive_seed, numpy_generator
from mest_fed.units import number_of

Share = TypeVar("Share", bound=Callable[..., Any])

_MINIMUM = 10  # examples a Dirichlet partition holds at least, as flwr-datasets' default


def partition(
    labels: npt.NDArray[np.int64],
    num_partitions: int,
    *,
    scheme: str,
    seed: int,
    **options: Any,
) -> Sequence[Indices]:
    """Share examples out among partitions.

    Parameters
    ----------
    labels : int64 array
        Shape ``(n,)``.
    num_partitions : int
        Number of devices.
    scheme : str
        A name of :data:`~mest_fed.catalogue.PARTITIONERS`, or a reference to a user's own.
    seed : int
        The run's seed; the same seed gives the same partitions.
    **options
        Options of all schemes, such as ``alpha``; a scheme takes those that it knows.

    Returns
    -------
    sequence of int64 array
        Increasing indices of each partition; none empty.

    Raises
    ------
    InputError
        If a value is not allowed, or there are too many partitions for the examples.
    """
    share = PARTITIONERS.find(scheme)
    draws = getattr(share, "draws_examples", False)
    if not draws and not 1 <= num_partitions <= len(labels):
        raise not_allowed(
            "fleet.devices", num_partitions, f"1 to {len(labels)}, the number of examples"
        )
    found = PARTITIONERS.build(scheme, labels, num_partitions, seed=seed, **options)
    if draws:
        drawn: Sequence[Indices] = found
        return drawn
    parts = [np.asarray(part) for part in found] if found is not None else []
    if not parts or min(len(part) for part in parts) < 1:
        raise InputError(
            f"fleet.devices = {num_partitions} is too many for data.partition = {scheme!r} of "
            f"{number_of(len(labels), 'example')}; some partitions would be empty"
        )
    if reason := _objection(parts, num_partitions, len(labels)):
        raise InputError(f"data.partition = {scheme!r} gives {reason}")
    return [np.sort(part).astype(np.int64, copy=False) for part in parts]


def _objection(parts: list[npt.NDArray[Any]], count: int, examples: int) -> str:
    """Return what is wrong with partitions; empty if nothing is."""
    if len(parts) != count:
        return f"{len(parts)} partitions; allowed: {count} (fleet.devices)"
    if any(part.ndim != 1 or not np.issubdtype(part.dtype, np.integer) for part in parts):
        return "what is no vector of whole numbers; allowed: the positions of examples"
    every = np.concatenate(parts)
    if every.min() < 0 or every.max() >= examples:
        wrong = every.min() if every.min() < 0 else every.max()
        return f"the position {wrong}; allowed: 0 to {examples - 1}"
    if len(np.unique(every)) != len(every):
        return "an example twice; allowed: each position once at most"
    return ""


def iid(labels: Indices, count: int, *, seed: int) -> list[Indices]:
    """Share examples out in equal parts, whatever their classes are."""
    order, _ = _drawn_order(labels, seed)
    return np.array_split(order, count)


def _of_classes(share: Share) -> Share:
    """Mark a scheme that shares examples out by their classes."""
    share.needs_classes = True  # type: ignore[attr-defined]
    return share


def needs_classes(scheme: str) -> bool:
    """Return whether a scheme shares examples out by their classes."""
    return bool(getattr(PARTITIONERS.find(scheme), "needs_classes", False))


@_of_classes
def dirichlet(labels: Indices, count: int, *, seed: int, alpha: float = 0.3) -> list[Indices]:
    """Share out each class by proportions that a Dirichlet distribution gives.

    Yurochkin et al. 2019. Where a partition stays too small, it is filled up from the largest ones
    to 10 examples, or to half of the mean size where that is less.
    """
    if not 0 < alpha < np.inf:
        raise not_allowed("data.alpha", alpha, "a positive number")
    order, generator = _drawn_order(labels, seed)
    shuffled = labels[order]
    parts: list[list[Indices]] = [[] for _ in range(count)]
    for label in np.unique(labels):
        members = np.flatnonzero(shuffled == label)
        shares = generator.dirichlet(np.full(count, float(alpha)))
        cuts = (np.cumsum(shares) * len(members)).astype(np.int64)[:-1]
        for number, share in enumerate(np.split(members, cuts)):
            parts[number].append(share)
    joined = [np.concatenate(shares) for shares in parts]
    for part in joined:
        generator.shuffle(part)
    _fill_up(joined, max(1, min(_MINIMUM, len(labels) // (2 * count))))
    return [order[part] for part in joined]


@_of_classes
def pathological(
    labels: Indices, count: int, *, seed: int, classes_per_partition: int = 2
) -> list[Indices] | None:
    """Give each partition some classes: one in turn, the others drawn.

    A few examples may be left out. Return None where a class has fewer examples than partitions
    that should hold some.
    """
    classes = np.unique(labels)
    if not 1 <= classes_per_partition <= len(classes):
        key = "data.classes_per_partition"
        raise not_allowed(key, classes_per_partition, f"1 to {len(classes)}")
    order, generator = _drawn_order(labels, seed)
    shuffled = labels[order]
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
        members = np.flatnonzero(shuffled == label)
        if len(members) < len(holders):
            return None
        if holders:
            for number, share in zip(holders, np.array_split(members, len(holders)), strict=True):
                parts[number].append(share)
    return [order[np.concatenate(shares)] for shares in parts]


@_of_classes
def shard(
    labels: Indices, count: int, *, seed: int, shards_per_partition: int = 2
) -> list[Indices]:
    """Cut the examples, sorted by class, into equal shards, and deal them out.

    McMahan et al. 2017. A few examples may be left out.
    """
    most = len(labels) // count
    if not 1 <= shards_per_partition <= most:
        raise not_allowed("data.shards_per_partition", shards_per_partition, f"1 to {most}")
    order, generator = _drawn_order(labels, seed)
    used = count * shards_per_partition
    size = len(labels) // used
    dealt = generator.permutation(len(labels) // size)[:used].reshape(count, -1)
    by_class = np.argsort(labels[order], kind="stable")
    shards = by_class[: len(labels) // size * size].reshape(-1, size)
    return [order[shards[own].reshape(-1)] for own in dealt]


def linear(labels: Indices, count: int, *, seed: int) -> list[Indices]:
    """Have sizes grow with the number of the partition, counted from 1."""
    return _growing(labels, np.arange(1.0, count + 1), seed)


def square(labels: Indices, count: int, *, seed: int) -> list[Indices]:
    """Have sizes grow with the square of the number of the partition, counted from 1."""
    return _growing(labels, np.square(np.arange(1.0, count + 1)), seed)


def exponential(labels: Indices, count: int, *, seed: int) -> list[Indices]:
    """Have sizes grow by e from partition to partition."""
    with np.errstate(over="ignore"):
        return _growing(labels, np.exp(np.arange(1.0, count + 1)), seed)


def _growing(labels: Indices, units: npt.NDArray[np.float64], seed: int) -> list[Indices]:
    """Cut the examples into parts of sizes in units; the last one takes what rounding leaves."""
    order, _ = _drawn_order(labels, seed)
    with np.errstate(over="ignore", invalid="ignore"):
        shares = units / units.sum()
        sizes = (np.nan_to_num(shares) * len(labels)).astype(np.int64)
    return np.split(order, np.cumsum(sizes)[:-1])


def by_group(
    labels: Indices, count: int, *, seed: int, groups: Indices | None = None
) -> list[Indices]:
    """Give each partition the examples of one group, such as a person.

    Where there are more groups than partitions, the groups are drawn.

    Parameters
    ----------
    labels : int64 array
        Shape ``(n,)``; only its length counts.
    count : int
        Number of devices, at most as many as there are groups.
    seed : int
        Decides which groups take part.
    groups : int64 array, optional
        Shape ``(n,)``: the group of each example.

    Raises
    ------
    InputError
        If the data has no groups, or too few.
    """
    if groups is None:
        raise InputError(
            "data.partition needs the group of each example, which this data set does not have; "
            "allowed: a table with data.partition = 'column:NAME', or a loader that gives groups"
        )
    names, sizes = np.unique(groups, return_counts=True)
    if count > len(names):
        allowed = f"1 to {len(names)}, the number of groups (data.partition)"
        raise not_allowed("fleet.devices", count, allowed)
    parts = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
    chosen = numpy_generator(seed, "partition", "groups").permutation(len(names))[:count]
    return [parts[number] for number in np.sort(chosen)]


def by_column(name: str) -> Callable[..., list[Indices]]:
    """Return :func:`by_group`; the data set's reader takes the groups from the column."""
    if not name:
        raise InputError("'column:' names no column; allowed: column:NAME")
    return by_group


def _drawn_order(labels: Indices, seed: int) -> tuple[Indices, np.random.Generator]:
    """Return an order of the examples, and the generator of what else is drawn."""
    order = numpy_generator(seed, "partition", "order").permutation(len(labels))
    return order, np.random.default_rng(derive_seed(seed, "partition", "scheme"))


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
