"""Memory that stays allocated and is given back to the system until it is used again."""

import ctypes
import mmap
import sys

import numpy as np
from numpy.typing import NDArray

_DONTNEED = 4  # MADV_DONTNEED, of Linux


def release_pages(array: "NDArray[np.generic]") -> int:
    """Give the whole pages of an array back; whoever reads them next finds zeros.

    Parameters
    ----------
    array : array
        Contiguous, of private memory, and of no use to anybody as it is.

    Returns
    -------
    int
        Bytes that were given back; 0 on systems other than Linux.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    start = -(-array.ctypes.data // page) * page
    end = (array.ctypes.data + array.nbytes) // page * page
    if end <= start:
        return 0
    place, size = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
    return end - start if libc.madvise(place, size, _DONTNEED) == 0 else 0
