"""How long a step of a plan takes: on a device, or against another plan. Modelled."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from mest_fed.devices import DeviceProfile, Work, train_seconds, training_work
from mest_fed.memory import ModelTrace, Plan, TrainingShape
from mest_fed.memory.footprint import peak_granules
from mest_fed.sparsity import Static

#: Stands beside the figures.
CAVEAT = (
    "Step times count convolutions and linear layers; small micro-batches, packing and norms "
    "computed again cost more than is modelled."
)


def format_multiple(ratio: float) -> str:
    """Write how many times as long something takes."""
    return f"\N{MULTIPLICATION SIGN} {ratio:.2f}"


@dataclass(frozen=True)
class Clock:
    """Step times of one model.

    Parameters
    ----------
    trace : ModelTrace
        Of the model.
    scheme : str
        Of its sparse layers; ``dense`` if it has none.
    profile : DeviceProfile or None
        The device, if there is one.
    """

    trace: ModelTrace
    scheme: str
    profile: DeviceProfile | None
    _known: dict[Hashable, Work] = field(default_factory=dict, repr=False)

    def seconds(self, shape: TrainingShape) -> float | None:
        """Return how long the device takes for a step, a whole batch; None without a device."""
        if self.profile is None:
            return None
        return train_seconds(self.profile, self._image(shape), self.scheme) * shape.batch

    def against(self, shape: TrainingShape, other: TrainingShape) -> float:
        """Return a step's time as a multiple of another's: on the device, or by operations."""
        return self._amount(shape) / self._amount(other)

    def as_table(self, plan: Plan, plain: TrainingShape) -> dict[str, float | None]:
        """Return a plan's times as plain values; ``plain`` is training that saves nothing."""
        seconds = self.seconds(plan.shape)
        return {
            "step_seconds": None if seconds is None else round(seconds, 6),
            "step_relative": round(self.against(plan.shape, plain), 6),
        }

    def _amount(self, shape: TrainingShape) -> float:
        work = self._image(shape) * shape.batch
        seconds = self.seconds(shape)
        return work.dense_flops + work.sparse_flops if seconds is None else seconds

    def _image(self, shape: TrainingShape) -> Work:
        """Count the operations of an image, at the target density and not at a method's peak."""
        savings = shape.savings
        key = shape.density, shape.distribution, savings.recompute, savings.frozen
        if key not in self._known:
            model = self.trace.at(peak_granules(self.trace, Static(), shape))
            channels, height, width = self.trace.input_shape
            self._known[key] = training_work(model, (channels, height, width), savings)
        return self._known[key]
