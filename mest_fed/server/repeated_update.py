"""Updates that are slopes: the server repeats the steps that a client took forward alone."""

from flwr.app import Message

from mest_fed.errors import InputError
from mest_fed.memory import MemoryOptions, memory_saving
from mest_fed.nn import read_state
from mest_fed.nn.norms import has_batch_statistics
from mest_fed.server.node import Node
from mest_fed.server.update_validator import check_magnitude
from mest_fed.sparsity.state import SparseState
from mest_fed.task import Task
from mest_fed.training.directions import ProbedSteps, repeat_steps
from mest_fed.wire.records import from_record
from mest_fed.wire.slopes import read_slopes


def check_repeatable(task: Task) -> None:
    """Check that all of an update follows from the slopes of its steps.

    Raises
    ------
    InputError
        If forward passes move statistics.
    """
    if task.config.wire.slopes and has_batch_statistics(task.build_model()):
        raise InputError(
            f"wire.slopes = True is not allowed with model.norm = {task.config.model.norm!r}: "
            "forward passes move statistics of batches, which slopes do not tell; allowed: False, "
            "or a model without such statistics"
        )


def repeat_update(
    reply: Message, task: Task, node: Node, sent: SparseState, number: int
) -> SparseState:
    """Return what a client's model became, by the slopes that it sent.

    The same bits as the client's where both compute on a CPU.

    Parameters
    ----------
    reply : Message
        From the client; none of it is believed.
    task : Task
        The run's.
    node : Node
        Who sent it.
    sent : SparseState
        What it was sent.
    number : int
        The round in which that was.

    Raises
    ------
    WireError
        If there is anything but the slopes of the steps that it may have taken.
    """
    task, config = task.at_width(node.density), task.config
    directions = config.training.perturbations
    payload = from_record(reply.content)
    slopes = read_slopes(payload, directions, task.most_steps(node.examples))
    settings = task.optimizer(task.progress(number))
    task.load(sent)
    frozen = MemoryOptions(frozen=node.frozen, segments=config.memory.segments)
    with memory_saving(task.model, frozen):
        steps = ProbedSteps(
            task.model,
            task.zeroth_order,
            task.directions_rng(number, node.partition),
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        repeat_steps(steps, slopes)
    state = read_state(task.model)
    check_magnitude(state)
    return state
