"""Images: decoding, and folders with a subfolder of images for each class."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.data.arrays import require
from mest_fed.data.cache import cached, listing_digest, load_array
from mest_fed.data.parts import Column, Part
from mest_fed.errors import InputError, not_allowed

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
#: Pillow's modes of images without colour.
_GREY = ("1", "L", "LA")

Pixels = npt.NDArray[np.uint8]
#: What an image is in: its bytes, or its file.
Source = bytes | Path


def decode_images(
    images: Sequence[Source], out: Pixels, where: str, *, scale: bool = False
) -> None:
    """Decode images.

    One thread: on images as small as these, two threads were measured slower than one, since they
    wait for the interpreter lock more than they decode.

    Parameters
    ----------
    images : sequence of bytes or Path
        JPEG, PNG and other formats.
    out : uint8 array
        Filled; shape ``(n, channels, height, width)`` with 3 channels (RGB) or 1 (grey).
    where : str
        Names key and source in errors.
    scale : bool
        Whether an image of another size is scaled (bilinear), rather than refused.

    Raises
    ------
    InputError
        If an image cannot be decoded or has another size, or Pillow is not installed.
    """
    channels, height, width = out.shape[1:]
    mode = "RGB" if channels == 3 else "L"
    for position, source in enumerate(images):
        with _opened(source, position, where) as image:
            if image.size != (width, height) and not scale:
                raise ValueError(
                    f"it has {image.size} pixels, not {(width, height)}; allowed: images of one "
                    "size, or data.options.size"
                )
            shown = image.convert(mode)
            if image.size != (width, height):
                shown = shown.resize((width, height), resample=2)  # bilinear
            pixels = np.asarray(shown)
            out[position] = pixels.transpose(2, 0, 1) if channels == 3 else pixels


def image_shape(images: Sequence[Source], where: str, size: int | None) -> tuple[int, int, int]:
    """Return (channels, height, width) of some images: grey if all are.

    Parameters
    ----------
    images : sequence of bytes or Path
        Only their headers are read.
    where : str
        Names key and source in errors.
    size : int or None
        Height and width that they will be scaled to; None for those that they have.

    Raises
    ------
    InputError
        If there is none, one cannot be read, or one has more than 8 bits a pixel.
    """
    shape = (0, 0)
    grey = True
    for position, source in enumerate(images):
        with _opened(source, position, where) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"its mode is {image.mode}; allowed: 8 bits a channel")
            grey = grey and image.mode in _GREY
            shape = shape if position else (image.height, image.width)
    if not images:
        raise InputError(f"{where} holds no images")
    height, width = shape if size is None else (size, size)
    return (1 if grey else 3), height, width


@contextmanager
def _opened(source: Source, position: int, where: str) -> Iterator[Any]:
    """Open an image; what goes wrong with it names it."""
    pillow = require("PIL.Image", extra="data")
    key, _, place = where.partition(": ")
    name = f"{key}: {source if isinstance(source, Path) else f'image {position} of {place}'}"
    try:
        stream = BytesIO(source) if isinstance(source, bytes) else source
        with pillow.open(stream, formats=_FORMATS) as image:
            yield image
    except pillow.UnidentifiedImageError as error:
        raise InputError(f"{name} is no image") from error
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise InputError(f"{name}: {error}") from error


def decoded(
    key: str,
    images: Callable[[], Sequence[Source]],
    where: str,
    *,
    shape: tuple[int, int, int] | None = None,
    size: int | None = None,
) -> Pixels:
    """Return decoded images as pages of the cache, into which they are decoded the first time.

    Parameters
    ----------
    key : str
        Stands for their content.
    images : callable
        Returns them as they are in their files; called if they are not in the cache.
    where : str
        Names key and source in errors.
    shape : tuple of int, optional
        (channels, height, width) that they must have; by default what is found.
    size : int, optional
        Height and width to scale them to.

    Raises
    ------
    InputError
        As :func:`decode_images`.
    """
    _check_size(size)
    key = "-".join([key, *map(str, (*(shape or ()), *([] if size is None else [size])))])

    def build(folder: Path) -> None:
        encoded = images()
        wanted = image_shape(encoded, where, size) if shape is None else shape
        decode_into(folder, encoded, where, wanted, scale=size is not None)

    return load_array(cached(key, build), DECODED)


#: The file of decoded images in a folder of the cache.
DECODED = "images.npy"


def decode_into(
    folder: Path,
    images: Sequence[Source],
    where: str,
    shape: tuple[int, int, int],
    *,
    scale: bool = False,
) -> None:
    """Decode images into a file of a folder; see :func:`decode_images`."""
    sizes = (len(images), *shape)
    pixels = np.lib.format.open_memmap(folder / DECODED, "w+", np.uint8, sizes)
    decode_images(images, pixels, where, scale=scale)
    pixels.flush()


def _check_size(size: object) -> None:
    if size is None:
        return
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 4096:
        raise not_allowed("data.options.size", size, "pixels of height and width, 1 to 4096")


def class_folders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, one for each class."""
    if not folder.is_dir():
        return []
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def files_of_class(folder: Path) -> list[Path]:
    """Return the images in a class's folder and beneath it."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)


def read_image_folder(
    folder: Path,
    key: str,
    *,
    size: int | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Part:
    """Read ``CLASS/*.png`` and the like.

    Parameters
    ----------
    folder : Path
        Has a subfolder for each class.
    key : str
        Names the setting in errors.
    size : int, optional
        Height and width to scale images to; by default all must have one size.
    shape : tuple of int, optional
        (channels, height, width) that they must have; by default what is found.

    Raises
    ------
    InputError
        If a class has no images, an image cannot be read, or sizes differ.
    """
    files: list[Path] = []
    labels: list[str] = []
    for kind in class_folders(folder):
        found = files_of_class(kind)
        if not found:
            raise InputError(
                f"{key}: {kind} holds no images; allowed: files named {', '.join(_SUFFIXES)}"
            )
        files += found
        labels += [kind.name] * len(found)
    where = f"{key}: {folder}"
    if not files:
        raise InputError(f"{where} holds no images; allowed: CLASS/*.png and the like")
    name = f"images-{listing_digest(folder, files)}"
    pixels = decoded(name, lambda: files, where, shape=shape, size=size)
    places = [str(file.relative_to(folder)) for file in files]
    label = Column("label", np.array(labels))
    return Part(where, [Column("image", pixels)], [label], places=places)
