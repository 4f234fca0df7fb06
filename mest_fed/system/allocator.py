"""How memory that is free leaves the process, so that others can have it and a figure is true."""

import ctypes
import mmap
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Settings of glibc that a process must start with, so that freed memory leaves it and the figure
#: is about the work and not about arenas.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}

_DONTNEED = 4  # MADV_DONTNEED, of Linux


def release_pages(array: "NDArray[Any]") -> int:
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
    page = mmap.PAGESIZE
    start = -(-array.ctypes.data // page) * page
    end = (array.ctypes.data + array.nbytes) // page * page
    if end <= start:
        return 0
    place, size = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
    return end - start if _libc().madvise(place, size, _DONTNEED) == 0 else 0


def release_freed() -> None:
    """Have the C library give back what was freed; does nothing beside glibc."""
    try:
        _libc().malloc_trim(0)
    except (OSError, AttributeError):
        return


@cache
def _libc() -> ctypes.CDLL:
    """Return the C library. Each handle has a class of its own, some kilobytes, so there is one."""
    return ctypes.CDLL(None, use_errno=True)
