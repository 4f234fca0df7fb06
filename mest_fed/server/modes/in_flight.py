"""Instructions on their way: what the server must remember of them until their replies arrive."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from mest_fed.server.global_model import MaskSet
from mest_fed.server.node import Node
from mest_fed.sparsity.arrays import Slots
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.wire import check_masks, encode
from mest_fed.wire.records import content_bytes, to_record


@dataclass(frozen=True)
class PendingUpdate:
    """An instruction to train whose reply is awaited.

    What is sent to many is one object in all their pending updates, and goes when the last of them
    lands.

    Parameters
    ----------
    node : Node
        Who trains.
    round : int
        The round in which it was sent; the model is that at the end of the round before.
    started : float
        When it was sent.
    content : RecordDict
        Of the message.
    sent : SparseState
        The model as the node decodes it: its update is a difference to this.
    bytes_down : int
        Bytes of the content.
    """

    node: Node
    round: int
    started: float
    content: RecordDict
    sent: SparseState
    bytes_down: int

    def message(self) -> Message:
        """Return the message, as it is sent again by a run that is resumed."""
        return Message(
            content=self.content,
            message_type=MessageType.TRAIN,
            dst_node_id=self.node.node_id,
        )


Sections = dict[str, Mapping[str, np.ndarray]]

_HEADERS = "headers"
_PARTS = ("sent-masks", "sent-values", "sent-dense")
#: Sections of a checkpoint that are checked here.
PENDING_SECTIONS = (_HEADERS, *_PARTS)


def write_pending(
    pending_updates: Sequence[tuple[PendingUpdate, float, int]],
) -> tuple[Sections, list[dict[str, Any]]]:
    """Return pending updates as arrays, which are shared with them, and as JSON-able facts.

    The encoded values are not written: they are those of the state that was sent.

    Parameters
    ----------
    pending_updates : sequence of tuple
        Each with its start and its number, as the grid knows them.
    """
    states: dict[int, tuple[int, SparseState]] = {}
    headers: dict[bytes, int] = {}
    facts = []
    for pending, start, number in pending_updates:
        order = dict(pending.content.config_records["mest"])
        header = order.pop("header")
        assert isinstance(header, bytes)
        facts.append(
            {
                "node": asdict(pending.node),
                "round": pending.round,
                "start": start,
                "number": number,
                "order": order,
                "header": headers.setdefault(header, len(headers)),
                "sent": states.setdefault(id(pending.sent), (len(states), pending.sent))[0],
            }
        )
    sections: Sections = {
        _HEADERS: {str(n): np.frombuffer(header, np.uint8) for header, n in headers.items()}
    }
    for place, state in states.values():
        kinds: tuple[Mapping[str, np.ndarray], ...] = (state.masks, state.values, state.dense)
        for part, tensors in zip(_PARTS, kinds, strict=True):
            sections[f"{part}:{place}"] = tensors
    return sections, facts


def read_pending(
    sections: Mapping[str, Mapping[str, np.ndarray]],
    facts: Sequence[Mapping[str, Any]],
    spec: ModelSpec,
    values: str,
) -> list[tuple[PendingUpdate, float, int]]:
    """Return the pending updates that :func:`write_pending` wrote.

    Parameters
    ----------
    sections : mapping of str to mapping
        Arrays by section and name; other sections may stand beside.
    facts : sequence of mapping
        One for each pending.
    spec : ModelSpec
        Of the model.
    values : str
        Value codec of instructions.

    Raises
    ------
    KeyError, TypeError, ValueError, WireError
        If they are not pending updates of this model.
    """
    states: dict[int, tuple[SparseState, Any]] = {}
    pending_updates = []
    for fact in facts:
        place = int(fact["sent"])
        if place not in states:
            state = SparseState(*(dict(sections.get(f"{part}:{place}", {})) for part in _PARTS))
            check_masks(state.masks, spec)
            payload, _ = encode(state, spec, values=values)
            states[place] = state, to_record(payload).array_records["arrays"]
        state, arrays = states[place]
        header = sections[_HEADERS][str(fact["header"])].tobytes()
        order = ConfigRecord({"header": header, **fact["order"]})
        content = RecordDict({"arrays": arrays, "mest": order})
        node, start = Node(**fact["node"]), float(fact["start"])
        pending = PendingUpdate(
            node, int(fact["round"]), start, content, state, content_bytes(content)
        )
        pending_updates.append((pending, start, int(fact["number"])))
    return pending_updates


class SlotAges:
    """Since which round each slot of the global mask has been active without a break.

    A slot that was dropped and grown again holds another weight: an update from before the drop
    does not count for it.

    Parameters
    ----------
    masks : dict of str to int32 array
        The global mask; its slots count as there from the start.

    Attributes
    ----------
    grown_at : dict of str to int32 array
        Mask group -> the round at whose end each active slot was grown, shape ``(active,)``.
    """

    def __init__(self, masks: MaskSet) -> None:
        self._masks = dict(masks)
        self.grown_at = {group: np.zeros(len(slots), np.int32) for group, slots in masks.items()}

    def follow(self, masks: MaskSet, number: int) -> None:
        """Take note of the global mask at the end of a round."""
        for group, slots in masks.items():
            if slots is not self._masks[group]:
                place, kept = self._find(group, slots)
                self.grown_at[group] = np.where(kept, self.grown_at[group][place], number).astype(
                    np.int32
                )
        self._masks = dict(masks)

    def still(self, group: str, slots: Slots, number: int) -> npt.NDArray[np.bool_]:
        """Return which of a round's slots have been active ever since; shape ``(active,)``."""
        place, ages = self._find(group, slots)
        return ages & (self.grown_at[group][place] < number)

    def restore(self, masks: MaskSet, grown_at: Mapping[str, npt.NDArray[np.int32]]) -> None:
        """Go back to where a checkpoint was taken.

        Raises
        ------
        ValueError
            If the rounds do not belong to the masks.
        """
        for group, slots in masks.items():
            if grown_at[group].dtype != np.int32 or grown_at[group].shape != slots.shape:
                raise ValueError(f"the rounds of growth of {group} do not fit its mask")
        self._masks, self.grown_at = dict(masks), dict(grown_at)

    def _find(
        self, group: str, slots: Slots
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return where slots stand in the mask noted last, and whether they do."""
        noted = self._masks[group]
        place = np.searchsorted(noted, slots).clip(max=len(noted) - 1)
        return place, noted[place] == slots
