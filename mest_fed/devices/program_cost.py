"""Time that a compiled step costs on a device. Modelled.

An operator takes as long as its multiply-adds or its bytes, whichever is longer (the roofline model
of Williams et al. 2009), and what a call takes. Profiles have rates of operations; bytes and calls
are scaled from the machine on which they were measured.
"""

from mest_fed.devices.cost import rate_of
from mest_fed.devices.profile import DeviceProfile
from mest_fed.runtime.program import Operator, Program

#: Dense operations a second of one thread of the machine on which the following were measured: a
#: compiled step of ResNet-18.
AT_RATE = 80e9
#: Bytes that are moved in the time of one dense operation: 20 GB/s, what operators without products
#: reach where a group stays in the caches.
BYTES_PER_FLOP = 0.25
#: Seconds of a call of an operator and of a step beside their work: of tiny perceptrons of 21 to
#: 411 operators.
OPERATOR_SECONDS, STEP_SECONDS = 5e-8, 6e-5


def program_flops(program: Program, batch: int) -> float:
    """Return the operations of a step of so many examples, 2 for each multiply-add."""
    return sum(2 * program.work(operator) * times for operator, times in _times(program, batch))


def program_seconds(profile: DeviceProfile, program: Program, batch: int, scheme: str) -> float:
    """Return how long a device takes for a compiled step (modelled).

    Parameters
    ----------
    profile : DeviceProfile
        The device.
    program : Program
        The step of a group.
    batch : int
        Examples of a step.
    scheme : str
        Scheme of the sparse layers, for example ``block:8``.

    Raises
    ------
    InputError
        If the profile has no rate for the scheme.
    """
    dense, sparse = profile.flops["dense"], rate_of(profile, scheme)
    slower = AT_RATE / dense
    seconds = STEP_SECONDS * slower
    for operator, times in _times(program, batch):
        rate = sparse if "slots" in operator.arguments else dense
        work = 2 * program.work(operator) / rate
        moved = program.traffic(operator) / (BYTES_PER_FLOP * dense)
        seconds += times * (max(work, moved) + OPERATOR_SECONDS * slower)
    return seconds


def _times(program: Program, batch: int) -> list[tuple[Operator, float]]:
    """Return each operator, and how often it runs in a step."""
    groups = batch / program.examples
    return [
        (operator, groups if place < program.per_group else 1.0)
        for place, operator in enumerate(program.operators)
    ]
