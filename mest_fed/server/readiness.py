"""Waiting where no real device may train: a phone that is unplugged costs no run its rounds."""

from logging import getLogger
from time import sleep

from mest_fed.server.round_record import RoundRecord
from mest_fed.units import format_seconds

log = getLogger(__name__)

#: Seconds that the first wait takes; each that follows takes twice as long, up to the longest.
_FIRST, _LONGEST = 5.0, 600.0


class Readiness:
    """Waits before a round if in the one before every device said that it may not train now."""

    def __init__(self) -> None:
        self._next = _FIRST

    def wait_after(self, record: RoundRecord) -> float:
        """Wait as a round's outcome asks for; return for how many seconds."""
        failures = [client.failure for client in record.clients]
        if not failures or not all(it is not None and it.ordinary for it in failures):
            self._next = _FIRST
            return 0.0
        seconds, self._next = self._next, min(2 * self._next, _LONGEST)
        log.warning(
            "round %d: no device may train now; the next round begins in %s",
            record.round,
            format_seconds(seconds),
        )
        sleep(seconds)
        return seconds
