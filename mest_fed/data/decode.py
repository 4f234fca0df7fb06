"""Encoded images (JPEG, PNG) to arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt

from mest_fed.data.optional import require
from mest_fed.errors import InputError

_FORMATS = ("JPEG", "PNG")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images as in their files, and int64 labels."""

    images: Sequence[bytes]
    labels: npt.NDArray[np.int64]


def decode_images(images: Sequence[bytes], out: npt.NDArray[np.uint8], where: str) -> None:
    """Decode images to RGB.

    One thread: on images as small as these, two threads were measured slower than one, since they
    wait for the interpreter lock more than they decode.

    Parameters
    ----------
    images : sequence of bytes
        JPEG or PNG.
    out : uint8 array
        Filled; shape ``(n, 3, height, width)``.
    where : str
        Names the source in errors.

    Raises
    ------
    InputError
        If an image cannot be decoded or has another size, or Pillow is not installed.
    """
    pillow = require("PIL.Image", extra="data")
    height, width = out.shape[2:]
    for position, content in enumerate(images):
        try:
            with pillow.open(BytesIO(content), formats=_FORMATS) as image:
                if image.size != (width, height):
                    raise ValueError(f"it has {image.size} pixels, not {(width, height)}")
                out[position] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except pillow.UnidentifiedImageError as error:
            raise InputError(f"data.path: image {position} of {where} is no image") from error
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
            raise InputError(f"data.path: image {position} of {where}: {error}") from error
