"""How a data set is shared out among the devices: flwr-datasets' partitioners on indices."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.data.images import Indices
from mest_fed.data.optional import require
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
        If a value is not allowed, there are too many partitions for the examples, or
        flwr-datasets is not installed.
    """
    if scheme not in SCHEMES:
        raise not_allowed("data.partition", scheme, SCHEMES)
    if not 1 <= num_partitions <= len(labels):
        raise not_allowed(
            "fleet.devices", num_partitions, f"1 to {len(labels)}, the number of examples"
        )
    options: dict[str, Any] = {"num_partitions": num_partitions}
    if scheme == "dirichlet":
        options |= _dirichlet(alpha)
    elif scheme == "pathological":
        options |= _pathological(classes_per_partition, len(np.unique(labels)))
    elif scheme == "shard":
        options |= _shard(shards_per_partition, len(labels) // num_partitions)
    order = numpy_generator(seed, "partition", "order").permutation(len(labels))
    parts = _run(scheme, options, labels[order], derive_seed(seed, "partition", "scheme"))
    if scheme == "dirichlet":
        _fill_up(parts, max(1, min(_MINIMUM, len(labels) // (2 * num_partitions))))
    return [np.sort(order[part]) for part in parts]


def _dirichlet(alpha: float) -> dict[str, Any]:
    if not 0 < alpha < np.inf:
        raise not_allowed("data.alpha", alpha, "a positive number")
    return {"partition_by": "label", "alpha": float(alpha), "min_partition_size": 0}


def _pathological(classes_per_partition: int, num_classes: int) -> dict[str, Any]:
    if not 1 <= classes_per_partition <= num_classes:
        key = "data.classes_per_partition"
        raise not_allowed(key, classes_per_partition, f"1 to {num_classes}")
    return {
        "partition_by": "label",
        "num_classes_per_partition": classes_per_partition,
        "class_assignment_mode": "first-deterministic",
    }


def _shard(shards_per_partition: int, most: int) -> dict[str, Any]:
    if not 1 <= shards_per_partition <= most:
        raise not_allowed("data.shards_per_partition", shards_per_partition, f"1 to {most}")
    return {"partition_by": "label", "num_shards_per_partition": shards_per_partition}


def _run(
    scheme: str, options: dict[str, Any], labels: npt.NDArray[np.int64], seed: int
) -> list[Indices]:
    with warnings.catch_warnings():
        # The library warns of what is checked here, and of what its own dependencies deprecate.
        warnings.simplefilter("ignore")
        datasets = require("datasets", extra="simulation")
        library = require("flwr_datasets.partitioner", extra="simulation")
        if "partition_by" in options:
            options = options | {"seed": seed}
        partitioner = getattr(library, f"{scheme.capitalize()}Partitioner")(**options)
        partitioner.dataset = datasets.Dataset.from_dict(
            {"index": np.arange(len(labels)), "label": labels}
        )
        try:
            return [
                partitioner.load_partition(number).with_format("numpy")[:]["index"].astype(np.int64)
                for number in range(options["num_partitions"])
            ]
        except ValueError as error:
            raise InputError(
                f"fleet.devices = {options['num_partitions']} is too many for data.partition = "
                f"{scheme!r} of {len(labels)} examples; some partitions would be empty"
            ) from error


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
