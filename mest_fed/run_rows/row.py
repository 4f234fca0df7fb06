"""What all rows have in common: how they become JSON, and the limits of their numbers."""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """The limits of a number, which pydantic checks where a row is read.

    Parameters
    ----------
    least, most : float, float or None
        The smallest and the largest value allowed; None: no largest.
    """

    least: float
    most: float | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        """Tell pydantic the limits; this module does not import it."""
        most = {} if self.most is None else {"le": self.most}
        return handler(source) | {"ge": self.least} | most


Share = Annotated[float, Limits(0, 1)]
Amount = Annotated[float, Limits(0)]
Count = Annotated[int, Limits(0)]
#: A number that is finite.
Number = Annotated[float, Limits(-sys.float_info.max, sys.float_info.max)]


def as_row(row: "DataclassInstance", optional: Collection[str] = ()) -> Row:
    """Return a row as the dict that is written as JSON.

    Parameters
    ----------
    row : dataclass
        An instance of a class of this package.
    optional : collection of str
        Keys that are left out where their value is None, at any depth.
    """
    return {
        key: _plain(value, optional)
        for key, value in vars(row).items()
        if value is not None or key not in optional
    }


def _plain(value: Any, optional: Collection[str]) -> Any:
    # Most values are scalars; dataclasses.asdict copies each deeply, which takes longer.
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(each, optional) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each, optional) for each in value]
    return as_row(value, optional)
