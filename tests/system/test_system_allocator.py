"""Pages that are given back: gone from the process, zeros when they are read again."""

import sys

import numpy as np
import pytest

from mest_fed.system.allocator import release_pages

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's madvise")


def anonymous():
    """Return the kilobytes of anonymous memory that this process holds."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


def test_whole_pages_are_given_back_and_read_as_zeros():
    array = np.ones(8 << 20, np.uint8)
    before = anonymous()
    released = release_pages(array)
    assert len(array) - 2 * 65536 <= released <= len(array)
    assert before - anonymous() >= 0.9 * released / 1024
    assert np.count_nonzero(array) == len(array) - released
    array[:] = 2
    assert int(array.sum()) == 2 * len(array)


@pytest.mark.parametrize("size", [0, 1, 4000])
def test_less_than_a_page_stays_as_it_is(size):
    array = np.ones(3 * 65536, np.uint8)
    part = array[-array.ctypes.data % 65536 + 1 :][:size]
    assert release_pages(part) == 0
    assert array.all()
