"""What is found in the training part: categories, vocabulary, mean and deviation of inputs."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mest_fed.data.parts import (
    Column,
    Part,
    Values,
    chunks,
    text_of,
)


def categories_of(train: Part) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return the values of the columns of strings, and the vocabulary of a column of sequences."""
    found: dict[str, tuple[str, ...]] = {}
    for column in train.inputs:
        if not column.is_text:
            continue
        values = text_of(train, column)
        names = tuple(np.unique(values).tolist())
        if values.ndim > 1:
            if len(train.inputs) > 1:
                raise train.error(f"column {column.name} has sequences; allowed: it alone")
            return {}, names
        found[column.name] = names
    return found, ()


def numeric_inputs(
    columns: Sequence[Column], categories: Mapping[str, tuple[str, ...]], width: int
) -> npt.NDArray[np.bool_]:
    """Return which inputs of a table are numbers, and no categories; all of other data."""
    if not categories:
        return np.ones(width, dtype=bool)
    found = []
    for column in columns:
        kinds = categories.get(column.name)
        each = int(np.prod(column.values.shape[1:])) if kinds is None else len(kinds)
        found.append(np.full(each, kinds is None))
    return np.concatenate(found)


def mean_and_deviation(inputs: Values) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and deviation for each index of the second dimension; 1 where all are equal.

    uint8 is in units of 255. Sums of whole numbers are exact.
    """
    channels = inputs.shape[1]
    each = inputs.size // channels
    if inputs.dtype == np.uint8:
        total, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
        for _, chunk in chunks(inputs):
            pixels = np.moveaxis(chunk, 1, 0).reshape(channels, -1).astype(np.int64)
            total += pixels.sum(axis=1)
            squares += (pixels * pixels).sum(axis=1)
        mean = total / each
        deviation = np.sqrt(np.maximum(squares / each - mean * mean, 0))
        return mean / 255, np.where(deviation > 0, deviation / 255, 1.0)
    axes = (0, *range(2, inputs.ndim))
    mean = sum(chunk.sum(axis=axes, dtype=np.float64) for _, chunk in chunks(inputs)) / each
    wide = mean.reshape(channels, *(1,) * (inputs.ndim - 2))
    spread = sum(np.square(chunk - wide).sum(axis=axes) for _, chunk in chunks(inputs)) / each
    deviation = np.sqrt(spread)
    equal = deviation <= 1e-7 * np.abs(mean)
    return mean, np.where(equal, 1.0, deviation)
