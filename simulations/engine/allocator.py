"""The C library's allocator in a worker: what one client frees, the next one takes."""

import ctypes
from contextlib import suppress

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 256 << 20
_LARGE_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """Have this process keep up to 256 MB of freed memory. Does nothing without glibc.

    By default arrays of a megabyte go back to the system at once, and the next client's touch new
    pages, each of which costs a fault.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
