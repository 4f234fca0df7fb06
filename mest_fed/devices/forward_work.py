"""What a step by forward passes alone takes, as zeroth-order training has it. Modelled."""

from mest_fed.devices.cost import StepWork, Work

#: Seconds of one core of the reference machine to draw a number of a direction and add it to a
#: weight (measured, pieces of 8,192: 27 ns, of which 19 ns are the normal numbers).
SECONDS_OF_DRAW = 2.7e-8


def perturbed_step_work(forward: StepWork, weights: int, perturbations: int) -> StepWork:
    """Return the work of a zeroth-order step.

    Parameters
    ----------
    forward : StepWork
        Of a forward pass over a batch.
    weights : int
        Numbers that train.
    perturbations : int
        Directions of a step: two passes each.
    """
    passes = 2 * perturbations
    drawn = Work(core_seconds=SECONDS_OF_DRAW * weights * draws_of(perturbations))
    return StepWork(forward.example * passes, forward.group * passes, forward.step * passes + drawn)


def third_of(step: StepWork) -> StepWork:
    """Return the forward pass of a step by torch, of whose three passes backward is two."""
    return StepWork(step.example * (1 / 3), step.group * (1 / 3), Work())


def draws_of(perturbations: int) -> int:
    """Return how often a step draws directions: there, back, to where it was, and the update.

    The last direction's way to where it was and its update are one.
    """
    return 4 * perturbations - 1
