"""What is to be planned: the task of a configuration or of the command's options, and a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mest_fed.catalogue import MODELS
from mest_fed.cli.baseline import measure_baseline
from mest_fed.cli.environment import node_environment
from mest_fed.cli.node_memory import KEY, NodeMemory
from mest_fed.cli.planning.options import Source, config_of, read_options
from mest_fed.config.load import Scalar
from mest_fed.data import ArrayData, DataSplit
from mest_fed.errors import BudgetError, InputError, not_allowed
from mest_fed.system.limits import RLIMIT, kind_of_limit, left_within, no_plan_in, too_tight
from mest_fed.task import Task
from mest_fed.units import format_bytes, number_of

#: Numbers of one example that a plan is made for: its first layers are tried with real memory.
_MOST_NUMBERS = 10_000_000


@dataclass(frozen=True)
class PlanRequest:
    """What is to be planned.

    Parameters
    ----------
    name : str
        Of the preset or file; empty where there is none.
    task : Task
        Gives the planner.
    usual_width : bool
        Whether the model's width was left out.
    """

    name: str
    task: Task
    usual_width: bool = False

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The layers as plain values; ``reason`` says why one is dense, None of a sparse one."""
        rows = self.task.layers
        return [{"name": it.name, "weights": it.weights, "reason": it.reason} for it in rows]

    @property
    def title(self) -> str:
        """Say what is planned."""
        config = self.task.config
        sparsity = config.sparsity
        name = f"{self.name}: " if self.name else ""
        architecture = self.task.architecture
        usual = ", the usual" if self.usual_width else ""
        built = [] if architecture.width is None else [f"width {architecture.width:g}{usual}"]
        built += [] if architecture.norm is None else [f"{architecture.norm} norm"]
        how = f" ({'; '.join(built)})" if built else ""
        scheme = self.task.scheme
        sparse = "" if scheme is None else f", {scheme} at density {sparsity.density:.3g}"
        example = self.task.example
        shape = "x".join(map(str, example.input_shape))
        return (
            f"{name}{config.model.name}{how}, "
            f"{sparsity.method}{sparse}, "
            f"{number_of(config.training.batch_size, 'example')} of shape {shape} a step"
        )


def read_request(
    source: Source,
    options: Mapping[str, Scalar | None],
    settings: Sequence[str] = (),
    image: tuple[str | None, int | None] = (None, None),
) -> PlanRequest:
    """Return what a preset, a file or neither, changed by options, asks to be planned.

    Parameters
    ----------
    source, options, settings
        As of :func:`~mest_fed.cli.planning.options.read_options`.
    image : (str or None, int or None)
        ``CHANNELSxHEIGHTxWIDTH`` and the number of classes, where they are not the data set's.

    Raises
    ------
    InputError
        If a preset, file, key or value is wrong.
    """
    name, table = read_options(source, options, settings)
    usual = not name and "width" not in table["model"]
    if usual:
        model = MODELS.find(str(table["model"]["name"]))
        table["model"]["width"] = getattr(model, "usual_width", 1.0)
    config = config_of(table)
    given, count = image
    task = Task(config)
    if given is None and count is None:
        return PlanRequest(name, task, usual)
    shape = task.example.input_shape if given is None else _read_image(given)
    empty = _no_examples(shape, task.example.num_outputs if count is None else count)
    return PlanRequest(name, Task(config, data=DataSplit(empty, empty)), usual)


def _read_image(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise not_allowed("--image", text, "CHANNELSxHEIGHTxWIDTH, such as 3x32x32")
    channels, height, width = map(int, parts)
    if channels * height * width > _MOST_NUMBERS:
        raise not_allowed("--image", text, f"at most {_MOST_NUMBERS:,} numbers together")
    return channels, height, width


def _no_examples(shape: tuple[int, ...], classes: int) -> ArrayData:
    """Return data of a shape: a plan needs no more of them."""
    inputs = torch.empty(0, *shape, dtype=torch.uint8)
    return ArrayData(inputs, torch.empty(0, dtype=torch.int64), classes)


@dataclass(frozen=True)
class Budget:
    """Bytes that training may add to a process, and where the number comes from.

    Parameters
    ----------
    bytes : int
        The number.
    origin : str
        A sentence for people; empty where they gave the number themselves.
    limit, taken, margin : int, int, float
        The memory limit that it is of, if it is: what is taken of it before training, and the share
        that stays free.
    """

    bytes: int
    origin: str = ""
    limit: int = 0
    taken: int = 0
    margin: float = 0.0

    def too_tight(self, error: BudgetError) -> InputError:
        """Return what an error means that no plan fits: of a limit, how large it has to be."""
        if not error.needs:
            return error
        if not self.limit:
            return error if self.origin else no_plan_in(self.bytes, error.needs, "--budget")
        return too_tight(self.limit, self.taken, error.needs, self.margin, KEY)


def device_budget(task: Task, device: str) -> Budget:
    """Return the budget that a device has in a task's fleet, or by its profile."""
    own = device not in task.config.fleet.budget_bytes
    size = task.budget(device)
    whose = "its own" if own else "the one of fleet.budgets"
    return Budget(size, f"The budget of {device}, {format_bytes(size)}, is {whose}.")


def budget_within(memory: NodeMemory, margin: float) -> Budget:
    """Return what a memory limit leaves for training, as ``mest-fed client`` does.

    It measures a client's processes before they train, which takes seconds.

    Parameters
    ----------
    memory : NodeMemory
        The limit.
    margin : float
        Share of it that stays free where ``memory`` does not say.
    """
    kind, baseline = kind_of_limit(), measure_baseline(node_environment())
    assert memory.limit is not None
    margin = margin if memory.margin is None else memory.margin
    taken = baseline.taken(kind)
    left = max(1, left_within(memory.limit, taken, margin))
    whose = "the process that trains takes" if kind == RLIMIT else "the client's processes take"
    return Budget(
        left,
        f"Of the limit of {format_bytes(memory.limit)}, {margin:.0%} stay free and {whose} "
        f"{format_bytes(taken)} before training ({baseline.source}): up to "
        f"{format_bytes(left)} are left, less what the run's data bring in.",
        limit=memory.limit,
        taken=taken,
        margin=margin,
    )
