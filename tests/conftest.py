"""What all tests need of their process."""

import gc
import os
import signal
import tempfile
import weakref

import hypothesis
import pytest
import torch

# The tensors here are too small to share among threads, and machines are busy.
torch.set_num_threads(1)

# No test fails because other work has the machine.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

# A shell that starts tests in the background has them ignore Ctrl-C, and so would every process
# that they start and stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Measured peaks and decoded data are cached; what an earlier run left there shall decide nothing.
_cache = tempfile.TemporaryDirectory(prefix="mest-fed-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name

#: Ray leaves open what its processes write to, and drops their handles while they run. Python warns
#: of either when it finds them, perhaps in a later test of the file.
LEFT_BY_RAY = (
    "ignore:unclosed file .*/dev/null.*:ResourceWarning",
    "ignore:subprocess .* is still running:ResourceWarning",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Allow what Ray leaves open, in the files that have a test with it; run such files first.

    So run those of real devices: they wait much, and at the end nothing would run beside them.
    """
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    waiting = with_ray | {item.path for item in items if item.get_closest_marker("net")}
    items.sort(key=lambda item: item.path not in waiting)
    for item in items:
        if item.path in with_ray:
            for warning in LEFT_BY_RAY:
                item.add_marker(pytest.mark.filterwarnings(warning), append=False)


_unfreeze = gc.unfreeze


def pytest_collection_finish():
    """Keep tests and libraries, which stay to the end, out of every search for garbage.

    A device's process lets go of what it froze before its child trained: here that would be all.
    """
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None


def pytest_unconfigure():
    """Let go of them, so that what libraries count as leaked is none of theirs."""
    _unfreeze()


@pytest.fixture
def stands(monkeypatch):
    """Return what says, of each batch that follows one, whether that still stood in memory."""
    from mest_fed.data.minibatches import Minibatches, Rows

    found, made, batch, make = [], [], Minibatches._batch, Rows.make

    def next_batch(self, positions):
        if made:
            found.append(any(each() is not None for each in made))
        made.clear()
        return batch(self, positions)

    def part(self, places):
        rows = make(self, places)
        made.append(weakref.ref(rows))
        return rows

    monkeypatch.setattr(Minibatches, "_batch", next_batch)
    monkeypatch.setattr(Rows, "make", part)
    return found
