"""How a sparse layer stands in a ``state_dict``, so that a mean of states is right or refused.

===================  ===============  ============================================================
key                  type, shape      meaning
===================  ===============  ============================================================
``values``           float (active, w)  active values
``slots``            float64 (active,)  whole numbers; a mean of equal ones rounds back to them
``digest_of_slots``  float64 (8,)     the mask's :func:`~mest_fed.nn.identity.digest_of`
``target_slots``     float64 (1,)     active granules that the layer's density stands for
===================  ===============  ============================================================

Averaged like weights, equal masks give back the mask and the digest; unlike ones give slots whose
digest is another than the averaged one. Older states have int32 slots and neither of the last two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mest_fed.errors import InputError
from mest_fed.nn.identity import DIGEST_LENGTH, Values, digest_of
from mest_fed.sparsity import Layout, slot_objection

SLOTS, VALUES, DIGEST, TARGET = "slots", "values", "digest_of_slots", "target_slots"
STORED_KEYS = (SLOTS, VALUES, DIGEST, TARGET)

#: Means leave rounding errors (a few steps of float32), and adaptive strategies magnify them. The
#: digest decides in the end.
_NEAR = 0.05
_FLOAT32_STEPS = 8 * 2.0**-24
_FARTHEST = 0.25
#: As small as float32 sums over many clients allow: a share of 1e-4 of another mask is seen, and so
#: is one step of an adaptive strategy, whose length does not depend on how far apart masks are.
_DIGEST_NEAR = 1e-5

_HINT = "average by slot, or keep one mask (mest_fed.nn.match_masks)"


@dataclass(frozen=True)
class StoredLayer:
    """A layer's part of a state, checked.

    Parameters
    ----------
    slots : Tensor
        int32, shape ``(active,)``, on the CPU.
    values : Tensor
        Shape ``(active, width)``.
    target : int or None
        None in an older state.
    """

    slots: Tensor
    values: Tensor
    target: int | None


class StoredInState(nn.Module):
    """A module that holds a mask, and writes it into its ``state_dict`` and reads it again."""

    layout: Layout
    slots: Tensor
    values: nn.Parameter
    target: int
    _stored: tuple[tuple[int, ...], dict[str, Tensor]]

    def load(self, slots: Tensor, values: Tensor, target: int | None = None) -> None:
        """Copy slots and values in."""
        raise NotImplementedError

    def _check_slots_are_unedited(self) -> None:
        raise NotImplementedError

    def _identify(self) -> None:
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._check_slots_are_unedited()
        for key, tensor in self._stored_mask().items():
            destination[prefix + key] = tensor

    def _stored_mask(self) -> dict[str, Tensor]:
        """Return slots, digest and target as a state holds them; the same tensors while they hold.

        As with any module, two calls of ``state_dict`` then share memory.
        """
        made_for, stored = self._stored
        if made_for != (id(self.slots), self.slots._version, self.target) or any(
            tensor._version for tensor in stored.values()
        ):
            stored = write_layer(self.layout, self.slots, self.target)
            self._stored = (id(self.slots), self.slots._version, self.target), stored
        return stored

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        *lists: list[str],
    ) -> None:
        # The number of active granules differs between states, so torch cannot copy them.
        stored = read_layer(self.layout, state_dict, prefix)
        rest = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        held = [prefix + key for key in (SLOTS, VALUES) if prefix + key in rest]
        if stored is not None:
            if local_metadata.get("assign_to_params_buffers", False):
                values = stored.values.detach()
                self.values = nn.Parameter(values, self.values.requires_grad)
            target = self.target if stored.target is None and self.target else stored.target
            self.load(stored.slots, stored.values, target)
        elif VALUES not in self._parameters and held == [prefix + SLOTS]:  # they are computed
            slots = check_slots(held[0], self.layout, state_dict[held[0]])
            if not torch.equal(torch.from_numpy(slots), self.slots.cpu()):
                lists[-1].append(f"{held[0]} are others, but the layer's values are computed")
        elif len(held) == 1:  # also where the caller asked for no strict load
            lists[-1].append(f"{held[0]} came alone, but values and slots belong together")
        for key in held if stored is not None or len(held) == 1 else (prefix + SLOTS,):
            if key in rest:
                rest[key] = getattr(self, key.removeprefix(prefix))  # nothing more to copy
        for key in (DIGEST, TARGET):
            rest.pop(prefix + key, None)
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, *lists)
        self._identify()


def write_layer(layout: Layout, slots: Tensor, target: int) -> dict[str, Tensor]:
    """Return what stands in a state beside a layer's values and bias."""
    digest = (0.0,) * DIGEST_LENGTH if slots.is_meta else digest_of(layout, slots)
    numbers = {DIGEST: list(digest), TARGET: [target]}
    tensors = {SLOTS: slots.detach().to(torch.float64)}
    for key, number in numbers.items():
        tensors[key] = torch.tensor(number, dtype=torch.float64, device=slots.device)
    return tensors


