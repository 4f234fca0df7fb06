"""How many examples of each class each device of a fleet has."""

import numpy as np

from mest_fed.data.minibatches import Indices
from mest_fed.run_rows.facts import LabelCounts
from mest_fed.task import Task

#: Most devices whose labels are counted, spread evenly over the fleet: more say nothing new.
MOST_DEVICES = 1000


def label_counts(task: Task) -> LabelCounts | None:
    """Count the labels of each device, held-out examples included; None without classes."""
    classes = task.data.train.classes
    if classes is None or task.data.train.num_classes is None:
        return None
    width = task.data.train.num_classes
    devices = evenly(len(task.partitions), MOST_DEVICES)
    encoding = task.encoding
    names = () if encoding is None else encoding.classes
    return LabelCounts(
        classes=names if len(names) == width else tuple(str(number) for number in range(width)),
        devices=len(task.partitions),
        partitions=devices,
        counts=tuple(count(classes, task.partitions[device], width) for device in devices),
    )


def count(classes: Indices, examples: Indices, width: int) -> tuple[int, ...]:
    """Count the classes of some examples; ``width`` of them."""
    return tuple(int(number) for number in np.bincount(classes[examples], minlength=width))


def evenly(total: int, most: int) -> tuple[int, ...]:
    """Return at most so many numbers of ``range(total)``, evenly spaced."""
    kept = min(total, most)
    return tuple(index * total // kept for index in range(kept))
