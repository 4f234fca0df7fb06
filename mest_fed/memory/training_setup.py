"""What beside the shape of a step decides what training takes on a device."""

from dataclasses import dataclass

from mest_fed.memory.program_bytes import Compiler
from mest_fed.sparsity import Method


@dataclass(frozen=True)
class TrainingSetup:
    """What beside its shape decides a device's footprint.

    Parameters
    ----------
    method : Method
        EM&S is charged at its peak, RigL with dense gradients.
    mutates : bool
        Whether mutation happens on the device, where gradients must stand for it.
    messages : bool
        Whether messages are charged: false for training by itself.
    threads : int
        That the device computes with: the compiled kernels have scratch memory for each. It is the
        device's number, not that of the process that plans for it, so that a plan is the same
        wherever it is made.
    compiler : callable, optional
        Gives the program of a step, where training is compiled; None where torch trains.
    rest : int or None
        Examples of an epoch's last batch where it has fewer than the others, or one more; 0 where
        it has as many. None where nobody knows how many examples a device has.
    feedback : bool
        Whether messages are differences, of which what is left out is kept for the next one.
    forward_only : bool
        Whether training is by forward passes alone; then the compiler gives those.
    held : int
        Bytes of each number of a batch's inputs that are held as they were read, beside those that
        are computed: 0 where they can be read again, which augmented ones cannot.
    """

    method: Method
    mutates: bool = False
    messages: bool = True
    threads: int = 1
    compiler: Compiler | None = None
    rest: int | None = 0
    feedback: bool = False
    forward_only: bool = False
    held: int = 0
