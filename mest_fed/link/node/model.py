"""A model as arrays: the memory of its compiled steps, which masks may change.

The counterpart of torch's resident model and its optimizer in a client with torch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.errors import InputError
from mest_fed.kernels import Kernels
from mest_fed.link.description import SLOTS, VALUES, unknown_buffers
from mest_fed.runtime.step import CompiledForward, CompiledStep
from mest_fed.sparsity import Mask, Method, carry, grow, keep_best
from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.training.round_mutation import RoundMutation

Array = npt.NDArray[Any]

_REFERENCE = ":reference"


class NodeModel:
    """A model's state in the memory of the steps that train it.

    Parameters
    ----------
    spec : ModelSpec
        Of the model.
    state : SparseState
        What to begin with; it is copied.

    Attributes
    ----------
    masks : dict of str to int32 array
        Mask group -> active slots, at present.
    """

    def __init__(self, spec: ModelSpec, state: SparseState) -> None:
        self.spec = spec
        self.masks: dict[str, Slots] = dict(state.masks)
        self._targets = {group: len(slots) for group, slots in state.masks.items()}
        self._start: SparseState | None = state
        #: Parameters, masks and states of the optimizer, by their names in programs.
        self._arrays: dict[str, Array] = {}
        #: Parameters that steps change.
        self._trained: set[str] = set()
        #: Dense tensors that no program reads: they stay as they are.
        self._unused: dict[str, Floats] = {}
        self._group_of = {layer: group for group, layers in spec.groups.items() for layer in layers}

    def bind(self, step: CompiledStep | CompiledForward) -> None:
        """Let a step compute in the model's memory; the first one's becomes it.

        Raises
        ------
        InputError
            If it is a step of another model.
        """
        first = not self._arrays
        if unknown := unknown_buffers(self.spec, iter(step.arrays)):
            raise InputError(f"the program has {unknown[0]!r}, which the model has not")
        for name, array in list(step.arrays.items()):
            held = self._arrays.setdefault(name, array)
            if held is not array:
                step.bind(name, held)
        program = step.program
        written = {number for each in program.operators for number in each.writes}
        self._trained = {
            buffer.name
            for number, buffer in enumerate(program.buffers)
            if number in written and buffer.role == "parameter"
        }
        if first:
            self._fill()

    def _fill(self) -> None:
        """Write the state that the model begins with into the memory of its first step."""
        state, self._start = self._start, None
        assert state is not None
        for group, layers in self.spec.groups.items():
            for layer in layers:
                self._put_slots(layer, self.masks[group])
                if layer + VALUES in self._arrays:
                    self._put_rows(layer, layer + VALUES, state.values[layer])
        for name, values in state.dense.items():
            if name in self._arrays:
                self._arrays[name][...] = values.reshape(self._arrays[name].shape)
        self._unused = {
            name: values.copy() for name, values in state.dense.items() if name not in self._arrays
        }
        for name, array in self._arrays.items():
            if name.endswith(_REFERENCE):
                array[...] = self._arrays[name.removesuffix(_REFERENCE)]

    def reads_from(self, step: CompiledStep) -> bool:
        """Say whether a step keeps the gradients that a mutation reads."""
        names = (layer + VALUES for layer in self.spec.layouts)
        return all(name in step.gradients for name in names if name in self._trained)

    @property
    def fullness(self) -> float:
        """Active values / those that the programs have room for."""
        names = {layer: layer + VALUES for layer in self.spec.layouts}
        room = sum(self._arrays[name].size for name in names.values())
        active = sum(self._active(it) * self.spec.layouts[it].width for it in names)
        return active / room if room else 1.0

    def state(self) -> SparseState:
        """Return a copy of masks, active values and dense tensors."""
        values = {
            layer: self._rows(layer, layer + VALUES)[: self._active(layer)].copy()
            for layer in self.spec.layouts
        }
        dense = {
            name: self._arrays[name].reshape(shape).copy()
            if name in self._arrays
            else self._unused[name]
            for name, shape in self.spec.dense.items()
        }
        return SparseState(dict(self.masks), values, dense)

    def grow(self, mutation: RoundMutation) -> None:
        """Grow all masks that train to the ceiling: opens a soft-bounded round."""
        bounds, method = mutation.bounds, mutation.method

        def grown(group: str, mask: Mask) -> Mask:
            count = bounds.ceiling_count(self._targets[group], mask.layout)
            return grow(mask, count, method.growth_order(mask.layout, mutation.generator(group)))

        self._replace(grown, trained=True)

    def mutate(self, mutation: RoundMutation, gradients: Mapping[str, Array]) -> None:
        """Drop to the floor and grow to the ceiling, by the gradients of the last step."""
        bounds, method = mutation.bounds, mutation.method

        def mutated(group: str, mask: Mask) -> Mask:
            importance = self._importance(method, group, gradients)
            proposal = method.growth_order(mask.layout, mutation.generator(group))
            return method.mutate(mask, importance, proposal, self._targets[group], bounds)

        self._replace(mutated, trained=True)

    def drop(self, mutation: RoundMutation, gradients: Mapping[str, Array]) -> None:
        """Drop to the target, old and new ranked together: closes a soft-bounded round."""

        def kept(group: str, mask: Mask) -> Mask:
            importance = self._importance(mutation.method, group, gradients)
            return keep_best(mask, importance, self._targets[group])

        self._replace(kept, trained=False)

    def _importance(self, method: Method, group: str, gradients: Mapping[str, Array]) -> Any:
        layers = self.spec.groups[group]
        names = [layer + VALUES for layer in layers]
        values = self._side_by_side(layers, [self._arrays[name] for name in names])
        given = [gradients[name] for name in names if name in gradients]
        whole = len(given) == len(names)
        return method.importance(values, self._side_by_side(layers, given) if whole else None)

    def _side_by_side(self, layers: tuple[str, ...], arrays: list[Array]) -> Floats:
        parts = [
            array.reshape(-1, self.spec.layouts[layer].width)[: self._active(layer)]
            for layer, array in zip(layers, arrays, strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _replace(self, new_mask: Callable[[str, Mask], Mask], *, trained: bool) -> None:
        for group, layers in self.spec.groups.items():
            if trained and not any(layer + VALUES in self._trained for layer in layers):
                continue  # what grows there would stay zero
            old = Mask(self.spec.group_layout(group), self.masks[group])
            new = new_mask(group, old)
            rows = new.rows_in(old)
            for layer in layers:
                self._put_slots(layer, new.slots)
                for name in self._of_values(layer):
                    kept = self._rows(layer, name)[: len(old)].copy()
                    self._put_rows(layer, name, carry(kept, rows))
            self.masks[group] = new.slots

    def _of_values(self, layer: str) -> list[str]:
        """Return the names of a layer's values, and of what the optimizer keeps of each."""
        prefix, values = layer + VALUES + ":", layer + VALUES
        of_each = [
            name
            for name, array in self._arrays.items()
            if name.startswith(prefix) and array.size == self._arrays[values].size
        ]
        return [values, *of_each]

    def _active(self, layer: str) -> int:
        return len(self.masks[self._group_of[layer]])

    def _rows(self, layer: str, name: str) -> Array:
        return self._arrays[name].reshape(-1, self.spec.layouts[layer].width)

    def _put_rows(self, layer: str, name: str, values: Array) -> None:
        rows = self._rows(layer, name)
        if len(values) > len(rows):
            raise InputError(f"{name}: the program has no room for {len(values)} granules")
        rows[: len(values)] = values
        rows[len(values) :] = 0

    def _put_slots(self, layer: str, slots: Slots) -> None:
        held = self._arrays.get(layer + SLOTS)
        if held is None:  # of channels made, a program needs no list
            return
        layout = self.spec.layouts[layer]
        kernels = isinstance(layout.storage, Kernels)
        listed = layout.positions(slots).reshape(-1) if kernels else slots
        held[: len(listed)] = listed
        held[len(listed) :] = -1
