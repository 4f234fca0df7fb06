"""The data sets by name: ours, kinds of files, and loaders of users."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mest_fed.catalogue import DATASETS
from mest_fed.data.arrays import DataSplit
from mest_fed.data.files import KINDS, Kind, load_files
from mest_fed.data.loaders import Loader, check_options, parts_of
from mest_fed.data.parts import Part
from mest_fed.data.request import DataRequest, DataSource
from mest_fed.data.tables import Columns
from mest_fed.errors import InputError


@dataclass(frozen=True)
class Files(DataSource):
    """Files of one kind, or of the kind that they turn out to be."""

    kind: Kind | None

    def __call__(self, request: DataRequest) -> DataSplit:
        """Load both parts; see :func:`mest_fed.data.files.load_files`."""
        return load_files(self.kind, request)


class Shakespeare(DataSource):
    """Plays by character, as ``flwrlabs/shakespeare``: 80 characters ``x``, and the next one ``y``.

    Groups are the roles (``character_id``).
    """

    def __call__(self, request: DataRequest) -> DataSplit:
        """Load both parts, from parquet files."""
        request.refuse_options("shakespeare")
        columns = Columns(("x",), ("y",), request.columns.groups or "character_id")
        options = {"tokens": "characters", "length": 80}
        return load_files(KINDS["parquet"], replace(request, columns=columns, options=options))


@dataclass(frozen=True)
class UserLoader(DataSource):
    """A loader of a user: ``load(path, **options) -> (train, test)``."""

    name: str
    loader: Loader

    def __call__(self, request: DataRequest) -> DataSplit:
        """Call the loader, and encode what it returns.

        uint8 inputs are normalised; floats stay as the loader made them.
        """
        train, test = self.read(request)
        encoding = request.fit(train, floats=False)
        if request.encoding is None:
            encoding = encoding.with_tokens_of(test)
        return DataSplit(encoding.encode(train), encoding.encode(test), encoding=encoding)

    def read(self, request: DataRequest) -> tuple[Part, Part]:
        """Call the loader; return train and test.

        Raises
        ------
        InputError
            If it raises, or returns something else.
        """
        if request.columns != Columns():
            raise InputError(
                "data.columns and data.partition = 'column:...' are for files; allowed with "
                f"data.name = {self.name!r}: data.partition = 'groups'"
            )
        check_options(self.name, self.loader, request.path, request.options)
        with DATASETS.naming(self.name):  # a data set of the user's may raise, too
            return parts_of(self.name, self.loader(request.path, **request.options))


#: The kind that files turn out to be, or the kind that is named.
FILES = Files(None)
FOLDER, PARQUET, NPZ, CSV, TEXT = (
    Files(KINDS[name]) for name in ("folder", "parquet", "npz", "csv", "text")
)
SHAKESPEARE = Shakespeare()


def find_source(name: str) -> DataSource:
    """Return the data set of a name, or a user's loader.

    Parameters
    ----------
    name : str
        A name of :data:`~mest_fed.catalogue.DATASETS`, ``file.py:load`` or
        ``package.module:load``.

    Raises
    ------
    InputError
        If there is none.
    """
    source = DATASETS.find(name)
    return source if isinstance(source, DataSource) else UserLoader(name, source)


def load_dataset(
    name: str,
    path: str = "",
    *,
    columns: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    normalise: bool = True,
    numbers: bool = False,
) -> DataSplit:
    """Load a data set.

    Parameters
    ----------
    name : str
        See :func:`find_source`.
    path : str
        File, or folder with the data set's files. Empty: download it. ``digits`` needs neither.
    columns : mapping, optional
        Which columns of a table are ``inputs``, ``targets``, ``groups`` and ``categories``.
    options : mapping, optional
        What the kind of files, or the loader, takes beside.
    normalise : bool
        Whether uint8, and floats of a file, are normalised by the training part.
    numbers : bool
        Whether whole numbers as targets are numbers to predict, and no classes.

    Raises
    ------
    InputError
        If the name is unknown, the files are missing or wrong, they cannot be downloaded, or a
        library is not installed.
    """
    chosen = Columns.of(columns or {})
    return find_source(name)(DataRequest(path, chosen, options or {}, normalise, numbers))
