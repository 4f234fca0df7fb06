"""From what was read (columns of numbers or strings) to arrays: found in train, kept for the rest.

Classes, categories, vocabulary and statistics come from the training part alone. The central test
set and a device's own examples are encoded as it was.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mest_fed.data.arrays import ArrayData, ExampleSpec
from mest_fed.data.minibatches import Indices
from mest_fed.data.parts import (
    TOKENS,
    Column,
    Part,
    Values,
    check_not_negative,
    codes_of,
    group_codes,
    numbers_of,
    shape_text,
    token_ids,
)
from mest_fed.data.statistics import categories_of, mean_and_deviation, numeric_inputs
from mest_fed.data.targets import Targets
from mest_fed.errors import InputError, not_allowed


@dataclass(frozen=True)
class Encoding:
    """How a part becomes arrays.

    Parameters
    ----------
    shape : tuple of int
        Of one input.
    dtype : {"uint8", "float32", "int64"}
        Of the inputs as they are stored.
    num_classes : int or None
        Classes or tokens to predict; None where targets are numbers.
    target_shape : tuple of int
        Of one target: () for a class.
    classes : tuple of str
        Their names in order, where labels are strings.
    mean, std : tuple of float
        See :class:`~mest_fed.data.ArrayData`.
    categories : mapping of str to tuple of str
        The values of each column of strings, which becomes one input for each of them.
    tokens : tuple of str
        The vocabulary in order, where inputs are sequences of strings.
    num_tokens : int or None
        Size of the vocabulary.
    """

    shape: tuple[int, ...]
    dtype: str
    num_classes: int | None
    target_shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    num_tokens: int | None = None

    def as_table(self) -> dict[str, Any]:
        """Return it as plain values, for JSON; :meth:`read` reads them."""
        return asdict(self)

    @classmethod
    def read(cls, table: Mapping[str, Any], key: str) -> "Encoding":
        """Read what :meth:`as_table` wrote, which may come from outside.

        Raises
        ------
        InputError
            If something is missing or of the wrong kind.
        """
        names = {each.name for each in fields(cls)}
        if set(table) != names:
            wrong = sorted(set(table) ^ names)[0]
            raise InputError(f"{key}.{wrong} is unknown or missing; allowed: a run's encoding.json")
        tuples = {name: _list(table[name], kind, f"{key}.{name}") for name, kind in _LISTS.items()}
        kinds = table["categories"]
        if not isinstance(kinds, dict) or table["dtype"] not in ("uint8", "float32", "int64"):
            raise InputError(f"{key} is no encoding; allowed: a run's encoding.json")
        categories = {
            name: _list(values, str, f"{key}.categories.{name}") for name, values in kinds.items()
        }
        for name in ("num_classes", "num_tokens"):
            if not (table[name] is None or _is(table[name], int)):
                raise not_allowed(f"{key}.{name}", table[name], "a whole number")
        if len(tuples["mean"]) != len(tuples["std"]) or 0 in tuples["std"]:
            raise not_allowed(f"{key}.std", table["std"], "one for each mean, none of them 0")
        return cls(**{**table, **tuples, "categories": categories})

    @property
    def example(self) -> ExampleSpec:
        """Shapes and types of one example, as a model meets it."""
        return ExampleSpec(
            self.shape,
            math.prod(self.target_shape) if self.num_classes is None else self.num_classes,
            torch.int64 if self.dtype == "int64" else torch.float32,
            self.target_shape,
            torch.float32 if self.num_classes is None else torch.int64,
            self.num_tokens,
        )

    @property
    def targets(self) -> Targets:
        """What the targets are."""
        return Targets(self.num_classes, self.target_shape, self.classes)

    @classmethod
    def of(cls, data: ArrayData) -> "Encoding":
        """Return the encoding of numbers that are like those of some data."""
        example, dtype = data.example, str(data.inputs.dtype).removeprefix("torch.")
        return cls(
            data.input_shape,
            dtype,
            data.num_classes,
            target_shape=example.target_shape,
            mean=data.mean,
            std=data.std,
            num_tokens=data.num_tokens,
        )

    @classmethod
    def fit(
        cls,
        train: Part,
        *,
        rows: Indices | None = None,
        normalise: bool = True,
        floats: bool = True,
        numbers: bool = False,
    ) -> "Encoding":
        """Find how a training part, and all that is like it, becomes arrays.

        Parameters
        ----------
        train : Part
            Classes, categories, vocabulary and statistics are taken from it.
        rows : int64 array, optional
            Statistics are over these alone, where the part is split afterwards.
        normalise : bool
            Whether inputs are normalised; without, uint8 is divided by 255 alone.
        floats : bool
            Whether that holds for floats, too, or for uint8 alone.
        numbers : bool
            Whether whole numbers as targets are numbers to predict, and no classes.

        Raises
        ------
        InputError
            If the part is empty, or its values are no numbers that could be learned from.
        """
        if len(train) == 0:
            raise train.error("it holds no examples; allowed: at least one")
        kinds = categories_of(train)
        bare = cls((), "", None, categories=kinds[0], tokens=kinds[1])
        inputs = bare._inputs(train)
        if not inputs.size:
            raise train.error("its inputs are empty; allowed: at least one number in each")
        found = replace(bare, shape=inputs.shape[1:], dtype=str(inputs.dtype))
        num_tokens = len(found.tokens) or None
        if inputs.dtype == np.int64 and not found.tokens:
            num_tokens = int(inputs.max()) + 1
        targets = Targets.find(train, inputs, num_tokens, numbers=numbers)
        found = replace(
            found,
            num_classes=targets.num_classes,
            target_shape=targets.shape,
            classes=targets.classes,
            num_tokens=targets.num_classes if targets.per_token else num_tokens,
        )
        if inputs.dtype == np.int64:
            return found
        if inputs.dtype == np.uint8 and not normalise:
            channels = inputs.shape[1]
            return replace(found, mean=(0.0,) * channels, std=(1.0,) * channels)
        if normalise and (floats or inputs.dtype == np.uint8):
            mean, std = mean_and_deviation(inputs if rows is None else inputs[rows])
            numeric = numeric_inputs(train.inputs, bare.categories, inputs.shape[1])
            mean, std = np.where(numeric, mean, 0.0), np.where(numeric, std, 1.0)
            return replace(found, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
        return found

    def with_tokens_of(self, test: Part) -> "Encoding":
        """Return the encoding with a vocabulary that holds the token numbers of test, too.

        Numbers of tokens stand for a vocabulary that the user has; train may lack some of them.
        """
        if self.num_tokens is None or self.tokens:
            return self
        inputs = self._inputs(test)
        most = int(inputs.max()) + 1 if inputs.size and inputs.dtype == np.int64 else 0
        count = max(self.num_tokens, most)
        predicted = count if self.targets.per_token else self.num_classes
        return replace(self, num_tokens=count, num_classes=predicted)

    def encode(self, part: Part) -> ArrayData:
        """Make arrays of a part.

        Raises
        ------
        InputError
            If it does not fit, or has labels, categories or tokens that train does not have.
        """
        if len(part) == 0:
            raise part.error("it holds no examples; allowed: at least one")
        inputs = self._inputs(part)
        if inputs.shape[1:] != self.shape or inputs.dtype != self.dtype:
            allowed = f"{self.dtype}, {shape_text(self.shape)}"
            given = f"{inputs.dtype}, {shape_text(inputs.shape[1:])}"
            raise part.error(f"inputs are {given}; allowed: {allowed}, as in the training data")
        self._check_tokens(part, inputs)
        targets = self.targets.encode(part, inputs, self.tokens)
        return ArrayData(
            _tensor(inputs),
            _tensor(targets),
            self.num_classes,
            self.mean,
            self.std,
            None if part.groups is None else _tensor(group_codes(part)),
            self.num_tokens,
        )

    def _inputs(self, part: Part) -> Values:
        """Return the inputs as uint8, float32 or int64."""
        columns = part.inputs
        if self.tokens:
            return token_ids(part, columns[0], self.tokens)
        if len(columns) == 1 and columns[0].name not in self.categories:
            array = numbers_of(part, columns[0])
            if array.dtype in TOKENS and array.ndim > 1:
                check_not_negative(part, columns[0].name, array)
                return array.astype(np.int64, copy=False)
            if array.ndim == 1 or (array.ndim == 3 and array.dtype == np.uint8):
                array = array[:, None]  # grey images without their channel
            return array if array.dtype == np.uint8 else array.astype(np.float32, copy=False)
        features = [self._feature(part, column) for column in columns]
        return np.concatenate(features, axis=1, dtype=np.float32)

    def _feature(self, part: Part, column: Column) -> Values:
        """Return a column of a table as float32, shape ``(n, width)``."""
        if column.name in self.categories:
            names = self.categories[column.name]
            codes = codes_of(part, f"column {column.name}", column.strings(), names)
            return np.eye(len(names), dtype=np.float32)[codes]
        numbers = numbers_of(part, column)
        if numbers.ndim > 2:
            shape = shape_text(numbers.shape[1:])
            raise part.error(
                f"column {column.name} has values of {shape} beside other inputs; allowed: it alone"
            )
        return numbers.reshape(len(numbers), -1)

    def _check_tokens(self, part: Part, inputs: Values) -> None:
        if inputs.dtype != np.int64:
            return
        if self.num_tokens is not None and int(inputs.max()) >= self.num_tokens:
            row = int(np.argmax((inputs >= self.num_tokens).reshape(len(inputs), -1).any(axis=1)))
            most = self.num_tokens - 1
            raise part.error(
                f"token {inputs[row].max()} is out of range; allowed: 0 to {most}", row
            )


_LISTS: dict[str, type] = {
    "shape": int,
    "target_shape": int,
    "classes": str,
    "mean": float,
    "std": float,
    "tokens": str,
}


def _is(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind) and not (isinstance(value, int) and value < 1)


def _list(values: object, kind: type, key: str) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple) or not all(_is(value, kind) for value in values):
        raise not_allowed(key, values, f"a list of {kind.__name__}")
    return tuple(values)


def _tensor(array: Values) -> Tensor:
    """Give torch an array without a copy where it can have it so."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
