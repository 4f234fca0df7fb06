"""The digits of scikit-learn: 1,797 images of 8 x 8 pixels, which need no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from mest_fed.data.arrays import ArrayData, DataSplit, ExampleSpec, require
from mest_fed.data.encoding import Encoding
from mest_fed.data.request import DataRequest, DataSource
from mest_fed.errors import not_allowed
from mest_fed.rng import numpy_generator

_TEST_FRACTION = 0.2
_LARGEST = 16  # pixel values are 0..16


class Digits(DataSource):
    """Split 80 / 20 within each class, always the same way."""

    name = "digits"
    has_files = False

    @property
    def example(self) -> ExampleSpec:
        """Shape and classes, which are known without the files."""
        return ExampleSpec((1, 8, 8), 10)

    @property
    def encoding(self) -> Encoding | None:
        """What devices' own images are encoded by."""
        return self(DataRequest()).encoding

    def __call__(self, request: DataRequest) -> DataSplit:
        """Load both parts.

        Raises
        ------
        InputError
            If scikit-learn is not installed, or files are named.
        """
        request.refuse_options(self.name)
        if request.path:
            where = f"nothing with data.name = {self.name!r}, which has no files"
            raise not_allowed(request.key, request.path, where)
        pixels, labels = _read()
        images = np.rint(pixels * (255 / _LARGEST)).astype(np.uint8).reshape(-1, 1, 8, 8)
        generator = numpy_generator(0, "digits", "split")
        is_test = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            is_test[members[: round(_TEST_FRACTION * len(members))]] = True
        shares = images[~is_test] / 255
        mean, std = (float(shares.mean()),), (float(shares.std()),)

        def part(chosen: np.ndarray) -> ArrayData:
            shown, targets = torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen])
            return ArrayData(shown, targets, 10, mean, std)

        train = part(~is_test)
        return DataSplit(train, part(is_test), reloads=True, encoding=Encoding.of(train))


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels of shape (n, 64) and labels.

    The file is read without importing scikit-learn where it lies as expected: the import costs
    every process of a fleet a second and 100 MB.
    """
    package = find_spec("sklearn")
    folders = package.submodule_search_locations if package is not None else None
    for folder in folders or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            table = np.loadtxt(path, delimiter=",", dtype=np.int64)
            return table[:, :-1], table[:, -1]
    bunch = require("sklearn.datasets", extra="data").load_digits()
    return bunch.data, np.asarray(bunch.target, dtype=np.int64)


DIGITS = Digits()
