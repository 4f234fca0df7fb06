"""Several observers are called as one; a fault-tolerant tracker may fail."""

import errno
import logging

import pytest
from tiny_run import Recorder, start, tiny_config

from mest_fed.server.run_log import RUN_LOG
from mest_fed.simulation.trackers.progress import FaultTolerantTracker, Observers

FULL = OSError(errno.ENOSPC, "No space left on device")


class Failing(Recorder):
    """Raises when a method is called; keeps what it receives all the same."""

    def __init__(self, method, error):
        super().__init__()
        self.method, self.error = method, error

    def begin(self, *arguments):
        super().begin(*arguments)
        self._fail("begin")

    def round_done(self, row):
        super().round_done(row)
        self._fail("round_done")

    def end(self):
        super().end()
        self._fail("end")

    def _fail(self, method):
        if method == self.method:
            raise self.error


def tell(observer):
    observer.begin(tiny_config(), "tiny", [{"round": 0}])
    for number in (1, 2, 3):
        observer.round_done({"round": number})
    observer.end()


def test_all_are_called_in_their_order():
    called = []

    class Named(Recorder):
        def round_done(self, row):
            super().round_done(row)
            called.append((self, row["round"]))

    first, second = Named(), Named()
    tell(Observers(first, second))
    assert called == [(who, number) for number in (1, 2, 3) for who in (first, second)]
    for observer in (first, second):
        assert (observer.begun, observer.ended) == ((3, 0), 1)


@pytest.mark.parametrize(
    ("method", "rounds"), [("begin", []), ("round_done", [1]), ("end", [1, 2, 3])]
)
def test_a_fault_tolerant_tracker_fails_once(method, rounds, caplog):
    failing, other = Failing(method, FULL), Recorder()
    with caplog.at_level(logging.WARNING):
        tell(Observers(FaultTolerantTracker("the log", failing), other))
    assert failing.rounds == rounds
    assert failing.ended >= 1
    assert (other.rounds, other.ended) == ([1, 2, 3], 1)
    said = [record.message for record in caplog.records if record.name != RUN_LOG]
    assert said == [f"the log stopped (OSError: {FULL}); the run goes on without it"]
    assert [record.name for record in caplog.records if record.exc_info] == [RUN_LOG]


def test_ctrl_c_is_no_failure_of_an_observer():
    with pytest.raises(KeyboardInterrupt):
        tell(FaultTolerantTracker("the log", Failing("round_done", KeyboardInterrupt())))


def test_a_run_goes_on_without_it(tmp_path):
    shown = Recorder()
    failing = FaultTolerantTracker("the log", Failing("round_done", FULL))
    start(tmp_path / "run", tiny_config(), display=Observers(failing, shown))
    assert (shown.rounds, shown.ended) == ([0, 1, 2, 3], 1)
    assert (tmp_path / "run" / "summary.json").exists()
