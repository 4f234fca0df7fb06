"""A device's own examples, which are in no common data set."""

from pathlib import Path

from mest_fed.data.arrays import ArrayData
from mest_fed.data.datasets import UserLoader, find_source
from mest_fed.data.encoding import Encoding
from mest_fed.data.files import read_files
from mest_fed.data.parts import Part
from mest_fed.data.request import DataRequest
from mest_fed.errors import InputError, not_allowed

#: How errors name what is wrong: as an option of ``mest-fed client`` and in the node config.
KEY = "data (of this node)"


def load_own(name: str, path: str, request: DataRequest | None = None) -> ArrayData:
    """Load the examples that a device holds itself, in the shape of a run's data set.

    They become numbers as the run's training data did: with its classes, categories and
    statistics.

    Parameters
    ----------
    name : str
        The run's data set.
    path : str
        Where the device's examples are: files of any kind (a folder of images by class, parquet,
        ``.npz``, CSV, text), or what the run's own loader reads; of two parts, train is taken.
    request : DataRequest, optional
        Where the run's data set is, and how it is read.

    Raises
    ------
    InputError
        If there is nothing at the path, it does not fit the run, or the run's data set is needed
        to say how it fits, and is not on this device.
    """
    request = request or DataRequest()
    source = find_source(name)
    encoding = request.encoding or source.encoding
    if encoding is None:
        encoding = _encoding_of_run(name, request)
    place = Path(path).expanduser()
    if not (path and place.exists()):
        raise not_allowed(KEY, path, "a file or folder that exists")
    here = DataRequest(path, request.columns, request.options, key=KEY)
    if isinstance(source, UserLoader):
        return encoding.encode(source.read(here)[0])
    return encoding.encode(_read(place, here, encoding))


def _read(place: Path, request: DataRequest, encoding: Encoding) -> Part:
    return read_files(place, request, encoding.shape)


def _encoding_of_run(name: str, request: DataRequest) -> Encoding:
    try:
        found = find_source(name)(request).encoding
    except InputError as error:
        raise InputError(
            f"data.name = {name!r}: a device with examples of its own needs data.encoding, or the "
            f"run's data to find classes and statistics in; {error}"
        ) from error
    assert found is not None
    return found