def read_layer(layout: Layout, state: Mapping[str, Any], prefix: str) -> StoredLayer | None:
    """Read and check a layer's part of a state.

    Returns
    -------
    StoredLayer or None
        None if slots or values are missing, or the values are of another width: torch says so.

    Raises
    ------
    InputError
        If the slots are no mask of the layout, or do not belong to digest, values or target.
    """
    stored, values = state.get(prefix + SLOTS), state.get(prefix + VALUES)
    if not isinstance(stored, Tensor) or not isinstance(values, Tensor):
        return None
    if tuple(values.shape[1:]) != (layout.width,):
        return None
    name = prefix + SLOTS
    slots = check_slots(name, layout, stored)
    digest = state.get(prefix + DIGEST)
    if digest is None and stored.is_floating_point():
        raise InputError(
            f"{name} = {stored.dtype} without a {DIGEST} beside them is not allowed; allowed: both,"
            " or int32 as older states have it"
        )
    if digest is not None:
        _check_digest(name, layout, torch.from_numpy(slots), digest)
    own = (digest_of(layout, torch.from_numpy(slots)),)
    if isinstance(values, Values) and values.masks and values.masks != own:
        raise InputError(
            f"{prefix}{VALUES} are of another mask than {name}; allowed: both of one state"
        )
    if len(values) != len(slots) or not values.is_floating_point():
        raise InputError(
            f"{prefix}{VALUES} = {values.dtype} of shape {tuple(values.shape)} is not allowed;"
            f" allowed: floating-point, one row for each of the {len(slots)} slots"
        )
    target = state.get(prefix + TARGET)
    count = None if target is None else _check_target(prefix + TARGET, layout, target)
    return StoredLayer(torch.from_numpy(slots), values, count)


def check_slots(name: str, layout: Layout, slots: Tensor) -> npt.NDArray[np.int32]:
    """Return slots as int32 on the CPU.

    Raises
    ------
    InputError
        If they are not of shape ``(active,)``, whole, increasing, in range, one for each granule.
    """
    allowed = f"whole increasing numbers in [0, {layout.num_slots}), one for each granule"
    if slots.dim() != 1 or slots.is_complex() or slots.dtype == torch.bool:
        what = f"{slots.dtype} of shape {tuple(slots.shape)}"
        raise InputError(f"{name} = {what} is not allowed; allowed: {allowed}, shape (active,)")
    numbers = slots.detach().cpu().to(torch.float64).numpy()
    whole = np.rint(numbers)
    with np.errstate(invalid="ignore"):  # what is not finite is wrong, too
        wrong = ~(np.abs(numbers - whole) <= _near(np.abs(whole)))
    if wrong.any():
        first = float(numbers[wrong][0])
        raise InputError(
            f"{name} holds {first:.6g}, which is not allowed; allowed: {allowed}."
            f" A mean of states with unlike masks has such slots: {_HINT}"
        )
    outside = (whole < 0) | (whole >= layout.num_slots)
    integers = np.where(outside, -1, whole).astype(np.int32)
    objection = slot_objection(layout, integers)
    if objection:
        raise InputError(f"{name}: {objection}; allowed: {allowed}")
    return integers


def _check_digest(name: str, layout: Layout, slots: Tensor, digest: Tensor) -> None:
    expected = torch.tensor(digest_of(layout, slots), dtype=torch.float64)
    found = digest.detach().cpu().to(torch.float64)
    if found.shape != expected.shape or not bool(((found - expected).abs() <= _DIGEST_NEAR).all()):
        raise InputError(
            f"{name} do not belong to the {DIGEST} beside them: the state is a mean of states with"
            f" unlike masks, or of another scheme or shape; {_HINT}"
        )


def _check_target(name: str, layout: Layout, target: Tensor) -> int:
    number = float(target) if target.numel() == 1 else math.nan
    whole = round(number) if math.isfinite(number) else -1
    if abs(number - whole) > _near(abs(whole)) or not 0 <= whole <= layout.num_granules:
        raise InputError(
            f"{name} = {number:.6g} is not allowed; allowed: a whole number in"
            f" [0, {layout.num_granules}], the same in all states of a mean"
        )
    return whole


def _near(whole: Any) -> Any:
    """Return how far an averaged number may be from a whole one."""
    return np.minimum(_FARTHEST, _NEAR + _FLOAT32_STEPS * whole)
