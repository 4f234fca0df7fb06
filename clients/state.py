"""What a client keeps between rounds, in Flower's ``Context.state``; none of it is ever sent."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context

from mest_fed.nn.state import Slots
from mest_fed.training import ForgettingState
from mest_fed.wire import Residual

MASKS = "mest.masks"
FORGETTING = "mest.forgetting"
RESIDUAL_MASKS = "mest.residual.masks"
RESIDUAL_VALUES = "mest.residual.values"
KERNELS = "mest.kernels"

Arrays = dict[str, npt.NDArray[Any]]


class ClientState:
    """Typed access to a client's ``Context.state``.

    Parameters
    ----------
    context : Context
        Of this client; setting an attribute writes through to it.
    """

    def __init__(self, context: Context) -> None:
        self._state = context.state

    @property
    def masks(self) -> dict[str, Slots] | None:
        """The mask set that this client and the server both know, or None."""
        return self._read(MASKS)

    @masks.setter
    def masks(self, masks: dict[str, Slots]) -> None:
        self._write(MASKS, masks)

    @property
    def residual(self) -> Residual | None:
        """What 8-bit uploads have left unsent so far, or None."""
        masks, values = self._read(RESIDUAL_MASKS), self._read(RESIDUAL_VALUES)
        return None if masks is None or values is None else Residual(masks, values)

    @residual.setter
    def residual(self, residual: Residual | None) -> None:
        if residual is not None:
            self._write(RESIDUAL_MASKS, residual.masks)
            self._write(RESIDUAL_VALUES, residual.values)

    @property
    def kernels(self) -> str | None:
        """The table of kernels that this device timed, as JSON, or None."""
        record = self._state.config_records.get(KERNELS)
        return None if record is None else str(record["table"])

    @kernels.setter
    def kernels(self, table: str) -> None:
        self._state[KERNELS] = ConfigRecord({"table": table})

    def forgetting(self, num_examples: int) -> ForgettingState:
        """Return the forgetting state, fresh if there is none for so many examples."""
        kept = self._read(FORGETTING)
        if kept is None or len(kept["codes"]) != num_examples:
            return ForgettingState.fresh(num_examples)
        return ForgettingState(kept["codes"].copy())

    def keep_forgetting(self, state: ForgettingState) -> None:
        """Keep the forgetting state."""
        self._write(FORGETTING, {"codes": state.codes})

    def _read(self, key: str) -> Arrays | None:
        record = self._state.array_records.get(key)
        return None if record is None else {name: array.numpy() for name, array in record.items()}

    def _write(self, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._state[key] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
