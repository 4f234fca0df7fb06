"""Image data sets by name: CIFAR-10, CIFAR-100, MNIST, FEMNIST. Decoded once, then mapped."""

import gzip
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mest_fed.data.arrays import DataSplit, ExampleSpec, require
from mest_fed.data.cache import cached, load_array
from mest_fed.data.encoding import Encoding
from mest_fed.data.files import KINDS, TEST_FRACTION, split_rows
from mest_fed.data.images import DECODED, decode_into
from mest_fed.data.parts import Column, Part, Values
from mest_fed.data.request import DataRequest, DataSource
from mest_fed.data.table_files import ParquetTable
from mest_fed.data.tables import Columns, TableOptions, read_table
from mest_fed.errors import InputError, not_allowed

_IMAGES = ("img", "image")


@dataclass(frozen=True)
class ImageSet(DataSource):
    """A data set of images whose shape and classes are known by its name.

    Its files are parquet as the Hugging Face hub writes them: ``train.parquet`` and
    ``test.parquet``, or shards of them, with a column ``img`` or ``image`` and a label.

    Parameters
    ----------
    name : str
        As in ``data.name``.
    shape : tuple of int
        (channels, height, width) of an image.
    num_classes : int
        Number of classes.
    labels : tuple of str
        Names that the column of labels may have.
    mean, std : tuple of float
        Of each channel, as commonly used; empty: found in the training images.
    hub : str
        Where ``flwr-datasets`` downloads it from if there is no path; empty: nowhere.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    labels: tuple[str, ...] = ("label",)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    hub: str = ""

    @property
    def example(self) -> ExampleSpec:
        """Shape and classes, which are known without the files."""
        return ExampleSpec(self.shape, self.num_classes)

    @property
    def encoding(self) -> Encoding | None:
        """What is known without the files; None if the statistics are not."""
        if not self.mean:
            return None
        return Encoding(self.shape, "uint8", self.num_classes, mean=self.mean, std=self.std)

    def __call__(self, request: DataRequest) -> DataSplit:
        """Load both parts.

        Raises
        ------
        InputError
            If files are missing or wrong, the download fails, or a library is not installed.
        """
        request.refuse_options(self.name)
        train = self.read(request, "train")
        test = self.read(request, "test")
        if train is None:
            raise not_allowed("data.path", request.path, self._allowed)
        encoding = self.encoding
        if test is None:
            if encoding is not None:
                raise not_allowed("data.path", request.path, self._allowed)
            rows, held = split_rows(train, TEST_FRACTION)
            encoding = self._fit(train, rows)
            whole = encoding.encode(train)
            return DataSplit(whole.take(rows), whole.take(held), encoding=encoding)
        encoding = encoding or self._fit(train)
        return DataSplit(
            encoding.encode(train), encoding.encode(test), reloads=True, encoding=encoding
        )

    def _fit(self, train: Part, rows: Values | None = None) -> Encoding:
        return replace(Encoding.fit(train, rows=rows), num_classes=self.num_classes)

    @property
    def _allowed(self) -> str:
        return "a folder with train.parquet and test.parquet, or with a hub's shards of them"

    def read(self, request: DataRequest, name: str) -> Part | None:
        """Read one part; None if it has no files."""
        if not request.path:
            return self._download(name)
        folder = Path(request.path).expanduser()
        files = KINDS["parquet"].find(folder, (name,))
        if not files:
            return self._read_idx(folder, name, request.key)
        table = ParquetTable(files, f"{request.key}: {files[0]}")
        image, label = (
            next((column for column in names if column in table.names), names[0])
            for names in (_IMAGES, self.labels)
        )
        columns = Columns((image,), (label,), request.columns.groups)
        part = read_table(table, columns, TableOptions(pixels=self.shape))
        if part.targets[0].values.dtype.kind not in "iu":
            raise part.error(f"column {label} is not a column of whole numbers")
        return part

    def _read_idx(self, folder: Path, name: str, key: str) -> Part | None:
        """Read the original files of MNIST: ``train-images-idx3-ubyte`` and the like."""
        stem = "t10k" if name == "test" else name
        paths = [
            next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)
            for file in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
        ]
        images, labels = paths
        if images is None or labels is None or self.shape[0] != 1:
            return None
        where = f"{key}: {images}"
        pixels, kinds = _read_idx(images, key), _read_idx(labels, key)
        if len(pixels) != len(kinds) or pixels.ndim != 3 or kinds.ndim != 1:
            raise InputError(f"{where} has {len(pixels)} images for {len(kinds)} labels")
        return Part(where, [Column("image", pixels[:, None])], [Column("label", kinds)])

    def _download(self, name: str) -> Part:
        if not self.hub:
            raise not_allowed("data.path", "", self._allowed)
        where = f"data.path: {self.hub}"

        def build(folder: Path) -> None:
            images, labels = self._from_hub(name)
            decode_into(folder, images, where, self.shape)
            np.save(folder / "labels.npy", labels)

        folder = cached(f"{self.name}-hub-{name}", build)
        labels = load_array(folder, "labels.npy", mapped=False)
        pixels = load_array(folder, DECODED)
        return Part(where, [Column("img", pixels)], [Column("label", labels)])

    def _from_hub(self, name: str) -> tuple[list[bytes], Values]:
        hub = require("flwr_datasets", extra="simulation")
        image = require("datasets", extra="simulation").Image(decode=False)
        try:
            dataset = hub.FederatedDataset(
                dataset=self.hub, partitioners={"train": 1}, shuffle=False
            )
            table = dataset.load_split(name).cast_column("img", image)
        except Exception as error:  # the hub's and the network's errors have no common base
            raise InputError(
                f"data.path is empty and {self.hub} cannot be downloaded "
                f"({type(error).__name__}); "
                "set data.path to a folder with train.parquet and test.parquet"
            ) from error
        return [row["bytes"] for row in table["img"]], np.array(table["label"], np.int64)


def _read_idx(file: Path, key: str) -> Values:
    """Read a file in the IDX format: two zero bytes, type, dimensions, sizes, then bytes.

    Raises
    ------
    InputError
        If it is not such a file of bytes.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if content[:3] != b"\0\0\x08":
            raise ValueError("no IDX file of bytes")
        rank = content[3]
        sizes = np.frombuffer(content, ">u4", rank, offset=4)
        data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
        if len(data) != math.prod(map(int, sizes)):
            raise ValueError("it is cut off")
        return data.reshape(tuple(map(int, sizes)))
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise InputError(f"{key}: {file} cannot be read ({error})") from error


#: Statistics of the original training split.
CIFAR10 = ImageSet(
    "cifar10",
    (3, 32, 32),
    10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    hub="uoft-cs/cifar10",
)
CIFAR100 = ImageSet(
    "cifar100",
    (3, 32, 32),
    100,
    labels=("fine_label", "label"),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
MNIST = ImageSet("mnist", (1, 28, 28), 10, mean=(0.1307,), std=(0.3081,))
FEMNIST = ImageSet("femnist", (1, 28, 28), 62, labels=("character", "label"))
