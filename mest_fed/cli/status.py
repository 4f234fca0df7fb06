"""Exit statuses of the commands.

A command that a signal ends has 128 and the signal's number: 130 after Ctrl-C, 143 after SIGTERM.
"""

#: ``NOTHING_TRAINED``: of ``mest-fed simulate``, if the server accepted no update in the whole run.
#: ``REFUSED``: of ``mest-fed client``, if no SuperLink answers or it does not take this device.
OK, FAILED, WRONG_INPUT, NOTHING_TRAINED, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130
