"""What commands print."""

import re

#: A phase of a run with the time since the command began, or a note beneath it.
_PHASE = re.compile(r"^(?: *[\d.]+ s  | {7}).*\n", re.MULTILINE)


def without_phases(errors):
    """Leave out of standard error what a run says of its progress."""
    return _PHASE.sub("", errors)
