"""How fast a core is in Python: what messages and rounds take beside their steps goes by it."""

import statistics
import time
from dataclasses import dataclass

from mest_fed.devices.calibration.steps import program_texts
from mest_fed.runtime.reading import parse_program

#: A program whose text is read, as a node reads those of a server, and how long one core of the
#: reference machine takes for it in seconds (measured, 2026-11-30).
_PROGRAM, _SECONDS = "resnet20 3x32x32 block 0.1 by 8", 6.7e-3


@dataclass(frozen=True)
class PythonSpeed:
    """Measured.

    Parameters
    ----------
    seconds : float
        To read the program, the median of several.
    """

    seconds: float

    @property
    def speed(self) -> float:
        """As a multiple of the reference machine's."""
        return _SECONDS / self.seconds


def time_python(repeats: int, least: float) -> PythonSpeed:
    """Time Python by processor time.

    Parameters
    ----------
    repeats : int
        Timings, of which the median counts.
    least : float
        Seconds that a timing takes at least, by so many runs.
    """
    (text, _) = program_texts()[_PROGRAM]

    def timed(times: int) -> float:
        start = time.process_time()
        for _ in range(times):
            parse_program(text, _PROGRAM)
        return (time.process_time() - start) / times

    times = max(1, round(least / timed(1)))
    return PythonSpeed(statistics.median(timed(times) for _ in range(repeats)))
