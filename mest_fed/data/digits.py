"""The handwritten digits that ship with scikit-learn: 1,797 images of 8x8 pixels."""

import numpy as np
import torch

from mest_fed.data.images import DataSplit, ImageData
from mest_fed.data.optional import require
from mest_fed.rng import numpy_generator

_TEST_FRACTION = 0.2
_LARGEST = 16  # pixel values are 0..16


def load_digits() -> DataSplit:
    """Load the digits, split 80 / 20 within each class, always the same way.

    Raises
    ------
    InputError
        If scikit-learn is not installed.
    """
    bunch = require("sklearn.datasets", extra="data").load_digits()
    images = np.rint(bunch.images * (255 / _LARGEST)).astype(np.uint8)[:, np.newaxis]
    labels = np.asarray(bunch.target, dtype=np.int64)
    generator = numpy_generator(0, "digits", "split")
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(_TEST_FRACTION * len(members))]] = True
    shares = images[~is_test] / 255
    mean, std = (float(shares.mean()),), (float(shares.std()),)

    def part(chosen: np.ndarray) -> ImageData:
        pixels, targets = torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen])
        return ImageData(pixels, targets, 10, mean, std)

    return DataSplit(part(~is_test), part(is_test))
