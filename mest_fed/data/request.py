"""What a configuration asks of a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mest_fed.data.arrays import DataSplit, ExampleSpec
from mest_fed.data.encoding import Encoding
from mest_fed.data.minibatches import Indices
from mest_fed.data.parts import Part
from mest_fed.data.tables import Columns
from mest_fed.errors import InputError, not_allowed


@dataclass(frozen=True)
class DataRequest:
    """Where a data set is, and how it is to be read.

    Parameters
    ----------
    path : str
        ``data.path``: a file or folder.
    columns : Columns
        ``data.columns``: which columns of a table are what.
    options : mapping of str to value
        ``data.options``: what a kind of files, or a user's loader, takes beside.
    normalise : bool
        Whether uint8, and floats of a file, are normalised by the training part.
    numbers : bool
        Whether whole numbers as targets are numbers to predict, and no classes.
    key : str
        Names the setting in errors.
    encoding : Encoding, optional
        How examples become arrays; by default it is found in the training part.
    """

    path: str = ""
    columns: Columns = field(default_factory=Columns)
    options: Mapping[str, Any] = field(default_factory=dict)
    normalise: bool = True
    numbers: bool = False
    key: str = "data.path"
    encoding: Encoding | None = None

    def fit(self, train: Part, rows: Indices | None = None, *, floats: bool = True) -> Encoding:
        """Find how a training part becomes arrays; see :meth:`Encoding.fit`."""
        if self.encoding is not None:
            return self.encoding
        return Encoding.fit(
            train, rows=rows, normalise=self.normalise, floats=floats, numbers=self.numbers
        )

    def refuse_options(self, name: str) -> None:
        """Refuse options for a data set that has none.

        Raises
        ------
        InputError
            If there are any.
        """
        for option, value in self.options.items():
            raise not_allowed(f"data.options.{option}", value, f"nothing with data.name = {name!r}")
        if self.columns != Columns(groups=self.columns.groups):
            raise InputError(
                f"data.columns is for tables; allowed with data.name = {name!r}: groups"
            )


class DataSource:
    """A data set that has a name: called with a request, it loads both parts.

    Attributes
    ----------
    has_files : bool
        Whether it is read from ``data.path``.
    """

    has_files: ClassVar[bool] = True

    @property
    def encoding(self) -> Encoding | None:
        """What is known without the files; None where shape or statistics are not."""
        return None

    @property
    def example(self) -> ExampleSpec | None:
        """Shapes and types that are known without the files, or None."""
        return None

    def __call__(self, request: DataRequest) -> DataSplit:
        """Load both parts.

        Raises
        ------
        InputError
            If files are missing or wrong, or the request is.
        """
        raise NotImplementedError
