"""Asynchronous and semi-synchronous rounds: updates may be older than the model they go into."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from mest_fed.catalogue import WEIGHTINGS, MutationPlace
from mest_fed.config import RunConfig
from mest_fed.errors import InputError, WireError
from mest_fed.server.aggregation.aggregate import Aggregate
from mest_fed.server.global_model import GlobalModel, MaskSet
from mest_fed.server.modes.arrivals import ArrivalStrategy
from mest_fed.server.node import Node
from mest_fed.server.round_record import ClientOutcome
from mest_fed.server.update_validator import read_counts
from mest_fed.sparsity.arrays import Floats
from mest_fed.sparsity.state import SparseState


def discount(staleness: int, exponent: float) -> float:
    """Return the weight of an update that is so many versions old, (1 + staleness)^-exponent.

    The paper takes the exponent 1/2.
    """
    return float((1.0 + staleness) ** -exponent)


def rebase(
    update: SparseState,
    fetched: SparseState,
    rows: Mapping[str, npt.NDArray[np.bool_]],
    model: GlobalModel,
    share: float,
) -> SparseState:
    """Make a share of a client's difference to the present model.

    Parameters
    ----------
    update : SparseState
        What the client came to, on the masks of ``fetched``.
    fetched : SparseState
        What it started from.
    rows : mapping of str to bool array
        Mask group -> which of its slots the present model still holds, shape ``(active,)``.
        The rest of the update is left out.
    model : GlobalModel
        The present model.
    share : float
        Of the difference, in (0, 1].

    Returns
    -------
    SparseState
        The present values plus the share of the difference, on the slots that are left. A batch
        statistic moves by the share from its present value towards the client's instead: a variance
        that had differences added to it might become negative.

    Raises
    ------
    WireError
        If a value is not finite.
    """
    masks: MaskSet = {group: fetched.masks[group][rows[group]] for group in fetched.masks}
    present = model.state(masks)
    values = {}
    for group, layers in model.spec.groups.items():
        for layer in layers:
            before, after = fetched.values[layer], update.values[layer]
            left = rows[group]
            values[layer] = _moved(present.values[layer], before[left], after[left], share)
    dense = {}
    for name, tensor in present.dense.items():
        start = tensor if name in model.spec.statistics else fetched.dense[name]
        dense[name] = _moved(tensor, start, update.dense[name], share)
    return SparseState(masks, values, dense)


def _moved(present: Floats, before: Floats, after: Floats, share: float) -> Floats:
    """Return ``present + share (after - before)``, computed in double precision."""
    change = after.astype(np.float64) - before
    with np.errstate(over="ignore"):
        moved: Floats = (present + share * change).astype(np.float32)
    if not np.isfinite(moved).all():
        raise WireError("not every value is a finite number once the difference is added")
    return moved


def by_examples(examples: int) -> float:
    """Have an update count as its examples."""
    return examples


def equal(examples: int) -> float:
    """Have all updates count alike, as in FedBuff."""
    del examples
    return 1


class Buffered(ArrivalStrategy):
    """FedBuff: a step when ``server.buffer`` good updates have arrived (see :func:`rebase`).

    ``server.concurrency`` devices train at a time: who has answered is replaced at once. What a
    mutation of the server killed since an update's instruction is left out of the update; what it
    grew since was not offered to that client, and is not touched.

    The paper's divisor is the number of updates. Here it is, for each weight, the number of those
    that were offered it, or the sum of their examples (``server.weighting``). Examples are the
    default, since a buffer of fresh updates then is a synchronous round.
    """

    #: Keys of ``[server]`` that say how many devices a round waits for.
    waits_for: ClassVar[tuple[str, ...]] = ("concurrency", "buffer")

    @classmethod
    def check_config(cls, config: RunConfig) -> None:
        """Refuse what these rounds cannot do.

        Raises
        ------
        InputError
            If updates would be of several masks, or a round would never be complete.
        """
        server = config.server
        if server.over_selection > 1:
            raise InputError(
                f"server.over_selection = {server.over_selection} is for synchronous rounds; "
                f"allowed: 1 (server.mode = {server.mode!r})"
            )
        if server.clip_median:
            raise InputError(
                f"server.clip_median = {server.clip_median} is for rounds of updates of one model; "
                f"allowed: 0 (server.mode = {server.mode!r})"
            )
        if config.sparsity.mutation == MutationPlace.CLIENT:
            raise InputError(
                f"server.mode = {server.mode!r} mixes updates of several masks; "
                "allowed: sparsity.mutation = 'server'"
            )
        for key in cls.waits_for:
            wanted, devices = getattr(server, key), config.fleet.devices
            if wanted > devices:
                raise InputError(
                    f"server.{key} = {wanted} is never reached; "
                    f"allowed: 1 to {devices} (fleet.devices = {devices})"
                )

    def _vacancies(self) -> int:
        return self.config.server.concurrency - len(self.pending_updates)

    def _is_complete(self) -> bool:
        return self.accepted >= self.config.server.buffer

    def _accept(self, reply: Message, node: Node, mean: Aggregate, outcome: ClientOutcome) -> None:
        pending, server, spec = self.landed, self.config.server, self.model.spec
        epochs = self.config.training.local_epochs
        counts = read_counts(reply, node.examples, epochs, self.task.objective)
        state = self._read(reply, node, pending.sent, pending.round, mask_may_change=False)
        state, norm = self.clip(state, pending.sent)
        self._note_landed_mask()
        staleness = self.record.round - pending.round
        if staleness > server.max_staleness:
            raise WireError(
                f"{staleness} rounds old; server.max_staleness = {server.max_staleness}"
            )
        rows = {
            group: self.ages.still(group, slots, pending.round)
            for group, slots in pending.sent.masks.items()
        }
        share = discount(staleness, server.staleness_exponent)
        self._clipping.norms.append(norm)
        weight = WEIGHTINGS.build(server.weighting, counts.examples)
        moved = rebase(state, pending.sent, rows, self.model, share)
        mean.add(moved, weight, untrained=self.task.untrained(node.frozen))
        outcome.note(counts.totals, state.density(spec))


class SemiSynchronous(Buffered):
    """A step every ``server.period`` seconds, with what has arrived; then idle devices are asked.

    At each step as many begin as ``server.concurrency`` has room for.
    """

    waits_for = ("concurrency",)

    def _vacancies(self) -> int:
        return super()._vacancies() if self._draws == 0 else 0

    def _is_complete(self) -> bool:
        return self.messenger.now >= self._ends()

    def _ends(self) -> float:
        return self.opened + self.config.server.period
