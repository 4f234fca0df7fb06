"""Parquet files of encoded images, in the layout of the Hugging Face data sets."""

from pathlib import Path

import numpy as np

from mest_fed.data.decode import Encoded
from mest_fed.data.optional import require
from mest_fed.errors import InputError

_IMAGE_COLUMNS = ("img", "image")
_EXPECTED = "columns img (or image) with a field bytes, and label"


def read_encoded(file: Path) -> Encoded:
    """Read encoded images and their labels.

    Parameters
    ----------
    file : Path
        Parquet file with a column ``img`` or ``image`` (struct of ``bytes`` and more) and an
        integer column ``label``.

    Raises
    ------
    InputError
        If the file is not parquet, has other columns or missing values, or pyarrow is not
        installed.
    """
    arrow = require("pyarrow", extra="data")
    parquet = require("pyarrow.parquet", extra="data")
    try:
        with parquet.ParquetFile(file) as source:
            names = source.schema_arrow.names
            column = next((name for name in _IMAGE_COLUMNS if name in names), None)
            if column is None or "label" not in names:
                raise _wrong(file, f"its columns are {', '.join(names)}")
            table = source.read(columns=[column, "label"])
    except (arrow.ArrowException, OSError) as error:
        raise _wrong(file, str(error).splitlines()[0]) from error
    images, labels = table[column].combine_chunks(), table["label"].combine_chunks()
    if not arrow.types.is_integer(labels.type) or labels.null_count:
        raise _wrong(file, "label is not a column of whole numbers")
    if not arrow.types.is_struct(images.type) or images.type.get_field_index("bytes") < 0:
        raise _wrong(file, f"{column} has no field bytes")
    content = images.field("bytes")
    if not arrow.types.is_binary(content.type) or images.null_count or content.null_count:
        raise _wrong(file, f"{column}.bytes is not binary, or has missing values")
    return Encoded(content.to_pylist(), labels.to_numpy(zero_copy_only=False).astype(np.int64))


def _wrong(file: Path, reason: str) -> InputError:
    return InputError(f"data.path: {file} must be a parquet file with {_EXPECTED}; {reason}")
