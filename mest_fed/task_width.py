"""The task of a device whose model is narrower than the run's, as HeteroFL has it.

A narrower model is built as any model is, at a share of the width: it is dense, its programs and
their memory are those of its own shapes. What makes it a part of the run's is that its tensors are
the first channels of the run's along each axis (:func:`mest_fed.sparsity.state.corners`).
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import nn

from mest_fed.catalogue import METHODS
from mest_fed.config import RunConfig
from mest_fed.data import DataSplit, ExampleSpec
from mest_fed.errors import InputError
from mest_fed.memory import ModelTrace
from mest_fed.task import Task


class NarrowTask(Task):
    """The task of a device whose model has the first channels of the run's; the data are shared.

    Parameters
    ----------
    whole : Task
        The run's.
    share : float
        Of its channels.
    """

    def __init__(self, whole: Task, share: float) -> None:
        check_nested(whole.model, whole.config)
        model = whole.config.model
        narrow = model.model_copy(update={"width": share * model.width, "weights": ""})
        super().__init__(whole.config.model_copy(update={"model": narrow}), choices=whole.choices)
        self._whole, self._share = whole, share

    @property
    def width(self) -> float:
        """Share of the run's channels that this task's model has."""
        return self._share

    @cached_property
    def data(self) -> DataSplit:
        """Training and central test data: the run's."""
        return self._whole.data

    @cached_property
    def partitions(self) -> Sequence[npt.NDArray[np.int64]]:
        """Training examples of each device: the run's."""
        return self._whole.partitions

    @property
    def draws_examples(self) -> bool:
        """Whether each device's examples are drawn when they are asked for."""
        return self._whole.draws_examples

    @cached_property
    def example(self) -> ExampleSpec:
        """What the model gets and gives for one example."""
        return self._whole.example

    def at_width(self, share: float) -> Task:
        """Return another of the run's tasks; see :meth:`Task.at_width`."""
        return self._whole.at_width(share)

    def _with_widths(self, traced: ModelTrace) -> ModelTrace:
        return traced


def check_nested(model: nn.Module, config: RunConfig) -> None:
    """Refuse a method that cuts widths where a narrower model is another one.

    Raises
    ------
    InputError
        If the model does not declare ``nested_widths``.
    """
    if not getattr(model, "nested_widths", False):
        raise InputError(
            f"{METHODS.key} = {config.sparsity.method!r} is not allowed with model.name = "
            f"{config.model.name!r}; allowed: models that declare nested_widths, whose first "
            "channels are those of a narrower one"
        )
