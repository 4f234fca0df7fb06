"""The data sets by name."""

from collections.abc import Callable

from mest_fed.data.cifar10 import load_cifar10
from mest_fed.data.digits import load_digits
from mest_fed.data.images import DataSplit
from mest_fed.errors import not_allowed

DATASETS: dict[str, Callable[[str], DataSplit]] = {
    "digits": lambda _path: load_digits(),
    "cifar10": load_cifar10,
}


def load_dataset(name: str, path: str = "") -> DataSplit:
    """Load a data set.

    Parameters
    ----------
    name : str
        A key of ``DATASETS``.
    path : str
        Folder with the data set's files. Empty: download it. ``digits`` needs neither.

    Raises
    ------
    InputError
        If the name is unknown, the files are missing or wrong, they cannot be downloaded, or a
        library is not installed.
    """
    if name not in DATASETS:
        raise not_allowed("data.name", name, DATASETS)
    return DATASETS[name](path)
