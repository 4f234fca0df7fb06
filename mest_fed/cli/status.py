"""Exit statuses of the commands."""

OK, FAILED, WRONG_INPUT, NOTHING_TRAINED, INTERRUPTED = 0, 1, 2, 3, 130
