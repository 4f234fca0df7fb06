"""What all tests of the wire need."""

import pytest

from mest_fed.wire import values


@pytest.fixture(autouse=True)
def _no_run_before(monkeypatch):
    """Read numbers of codecs by name alone: a run of an earlier test may have opened others."""
    monkeypatch.setattr(values, "_OPENED", {})
