"""What the targets of a data set are: found in the training part, and the same in all others."""

from dataclasses import dataclass

import numpy as np

from mest_fed.data.parts import (
    Part,
    Values,
    are_tokens,
    codes_of,
    raw_targets,
    shape_text,
    text_of,
    token_ids,
)
from mest_fed.units import number_of

#: A token that is no target, as torch's losses have it.
IGNORED = -100


@dataclass(frozen=True)
class Targets:
    """Classes, tokens or numbers.

    Parameters
    ----------
    num_classes : int or None
        Classes or tokens to predict; None where targets are numbers.
    shape : tuple of int
        Of one target: () for a class.
    classes : tuple of str
        Their names in order, where labels are strings.
    """

    num_classes: int | None
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    @classmethod
    def find(
        cls, train: Part, inputs: Values, num_tokens: int | None, *, numbers: bool
    ) -> "Targets":
        """Find what the targets of a training part are.

        Parameters
        ----------
        train : Part
            The part.
        inputs : array
            Its inputs as numbers.
        num_tokens : int or None
            Size of the vocabulary, where inputs are tokens.
        numbers : bool
            Whether whole numbers are numbers to predict, and no classes.

        Raises
        ------
        InputError
            If labels are no classes counted from 0.
        """
        first = train.targets[0]
        if len(train.targets) == 1 and first.is_text and not numbers:
            if first.values.ndim > 1:
                return cls(num_tokens, inputs.shape[1:])
            names = tuple(np.unique(text_of(train, first)).tolist())
            return cls(len(names), classes=names)
        targets = raw_targets(train)
        if are_tokens(targets, inputs) and not numbers:
            return cls(max(int(targets.max()) + 1, num_tokens or 0), inputs.shape[1:])
        if targets.ndim == 1 and targets.dtype.kind in "iu" and not numbers:
            return cls(_count_classes(train, targets))
        return cls(None, targets.shape[1:] or (1,))

    @property
    def per_token(self) -> bool:
        """Whether there is one for each token of a sequence."""
        return self.num_classes is not None and self.shape != ()

    def encode(self, part: Part, inputs: Values, tokens: tuple[str, ...]) -> Values:
        """Return the targets of a part as int64 or float32.

        Parameters
        ----------
        part : Part
            The part.
        inputs : array
            Its inputs as numbers.
        tokens : tuple of str
            The vocabulary in order, where inputs are sequences of strings.

        Raises
        ------
        InputError
            If they do not fit, or are labels or tokens that train does not have.
        """
        first = part.targets[0]
        if self.num_classes is not None and len(part.targets) == 1:
            if tokens and first.is_text and first.values.ndim > 1:
                return token_ids(part, first, tokens)
            if self.classes:
                return codes_of(part, "label", first.strings(), self.classes)
            if first.is_text and first.values.ndim == 1:
                return codes_of(
                    part, "label", first.values, list(map(str, range(self.num_classes)))
                )
        raw = raw_targets(part)
        if self.num_classes is None:
            return self._numbers(part, raw)
        if raw.dtype.kind == "f":
            raise part.error(f"targets are {raw.dtype}; allowed: whole numbers")
        per_example = are_tokens(raw, inputs)
        if raw.ndim != 1 and not per_example:
            raise part.error(
                f"targets are {raw.dtype}, shape {raw.shape}; allowed: shape ({len(part)},)"
            )
        wrong = (raw < 0) | (raw >= self.num_classes)
        if per_example:
            wrong &= raw != IGNORED
        if wrong.any():
            row = int(np.argmax(wrong.reshape(len(raw), -1).any(axis=1)))
            label = raw[row][wrong[row]].flat[0] if raw.ndim > 1 else raw[row]
            allowed = f"0 to {self.num_classes - 1}"
            raise part.error(f"label {label} is out of range; allowed: {allowed}", row)
        return raw.astype(np.int64)

    def _numbers(self, part: Part, raw: Values) -> Values:
        numbers = raw.astype(np.float32)
        numbers = numbers[:, None] if numbers.ndim == 1 else numbers
        if numbers.shape[1:] != self.shape:
            given, allowed = map(shape_text, (numbers.shape[1:], self.shape))
            raise part.error(f"targets have the shape {given}; allowed: {allowed}")
        return numbers


def _count_classes(train: Part, labels: Values) -> int:
    """Return how many classes there are, if labels count them from 0."""
    if labels.min() < 0:
        row = int(np.argmin(labels))
        raise train.error(f"label {labels[row]} is out of range; allowed: 0 or more", row)
    count = int(labels.max()) + 1
    if count > max(1000, len(train)):
        raise train.error(
            f"label {count - 1} is out of range for {number_of(len(train), 'example')}; "
            "allowed: classes counted from 0, or floats for regression",
            int(labels.argmax()),
        )
    return count
