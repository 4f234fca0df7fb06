"""Which programs a step runs by: one choice, for training and for the planner."""

from collections.abc import Callable

from mest_fed.catalogue import Recompute
from mest_fed.memory import MemoryOptions
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.passes.groups import MOST_BYTES, group_size
from mest_fed.runtime.program import Program
from mest_fed.runtime.sizes import Sizes
from mest_fed.training.step_program import PASSES, STORAGE, StepPrograms, check_stored

#: Bytes of gradients that a step has to save by updating weights directly: more than a core's own
#: cache holds. Below that, groups of which few sizes are ever made cost less.
DIRECT_BYTES = 2**21

#: Storage of planes -> bytes of the arena that a group may take. Planes of half the bytes are asked
#: for to save memory: groups shall not have twice the examples instead.
GROUP_BYTES = {"fp32": MOST_BYTES, "bf16": MOST_BYTES // 2}


def can_compile(memory: MemoryOptions) -> bool:
    """Say whether programs can do what memory options ask for.

    They compute outputs of norms again in any case, freeze, and store planes as bf16; segments and
    activations packed otherwise are torch's.
    """
    again = memory.recompute in (Recompute.NONE, Recompute.NORMS)
    return again and memory.saved in STORAGE


def best_programs(make: Callable[..., StepPrograms], examples: int, *, whole: bool) -> StepPrograms:
    """Return the programs that a step runs best by.

    Parameters
    ----------
    make : callable
        Makes them; takes ``groups`` and ``passes`` as :class:`StepPrograms` does.
    examples : int
        Examples that go through the model together, at most.
    whole : bool
        Whether no batch is larger.
    """
    if whole:
        direct = make(groups=False, passes=tuple(PASSES))
        if _direct(direct, examples):
            return direct
    return make()


def _direct(whole: StepPrograms, examples: int) -> bool:
    """Say whether a step of whole batches saves enough by updating weights directly."""
    trained = sum(4 * it.numel() for it in whole.model.parameters() if it.requires_grad)
    if trained < DIRECT_BYTES:
        return False
    program = whole(examples)
    kept = sum(program.buffers[it].bytes for it in program.of_role("sum"))
    fits = plan_arena(program).peak <= GROUP_BYTES[whole.storage]
    return trained - kept >= DIRECT_BYTES and fits


def program_of(programs: StepPrograms, first: Program, micro_batch: int) -> tuple[Program, Sizes]:
    """Return the program of a group, and those of other sizes.

    Parameters
    ----------
    programs : StepPrograms
        Of the step.
    first : Program
        That of ``micro_batch`` examples.
    micro_batch : int
        Examples that go through the model together, at most.

    Raises
    ------
    InputError
        If nothing of it can be stored as asked: one line.
    """
    sizes = Sizes(programs, first)
    program = sizes(_group_of(sizes, micro_batch, GROUP_BYTES[programs.storage]))
    check_stored(program, programs.storage)
    return program, sizes


def _group_of(sizes: Sizes, micro_batch: int, most_bytes: int) -> int:
    """Return the examples of a group: how many does not depend on a batch's size."""
    program = sizes(micro_batch)
    if not program.takes_groups or plan_arena(program).peak <= most_bytes:
        return micro_batch
    return group_size(sizes, micro_batch, most_bytes)
