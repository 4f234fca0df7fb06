"""Data in files without a loader: which files are which part, how each kind is read, and the split.

A kind is recognised by its files: a folder with a subfolder of images for each class, parquet,
``.npz``, CSV, or text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mest_fed.data.arrays import DataSplit
from mest_fed.data.images import class_folders, files_of_class, read_image_folder
from mest_fed.data.loaders import read_arrays
from mest_fed.data.minibatches import Indices
from mest_fed.data.parts import Part
from mest_fed.data.request import DataRequest
from mest_fed.data.series import Series
from mest_fed.data.table_files import CsvTable, ParquetTable
from mest_fed.data.tables import Columns, TableOptions, read_table
from mest_fed.data.text import read_text
from mest_fed.errors import InputError, not_allowed
from mest_fed.rng import numpy_generator
from mest_fed.units import number_of

TRAIN = ("train", "training")
#: The first of these that is there is the central test set.
TEST = ("test", "testing", "validation", "valid", "val")

#: Share of the examples that becomes the central test set where there is none.
TEST_FRACTION = 0.2


class Kind:
    """How files of one kind are found and read.

    Parameters
    ----------
    name : str
        As in ``data.name``.
    suffixes : tuple of str
        Of its files; empty for folders of images.
    read : callable
        ``(files, key, columns, **options)`` -> :class:`Part`.
    options : tuple of str
        That ``read`` takes.
    """

    def __init__(
        self, name: str, suffixes: tuple[str, ...], read: Callable[..., Part], *options: str
    ) -> None:
        self.name = name
        self.suffixes = suffixes
        self.read = read
        self.options = options

    @property
    def has_columns(self) -> bool:
        """Whether ``data.columns`` says which of its columns, or arrays, are what."""
        return self.name in ("parquet", "npz", "csv")

    def find(self, place: Path, names: Sequence[str]) -> list[Path]:
        """Return the files of a part, in their order; empty if there are none.

        Parameters
        ----------
        place : Path
            A folder.
        names : sequence of str
            What the part may be called.

        Raises
        ------
        InputError
            If shards are missing, or shards of several downloads lie beside each other.
        """
        for name in names:
            if not self.suffixes:
                folder = place / name
                if any(files_of_class(kind) for kind in class_folders(folder)):
                    return [folder]
                continue
            for suffix in self.suffixes:
                whole = place / f"{name}{suffix}"
                if whole.is_file():
                    return [whole]
                if found := shards(place, name, suffix):
                    return found
        return []

    def alone(self, place: Path) -> list[Path]:
        """Return the files of a data set that is in one part; empty if there are none."""
        if not self.suffixes:
            is_one = any(files_of_class(kind) for kind in class_folders(place))
            return [place] if is_one else []
        if place.is_file():
            return [place] if place.suffix.lower() in self.suffixes else []
        if not place.is_dir():
            return []
        return sorted(file for file in place.iterdir() if file.suffix.lower() in self.suffixes)


def shards(place: Path, name: str, suffix: str = ".parquet") -> list[Path]:
    """Return the shards of a part that a hub names, ``train-00000-of-00002.parquet`` and so on.

    They are in the folder, or in ``data`` or the name of a configuration beneath it.

    Raises
    ------
    InputError
        If a shard is missing, or shards of several downloads lie beside each other.
    """
    found = sorted(place.glob(f"{name}-*-of-*{suffix}"))
    found = found or sorted(place.glob(f"*/{name}-*-of-*{suffix}"))
    if not found:
        return []
    count = found[0].stem.rpartition("-of-")[2].partition("-")[0]
    numbers = range(int(count)) if count.isdecimal() else ()
    expected = [f"{name}-{number:05d}-of-{count}" for number in numbers]
    # A hub's older files carry a digest behind the numbers.
    stems = [shard.stem[: len(f"{name}-00000-of-00000")] for shard in found]
    if stems != expected or len({shard.parent for shard in found}) > 1:
        raise InputError(
            f"data.path: {place} has {', '.join(shard.name for shard in found)}; "
            f"allowed: all shards of one download, {name}-00000-of-{count}{suffix} and so on"
        )
    return found


def _read_images(files: list[Path], key: str, columns: Columns, **options: Any) -> Part:
    _no_columns(columns, "folder")
    return read_image_folder(files[0], key, **options)


def _read_parquet(files: list[Path], key: str, columns: Columns, **options: Any) -> Part:
    return read_table(ParquetTable(files, _where(files, key)), columns, _table_options(options))


def _read_csv(
    files: list[Path], key: str, columns: Columns, *, delimiter: str = "", **options: Any
) -> Part:
    table = CsvTable(files, _where(files, key), delimiter)
    return read_table(table, columns, _table_options(options))


def _read_npz(files: list[Path], key: str, columns: Columns) -> Part:
    part = read_arrays(files[0], key, columns)
    assert part is not None
    return part


def _read_lines(files: list[Path], key: str, columns: Columns, **options: Any) -> Part:
    _no_columns(columns, "text")
    return read_text(files[0], key, **options)


def _no_columns(columns: Columns, kind: str) -> None:
    if columns != Columns():
        raise InputError(
            "data.columns and data.partition = 'column:NAME' are for tables; "
            f"data.name = {kind!r} has no columns"
        )


def _where(files: list[Path], key: str) -> str:
    return f"{key}: {files[0] if len(files) == 1 else files[0].parent}"


def _table_options(options: Mapping[str, Any]) -> TableOptions:
    names = [field.name for field in fields(Series)]
    series = Series(**{name: value for name, value in options.items() if name in names})
    rest = {name: value for name, value in options.items() if name not in names}
    return TableOptions(**rest, series=series)


_OF_TABLES = ("size", "shape", "tokens", "length", "window", "stride", "horizon")

KINDS = {
    kind.name: kind
    for kind in (
        Kind("folder", (), _read_images, "size"),
        Kind("parquet", (".parquet",), _read_parquet, *_OF_TABLES),
        Kind("npz", (".npz",), _read_npz),
        Kind("csv", (".csv", ".tsv"), _read_csv, "delimiter", *_OF_TABLES),
        Kind("text", (".txt",), _read_lines, "length", "tokens"),
    )
}


def find_kind(place: Path, key: str) -> Kind:
    """Return the kind of the files at a place.

    Raises
    ------
    InputError
        If there is nothing, or nothing of any kind.
    """
    for kind in KINDS.values():
        if kind.find(place, TRAIN) or kind.alone(place):
            return kind
    kinds = "a folder of images by class, .parquet, .npz, .csv, .tsv or .txt files"
    raise not_allowed(key, str(place), kinds)


def load_files(kind: Kind | None, request: DataRequest) -> DataSplit:
    """Load a data set from a file, or from a folder.

    A folder has parts named ``train`` and ``test``, or one part, which is then split.

    Parameters
    ----------
    kind : Kind or None
        None finds out by the files.
    request : DataRequest
        Its options are those of the kind, and ``test_fraction``.

    Raises
    ------
    InputError
        If files are missing or wrong, or an option is not one of the kind.
    """
    place = Path(request.path).expanduser()
    if not (request.path and place.exists()):
        raise not_allowed(request.key, request.path, "a file or folder that exists")
    kind = kind or find_kind(place, request.key)
    options = dict(request.options)
    fraction = _fraction(options.pop("test_fraction", TEST_FRACTION))
    check_options(kind, options, "test_fraction")
    train, test = _parts(kind, place, replace(request, options=options))
    if test is None:
        rows, held = split_rows(train, fraction)
        encoding = request.fit(train, rows)
        whole = encoding.encode(train)
        return DataSplit(whole.take(rows), whole.take(held), encoding=encoding)
    encoding = request.fit(train)
    data = encoding.encode(train)
    mapped = kind.name in ("folder", "parquet") and data.inputs.dim() == 4
    return DataSplit(data, encoding.encode(test), mapped, encoding)


def read_files(place: Path, request: DataRequest, shape: tuple[int, ...]) -> Part:
    """Read a device's own examples, which are of any kind of files.

    Parameters
    ----------
    place : Path
        A file, or a folder, whose part named ``train`` is taken if it has one.
    request : DataRequest
        What of its options the kind does not have is for another kind of files.
    shape : tuple of int
        Of an input of the run: images are read so.

    Raises
    ------
    InputError
        If there is nothing, or it cannot be read.
    """
    kind = find_kind(place, request.key)
    given = request.options.items()
    options = {name: value for name, value in given if name in kind.options}
    if kind.name == "folder" and len(shape) == 3:
        options["shape"] = shape
    columns = request.columns if kind.has_columns else Columns()
    return _parts(kind, place, replace(request, options=options, columns=columns))[0]


def _parts(kind: Kind, place: Path, request: DataRequest) -> tuple[Part, Part | None]:
    key, columns = request.key, request.columns
    if kind.name == "npz" and (alone := kind.alone(place)) and len(alone) == 1:
        train, test = (read_arrays(alone[0], key, columns, part) for part in ("train", "test"))
        if train is not None and test is not None:
            return train, test
    files, held = kind.find(place, TRAIN), kind.find(place, TEST)
    if files:
        train = kind.read(files, key, columns, **request.options)
        return train, kind.read(held, key, columns, **request.options) if held else None
    alone = kind.alone(place)
    if not alone:
        kinds = ", ".join(kind.suffixes) or "CLASS/*.png"
        raise not_allowed(key, str(place), f"a file or folder of {kinds} ({kind.name})")
    if len(alone) > 1 and kind.name in ("npz", "text"):
        raise not_allowed(key, str(place), f"one file, or train and test{kind.suffixes[0]}")
    return kind.read(alone, key, columns, **request.options), None


def check_options(kind: Kind, options: Mapping[str, Any], *more: str) -> None:
    """Refuse options that files of a kind do not have."""
    for name, value in options.items():
        if name not in kind.options:
            raise not_allowed(f"data.options.{name}", value, (*kind.options, *more))


def _fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise not_allowed("data.options.test_fraction", value, "a number in (0, 1)")
    return float(value)


def split_rows(part: Part, fraction: float) -> tuple[Indices, Indices]:
    """Split the examples of a part into training and test, always the same way.

    Windows and sequences are split by time, within each group: the last ones are the test. Others
    are drawn, within each class where there are classes.

    Raises
    ------
    InputError
        If there are too few.
    """
    count = len(part)
    if part.overlap is not None:
        held, kept = _last(part, fraction), np.zeros(count, dtype=bool)
        kept[~held] = True
        owners = np.zeros(count, dtype=np.int64) if part.groups is None else part.groups
        for owner in np.unique(owners):
            mine = np.flatnonzero(owners == owner)
            edge = int(np.argmax(held[mine])) if held[mine].any() else len(mine)
            kept[mine[max(0, edge - part.overlap) : edge]] = False
    else:
        held = _drawn(part, fraction)
        kept = ~held
    if not held.any() or not kept.any():
        raise part.error(f"{number_of(count, 'example')}: too few to split into train and test")
    return np.flatnonzero(kept), np.flatnonzero(held)


def _last(part: Part, fraction: float) -> np.ndarray:
    held = np.zeros(len(part), dtype=bool)
    owners = np.zeros(len(part), dtype=np.int64) if part.groups is None else part.groups
    for owner in np.unique(owners):
        mine = np.flatnonzero(owners == owner)
        held[mine[len(mine) - round(fraction * len(mine)) :]] = True
    return held


def _drawn(part: Part, fraction: float) -> np.ndarray:
    held = np.zeros(len(part), dtype=bool)
    first = part.targets[0].values
    generator = numpy_generator(0, "files", "split")
    are_classes = len(part.targets) == 1 and first.ndim == 1 and first.dtype.kind != "f"
    labels = first.astype(str) if are_classes else np.zeros(len(part), dtype=np.int64)
    if round(fraction * np.unique(labels, return_counts=True)[1].max(initial=0)) == 0:
        labels = np.zeros(len(part), dtype=np.int64)  # classes too rare for a share of each
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held[members[: round(fraction * len(members))]] = True
    return held
