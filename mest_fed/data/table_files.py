"""Parquet and CSV files as columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mest_fed.data.arrays import require
from mest_fed.data.parts import Values
from mest_fed.described import one_line
from mest_fed.errors import InputError, not_allowed

#: Characters that stand between the values of a line in tables that people have.
_DELIMITERS = ",;\t|"


class Table:
    """The columns of some files, each read when it is used.

    Parameters
    ----------
    files : sequence of Path
        Their rows follow each other.
    where : str
        Names key and file in errors.
    """

    names: list[str]
    num_rows: int

    def __init__(self, files: Sequence[Path], where: str) -> None:
        self.files = files
        self.where = where

    def column(self, name: str) -> Any:
        """Return a column as an Arrow array."""
        raise NotImplementedError

    def type_of(self, name: str) -> Any:
        """Return a column's Arrow type, without reading it."""
        return self.column(name).type

    def as_text(self, name: str) -> Values:
        """Return a column as the strings that are in the file."""
        return np.array(self.column(name).cast("string").to_pylist(), dtype=object)

    def error(self, reason: str, row: int | None = None) -> InputError:
        """Build an error about this table."""
        place = "" if row is None else f", row {row + 1}"
        return InputError(f"{self.where}{place}: {reason}{self._hint()}")

    def _hint(self) -> str:
        """Say what else may be wrong with the whole table."""
        return ""

    def check(self, names: Sequence[str]) -> None:
        """Refuse names of columns that are not there."""
        for name in names:
            if name not in self.names:
                raise self.error(f"no column {name!r}; allowed: {', '.join(self.names)}")


class ParquetTable(Table):
    """Parquet files."""

    def __init__(self, files: Sequence[Path], where: str) -> None:
        super().__init__(files, where)
        self.num_rows = 0
        self._schema = self._read([], count=True)[1]
        self.names = list(self._schema.names)

    def type_of(self, name: str) -> Any:
        """Return a column's Arrow type, without reading it."""
        return self._schema.field(name).type

    def column(self, name: str) -> Any:
        """Return a column as an Arrow array."""
        return self._read([name])[0][name].combine_chunks()

    def _read(self, names: list[str], *, count: bool = False) -> tuple[Any, Any]:
        arrow = require("pyarrow", extra="data")
        parquet = require("pyarrow.parquet", extra="data")
        tables = []
        schema = None
        for file in self.files:
            try:
                with parquet.ParquetFile(file) as source:
                    if schema is not None and not set(schema.names) <= set(
                        source.schema_arrow.names
                    ):
                        raise self.error(f"{file.name} has other columns than {self.files[0].name}")
                    schema = schema or source.schema_arrow
                    tables.append(source.read(columns=names))
                    self.num_rows += source.metadata.num_rows if count else 0
            except (arrow.ArrowException, OSError) as error:
                reason = one_line(error)
                raise self.error(f"{file.name} is no parquet file ({reason})") from error
        assert schema is not None
        try:
            whole = arrow.concat_tables(tables, promote_options="permissive")
        except arrow.ArrowException as error:
            reason = one_line(error)
            raise self.error(f"its files have columns of unlike types ({reason})") from error
        return whole, schema


class CsvTable(Table):
    """A CSV file with a header.

    Parameters
    ----------
    files, where
        As for :class:`Table`.
    delimiter : str
        Between values; a tab for files named ``.tsv``.
    """

    def __init__(self, files: Sequence[Path], where: str, delimiter: str = "") -> None:
        super().__init__(files, where)
        if not isinstance(delimiter, str) or len(delimiter) > 1:
            raise not_allowed("data.options.delimiter", delimiter, "one character")
        self._delimiter = delimiter or ("\t" if files[0].suffix == ".tsv" else ",")
        self._table = self._read({})
        self.names, self.num_rows = list(self._table.column_names), self._table.num_rows

    def _hint(self) -> str:
        names = getattr(self, "names", [])  # none while the file is read
        other = next((it for it in _DELIMITERS if len(names) == 1 and it in names[0]), "")
        return other and f"; one column is there: set data.options.delimiter = {other!r}"

    def column(self, name: str) -> Any:
        """Return a column as an Arrow array."""
        values = self._table[name].combine_chunks()
        if require("pyarrow", extra="data").types.is_binary(values.type):
            raise self.error(f"column {name} is no UTF-8 text; allowed: UTF-8")
        return values

    def as_text(self, name: str) -> Values:
        """Return a column as the strings that are in the file."""
        text = self._read({name: require("pyarrow", extra="data").string()})[name]
        return np.array(text.to_pylist(), dtype=object)

    def _read(self, types: Mapping[str, Any]) -> Any:
        arrow = require("pyarrow", extra="data")
        csv = require("pyarrow.csv", extra="data")
        convert = csv.ConvertOptions(column_types=types, strings_can_be_null=False)
        tables: list[Any] = []
        for file in self.files:
            try:
                table = csv.read_csv(
                    file,
                    read_options=csv.ReadOptions(use_threads=False),
                    parse_options=csv.ParseOptions(
                        delimiter=self._delimiter, newlines_in_values=True
                    ),
                    convert_options=convert,
                )
            except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
                reason = one_line(error)
                raise self.error(f"{file.name} is no CSV table ({reason})") from error
            names = table.column_names
            if len(set(names)) < len(names):
                raise self.error(f"{file.name} has two columns of one name")
            if tables and names != tables[0].column_names:
                first = self.files[0].name
                raise self.error(f"{file.name} has other columns than {first}")
            tables.append(table)
        try:
            return arrow.concat_tables(tables, promote_options="permissive")
        except arrow.ArrowException as error:
            reason = one_line(error)
            raise self.error(f"its files have columns of unlike types ({reason})") from error
