"""What the arrays of an ``.npz`` file of examples may be called. Needs nothing."""

#: Names of inputs and targets, in the order in which they are looked for.
ARRAY_NAMES = (
    ("inputs", "targets"),
    ("images", "labels"),
    ("x", "y"),
    ("X", "y"),
    ("data", "labels"),
)
#: The same for people.
NAMES_IN_WORDS = " or ".join(f"{inputs}, {targets}" for inputs, targets in ARRAY_NAMES)


def names_among(names: list[str]) -> tuple[str, str] | None:
    """Return the first pair that is among some names, or None."""
    return next((pair for pair in ARRAY_NAMES if set(pair) <= set(names)), None)
