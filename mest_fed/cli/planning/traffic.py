"""Bytes of a run's messages: those of real ones, encoded from the weights that it starts from."""

from collections.abc import Sequence
from dataclasses import dataclass

from mest_fed.catalogue import MutationPlace
from mest_fed.memory import Plan
from mest_fed.nn import read_state
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.model_broadcast import ModelBroadcast
from mest_fed.sparsity.state import SparseState
from mest_fed.task import Task
from mest_fed.wire import encode
from mest_fed.wire.feedback import active_lengths
from mest_fed.wire.records import content_bytes, to_record
from mest_fed.wire.slopes import write_slopes
from mest_fed.wire.values import value_codec


@dataclass(frozen=True)
class Traffic:
    """Bytes that travel; modelled.

    Parameters
    ----------
    down, up : float
        Values, to the devices and from them.
    masks : float
        What comes on top where no device holds its mask, and where clients send theirs.
    """

    down: float = 0.0
    up: float = 0.0
    masks: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        """Return both together."""
        return Traffic(self.down + other.down, self.up + other.up, self.masks + other.masks)

    def __mul__(self, times: float) -> "Traffic":
        """Return that of so many tasks."""
        return Traffic(self.down * times, self.up * times, self.masks * times)


class StartingModel:
    """The model that a run starts from, as the server sends it to each tier."""

    def __init__(self, task: Task) -> None:
        config = task.config
        self._task = task
        self._model = GlobalModel.from_state(task.spec, read_state(task.build_model()))
        sent = ModelBroadcast(
            task.spec,
            config.sparsity.densities,
            config.wire.download,
            lambda density: task.at_width(density).spec,
        )
        sent.open_round()
        self._sent = sent

    def state(self, density: float) -> SparseState:
        """Return what a tier is sent."""
        return self._sent.state(self._model, density)

    def traffic(self, plan: Plan, examples: int) -> tuple[Traffic, Traffic]:
        """Return the bytes of a task by a plan, and the part that grows with its density.

        ``examples`` are those of a device, by which the slopes that it may send are counted.
        """
        density, frozen = plan.density, self._task.untrained(plan.memory.frozen)
        config, spec = self._task.config, self._sent.spec_of(density)
        order = {"round": 1, "mutate": False}
        state = self.state(density)
        known = self._sent.tier_hash(density)
        held, full = (
            content_bytes(self._sent.content(self._model, density, name, order))
            for name in (known, b"")
        )
        wire = config.wire
        reply, _ = encode(
            state, spec, values=wire.upload, known=state.masks, reference=state, frozen=frozen
        )
        down = _bytes_of_values(wire.download, active_lengths(state.masks, spec))
        up = _bytes_of_values(wire.upload, active_lengths(state.masks, spec, frozen))
        ways = 2 if config.sparsity.mutation == MutationPlace.CLIENT else 1
        masks = ways * (full - held)
        if wire.slopes:
            each = config.training.perturbations
            reply, up = write_slopes([0.0] * each * self._task.most_steps(examples)), 0
        return Traffic(held, content_bytes(to_record(reply)), masks), Traffic(down, up, masks)


def _bytes_of_values(form: str, lengths: Sequence[int]) -> int:
    fields = value_codec(form).fields(lengths).values()
    return sum(dtype.itemsize * length for dtype, length in fields)
