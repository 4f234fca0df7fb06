"""Compact storage for what autograd keeps between the forward and the backward pass.

Eight bits a number with one scale a plane (:func:`quantise`), or a bit a number and those that are
not zero (:func:`pack_nonzeros`), which loses nothing. Compiled for float32 on the CPU, else by
torch.

Results are storage: no gradient flows through any of these functions.
"""

from collections.abc import Sequence

from torch import Tensor

from mest_fed.kernels import native_compact  # noqa: F401 - registers operators
from mest_fed.kernels.compact_reference import image_sizes
from mest_fed.kernels.native import OPERATORS


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Store each number in 8 bits.

    A code c stands for low + c step, where low is its plane's least number and step the plane's
    (largest - least) / 255. In float32 step is rounded up to 16 significant bits; it is at least
    2^-110 but in constant planes, where it is 0. Codes are rounded to the nearest, half up: what
    comes back is off by step / 2 at most, apart from float rounding. What equals low, or stands in
    a constant plane, comes back as it was (-0.0 as 0.0).

    The same bits come from any number of threads, any instruction set and torch.

    Parameters
    ----------
    x : Tensor
        float32 or float64, of shape (n, c, ...): each image's channel is a plane. Of a shape
        (n, features) each row is one.

    Returns
    -------
    codes : Tensor
        uint8, of x's shape.
    levels : Tensor
        low and step, of x's type and shape (planes, 2). NaN for a plane with NaN or infinity, or
        one too wide for the type: low + 255 step, or 255 step, overflows.

    Raises
    ------
    ValueError
        If ``x`` is of another type or has fewer than 2 dimensions.
    """
    codes, levels = OPERATORS.quantise(x.detach())
    return codes, levels


def dequantise(codes: Tensor, levels: Tensor) -> Tensor:
    """Return what :func:`quantise` stored, or some images of it.

    Parameters
    ----------
    codes : Tensor
        uint8, of shape (n, c, ...) or (n, features).
    levels : Tensor
        Shape (planes, 2): for ``codes[a:b]`` those are ``levels[a * c : b * c]``.

    Returns
    -------
    Tensor
        Of the codes' shape and the levels' type; NaN in planes whose levels are NaN.

    Raises
    ------
    ValueError
        If types or shapes do not fit.
    """
    x: Tensor = OPERATORS.dequantise(codes, levels)
    return x


def pack_nonzeros(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Store what is not zero, and a bit for every element; -0.0 counts as zero.

    Parameters
    ----------
    x : Tensor
        Floats of shape (n, ...).

    Returns
    -------
    bits : Tensor
        uint8, of shape (n, bytes), with bytes = elements of an image / 8, rounded up. Element i of
        an image is bit i % 8, counted from the lowest, of byte i // 8; spare bits are 0.
    values : Tensor
        Elements that are not zero, NaN among them, in order: of x's type and shape (count,). Of a
        fake or meta tensor count is the number of all elements.
    starts : Tensor
        int64, of shape (n + 1,): where each image's values start, and count.

    Raises
    ------
    ValueError
        If ``x`` has no dimension or holds no floats.
    """
    bits, values, starts = OPERATORS.pack_nonzeros(x.detach())
    return bits, values, starts


def unpack_nonzeros(
    bits: Tensor,
    values: Tensor,
    starts: Tensor,
    shape: Sequence[int],
    *,
    first: int = 0,
    last: int | None = None,
) -> Tensor:
    """Return the images ``first`` to ``last`` (not included) of what :func:`pack_nonzeros` stored.

    Parameters
    ----------
    bits, values, starts : Tensor
        Of all images.
    shape : sequence of int
        Of all images, (n, ...).
    first, last : int
        Which images; None: up to the end.

    Returns
    -------
    Tensor
        Of the values' type and shape (last - first, ...).

    Raises
    ------
    ValueError
        If types, shapes, bits or starts do not fit each other. Bits and starts of other images are
        not looked at.
    """
    if last is None:
        last = image_sizes(shape)[0]
    x: Tensor = OPERATORS.unpack_nonzeros(bits, values, starts, shape, first, last)
    return x
