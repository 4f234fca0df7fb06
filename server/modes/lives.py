"""Which of a stale update's granules are still those that its client trained."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mest_fed.nn.state import Slots
from server.global_model import MaskSet


class Lives:
    """Since which round each slot of the global mask has lived without a break.

    A slot that died and was grown again holds another weight, of which an update from before its
    death knows nothing.

    Parameters
    ----------
    masks : dict of str to int32 array
        The global mask; its slots count as there from the start.

    Attributes
    ----------
    born : dict of str to int32 array
        Mask group -> the round at whose end each live slot was grown, shape ``(live,)``.
    """

    def __init__(self, masks: MaskSet) -> None:
        self._masks = dict(masks)
        self.born = {group: np.zeros(len(slots), np.int32) for group, slots in masks.items()}

    def follow(self, masks: MaskSet, number: int) -> None:
        """Take note of the global mask at the end of a round."""
        for group, slots in masks.items():
            if slots is not self._masks[group]:
                place, lived = self._find(group, slots)
                self.born[group] = np.where(lived, self.born[group][place], number).astype(np.int32)
        self._masks = dict(masks)

    def still(self, group: str, slots: Slots, number: int) -> npt.NDArray[np.bool_]:
        """Return which slots of a round's instruction have lived ever since; shape ``(live,)``."""
        place, lives = self._find(group, slots)
        return lives & (self.born[group][place] < number)

    def restore(self, masks: MaskSet, born: Mapping[str, npt.NDArray[np.int32]]) -> None:
        """Go back to where a checkpoint was taken.

        Raises
        ------
        ValueError
            If the rounds do not belong to the masks.
        """
        for group, slots in masks.items():
            if born[group].dtype != np.int32 or born[group].shape != slots.shape:
                raise ValueError(f"the rounds of birth of {group} do not fit its mask")
        self._masks, self.born = dict(masks), dict(born)

    def _find(
        self, group: str, slots: Slots
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return where slots stand in the mask noted last, and whether they do."""
        noted = self._masks[group]
        place = np.searchsorted(noted, slots).clip(max=len(noted) - 1)
        return place, noted[place] == slots
