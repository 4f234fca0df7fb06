"""What a node does with an instruction: bytes in, bytes and numbers out."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mest_fed.data.minibatches import Examples
from mest_fed.devices.cost import work_metrics
from mest_fed.errors import WireError
from mest_fed.link.description import RunDescription
from mest_fed.link.node.programs import NodePrograms
from mest_fed.link.node.rounds import NodeRounds, Order, Totals
from mest_fed.sparsity.state import SparseState
from mest_fed.training.forgetting import ForgettingState
from mest_fed.wire import MaskSet, Residual, decode, encode, mask_hash
from mest_fed.wire.npy import HEADER, from_objects, to_objects
from mest_fed.wire.payload import named_masks

Metrics = dict[str, float]


@dataclass
class NodeState:
    """What a node keeps from round to round.

    Parameters
    ----------
    masks : dict of str to int32 array
        The mask set that node and server both know; empty before the first message.
    forgetting : ForgettingState or None
        One byte a training example.
    residual : Residual or None
        What 8-bit uploads have left unsent so far.
    """

    masks: MaskSet = field(default_factory=dict)
    forgetting: ForgettingState | None = None
    residual: Residual | None = None


class NodeWorker:
    """Carries instructions out.

    Parameters
    ----------
    run : RunDescription
        The run.
    examples : Examples
        The node's own.
    programs : NodePrograms
        Gives compiled steps.
    state : NodeState
        What is kept; replaced by each round that succeeds, and untouched by one that fails.
    """

    def __init__(
        self, run: RunDescription, examples: Examples, programs: NodePrograms, state: NodeState
    ) -> None:
        self.run, self.state = run, state
        self.rounds = NodeRounds(run, examples, programs)

    def train(
        self, objects: dict[str, Any], number: int, scalars: Mapping[str, Any]
    ) -> tuple[dict[str, bytes], Metrics]:
        """Train one round; return the update and its numbers.

        Parameters
        ----------
        objects : dict of str to bytes
            The message. It is emptied: its memory is not there beside training.
        number : int
            Of the round.
        scalars : mapping
            Of the instruction.

        Raises
        ------
        WireError
            If the message is not acceptable.
        NotFiniteError
            If a loss is not finite.
        """
        header, received = bytes(objects[HEADER]), self._receive(objects)
        objects.clear()
        order = Order(
            number,
            bool(scalars["mutate"]),
            float(scalars["learning_rate"]),
            float(scalars["progress"]),
        )
        forgetting = self._forgetting()
        state, totals, work = self.rounds.train_round(received, order, forgetting)
        payload, residual = encode(
            state,
            self.run.spec,
            values=self.run.upload,
            known=received.masks,
            known_hash=named_masks(header),
            reference=received,
            residual=self.state.residual,
            frozen=frozenset() if order.mutate else frozenset(self.run.frozen),
        )
        self.state = NodeState(received.masks, forgetting, residual)
        metrics = {
            "num-examples": float(len(self.rounds.train)),
            "presented": float(totals.examples),
            **_totals(totals),
            **work_metrics(work),
            "density": state.density(self.run.spec),
            "predicted-peak": float(self.run.predicted_peak),
        }
        return to_objects(payload), metrics

    def evaluate(self, objects: Mapping[str, Any]) -> Metrics:
        """Evaluate on the examples held out; return what was counted.

        Raises
        ------
        WireError
            If the message is not acceptable.
        """
        totals = self.rounds.evaluate(self._receive(objects))
        return {"num-examples": float(totals.examples), **_totals(totals)}

    def _receive(self, objects: Mapping[str, Any]) -> SparseState:
        held = self.state.masks
        known = {mask_hash(held): held} if held else {}
        try:
            received = decode(from_objects(dict(objects)), self.run.spec, known=known)
        except WireError as error:
            raise WireError(f"the server's message was rejected: {error}") from None
        self.state = replace(self.state, masks=received.masks)
        return received

    def _forgetting(self) -> ForgettingState | None:
        """Return a copy of the state of forgetting, fresh if there is none of so many examples."""
        if not self.run.forgetting.active:
            return None
        kept, count = self.state.forgetting, len(self.rounds.train)
        if kept is None or len(kept.codes) != count:
            return ForgettingState.fresh(count)
        return ForgettingState(kept.codes.copy())


def _totals(totals: Totals) -> Metrics:
    counted = {} if totals.count == totals.examples else {"counted": float(totals.count)}
    return {"loss-sum": totals.loss, **counted, **totals.sums}
