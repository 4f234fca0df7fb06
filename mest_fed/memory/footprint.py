"""Bytes that training adds to a process, part by part. Modelled; nothing here is measured."""

from dataclasses import dataclass

from mest_fed.errors import not_allowed
from mest_fed.memory.trace import ModelTrace
from mest_fed.sparsity import Method, layer_counts

#: What training adds beside tensors: allocator slack, primitive caches, Python objects. Measured
#: as the rest that the other parts leave unexplained, 2 to 4 MB with torch 2.13 on x86-64.
RUNTIME = 4 * 2**20

FLOAT = 4
INDEX = 4
POSITION = 8


@dataclass(frozen=True)
class Footprint:
    """Bytes by part.

    Parameters
    ----------
    values : int
        Live weights at their peak, dense parameters and buffers.
    gradients : int
        One for each value; for RigL also the dense gradients of its mutation step.
    optimizer : int
        Momentum, one for each trained value.
    index : int
        Slots of the live granules.
    activations : int
        What autograd keeps of one micro-batch.
    workspace : int
        What exists for a moment: the largest layer's dense weight, its gradient and positions in
        the reference kernels (the compiled ones take a scratch of about that size), and two
        activation gradients.
    batch : int
        Images of a whole batch and of a micro-batch.
    wire : int
        The received and the sent message.
    runtime : int
        :data:`RUNTIME`, whatever the model.
    """

    values: int
    gradients: int
    optimizer: int
    index: int
    activations: int
    workspace: int
    batch: int
    wire: int
    runtime: int

    @property
    def total(self) -> int:
        """Sum of the parts: the predicted peak."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the parts by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class TrainingShape:
    """What of the training plan decides its memory.

    Parameters
    ----------
    density : float
        Target density of the sparse layers (ignored for a dense model).
    distribution : str
        How density spreads over layers.
    micro_batch : int
        Images in one forward and backward pass.
    batch : int
        Images in one optimizer step.
    momentum : bool
        Whether the optimizer keeps a momentum.

    Raises
    ------
    InputError
        If a batch is empty.
    """

    density: float
    distribution: str
    micro_batch: int
    batch: int
    momentum: bool = True

    def __post_init__(self) -> None:
        for key in ("micro_batch", "batch"):
            if getattr(self, key) < 1:
                raise not_allowed(key, getattr(self, key), "a whole number of at least 1")


def footprint(trace: ModelTrace, method: Method, shape: TrainingShape) -> Footprint:
    """Predict the footprint of local training.

    EM&S is charged at its peak (``method.peak`` times the target), RigL with the dense gradient
    of every sparse layer.
    """
    layouts = {group: trace.spec.group_layout(group) for group in trace.spec.groups}
    counts = layer_counts(layouts, shape.density, shape.distribution) if layouts else {}
    peak = {g: min(layouts[g].num_granules, round(n * method.peak)) for g, n in counts.items()}
    live = {
        layer: peak[group] * trace.spec.layouts[layer].width
        for group, layers in trace.spec.groups.items()
        for layer in layers
    }
    values = FLOAT * sum(live.values())
    index = INDEX * sum(peak.values())
    trained = values + trace.dense_parameters
    dense_gradient = FLOAT * trace.spec.sparse_weights if method.needs_dense_gradient else 0
    layer_workspace = max(
        (
            2 * FLOAT * layout.num_weights + POSITION * live[name]
            for name, layout in trace.spec.layouts.items()
        ),
        default=0,
    )
    return Footprint(
        values=trained + trace.buffers,
        gradients=trained + dense_gradient,
        optimizer=trained if shape.momentum else 0,
        index=index,
        activations=shape.micro_batch * trace.saved_per_image + trace.saved_once,
        workspace=layer_workspace + 2 * shape.micro_batch * trace.largest_activation,
        batch=trace.image * (shape.batch + shape.micro_batch),
        wire=2 * (trained + trace.buffers + index),
        runtime=RUNTIME,
    )
