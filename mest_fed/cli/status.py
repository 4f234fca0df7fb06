"""Exit statuses of the commands.

A command that a signal ends has 128 and the signal's number: 130 after Ctrl-C, 143 after SIGTERM.
"""

#: ``REFUSED``: of ``mest-fed client``, if no SuperLink answers or it does not take this device.
OK, FAILED, WRONG_INPUT, REFUSED, INTERRUPTED = 0, 1, 2, 4, 130
