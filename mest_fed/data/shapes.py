"""What a model must fit, known without loading a data set: a server may have none."""

from mest_fed.errors import not_allowed

ImageShape = tuple[int, int, int]

_SHAPES: dict[str, tuple[ImageShape, int]] = {
    "digits": ((1, 8, 8), 10),
    "cifar10": ((3, 32, 32), 10),
}


def image_shape(name: str) -> tuple[ImageShape, int]:
    """Return a data set's (channels, height, width) and number of classes.

    Raises
    ------
    InputError
        If the name is unknown.
    """
    if name not in _SHAPES:
        raise not_allowed("data.name", name, _SHAPES)
    return _SHAPES[name]
