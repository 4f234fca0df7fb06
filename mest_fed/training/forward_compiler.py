"""The programs of forward passes as the planner asks for them: training by them needs no others."""

import torch
from torch import nn

from mest_fed.errors import InputError
from mest_fed.memory import TrainingShape
from mest_fed.memory.program_bytes import PlannedStep
from mest_fed.nn.norms import has_batch_statistics
from mest_fed.runtime import native_table
from mest_fed.training.forward_programs import EVALUATION_GROUP, forward_sizes
from mest_fed.training.places import check_alone
from mest_fed.training.tracing import check_plain


class ForwardCompiler:
    """Gives the program of a forward pass from a meta model and how it trains.

    Parameters
    ----------
    example : tuple
        Shape and type of an input.
    """

    def __init__(self, example: tuple[tuple[int, ...], torch.dtype]) -> None:
        self._example = example

    def __call__(
        self, model: nn.Module, shape: TrainingShape, *, reads: bool = False
    ) -> PlannedStep | None:
        """Return the pass of a meta model; None where torch goes forward."""
        del reads  # there are no gradients
        if not native_table.available() or has_batch_statistics(model):
            return None
        model.eval()
        try:
            check_plain(model, training=False)
            group = min(shape.micro_batch, EVALUATION_GROUP)
            captured, _ = forward_sizes(model, self._example, group)
            check_alone(captured)
        except InputError:
            return None
        copies = frozenset(captured.computed)
        return PlannedStep(captured.program, frozenset(captured.tensors) - copies, copies)
