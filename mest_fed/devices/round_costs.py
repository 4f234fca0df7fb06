"""What a client's round takes beside its steps: messages, batches, what is kept. Modelled."""

from dataclasses import dataclass

from mest_fed.devices.cost import Work


@dataclass(frozen=True)
class RoundSeconds:
    """Seconds in Python of one core of the reference machine.

    Measured on 2026-11-30, in rounds of lean nodes with seven models of 6 to 65 tensors
    (``docs/figures.md``): tensors and bytes are fitted to processor time beside the steps, which
    leaves 3 ms; the rest of ``round`` are calls over loopback (11 ms) and files (4 ms).

    Parameters
    ----------
    round : float
        Of a round, however small: instruction, message and reply, and the state on the disk.
    tensor : float
        Of a tensor of the model, sparse or dense: it is decoded, written into the step's memory,
        read out and encoded.
    byte : float
        Of a byte of the examples that are presented, which are gathered and normalised.
    """

    round: float = 1.8e-2
    tensor: float = 1.1e-4
    byte: float = 1.0e-9


ROUND_SECONDS = RoundSeconds()


def round_work(tensors: int, seconds: RoundSeconds = ROUND_SECONDS) -> Work:
    """Return what a round takes however many examples are presented.

    Parameters
    ----------
    tensors : int
        Of the model: its sparse layers and its dense tensors.
    seconds : RoundSeconds
        Other constants.
    """
    return Work(python_seconds=seconds.round + seconds.tensor * tensors)


def batch_work(example_bytes: float, seconds: RoundSeconds = ROUND_SECONDS) -> Work:
    """Return what it takes to make batches.

    Parameters
    ----------
    example_bytes : float
        Of all examples that are presented, as they are computed with.
    seconds : RoundSeconds
        Other constants.
    """
    return Work(python_seconds=seconds.byte * example_bytes)
