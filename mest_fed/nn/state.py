"""A model's state as plain NumPy arrays, and the specification that says what they mean.

This is what travels: the wire encodes a :class:`SparseState`, the server aggregates it, a
checkpoint stores it. None of them needs the model, only its :class:`ModelSpec`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mest_fed.nn.groups import mask_groups
from mest_fed.nn.layers import SparseLayer
from mest_fed.sparsity import Layout

Floats = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ModelSpec:
    """What the arrays of a model's state mean.

    Parameters
    ----------
    groups : dict of str to tuple of str
        Mask group -> its sparse layers, in model order. The mask's layout is the first layer's.
    layouts : dict of str to Layout
        Sparse layer -> its layout.
    dense : dict of str to tuple of int
        Every other floating-point parameter or buffer -> its shape.
    """

    groups: dict[str, tuple[str, ...]]
    layouts: dict[str, Layout]
    dense: dict[str, tuple[int, ...]]

    def group_layout(self, group: str) -> Layout:
        """Return the layout of a group's mask."""
        return self.layouts[self.groups[group][0]]

    def group_of(self, layer: str) -> str:
        """Return the mask group of a sparse layer."""
        return next(group for group, layers in self.groups.items() if layer in layers)

    @property
    def sparse_weights(self) -> int:
        """Weights of the sparse layers, dead ones included."""
        return sum(layout.num_weights for layout in self.layouts.values())


@dataclass
class SparseState:
    """Masks, live values and dense tensors of a model.

    Parameters
    ----------
    masks : dict of str to int32 array
        Mask group -> increasing slots, shape ``(live,)``.
    values : dict of str to float32 array
        Sparse layer -> shape ``(live, width)``.
    dense : dict of str to float32 array
        Everything else.
    """

    masks: dict[str, Slots]
    values: dict[str, Floats]
    dense: dict[str, Floats]

    def density(self, spec: ModelSpec) -> float:
        """Return live weights / weights over the sparse layers (1 for a model without any)."""
        if not spec.layouts:
            return 1.0
        live = 0
        for group, layers in spec.groups.items():
            slots = torch.from_numpy(self.masks[group])
            live += sum(spec.layouts[layer].live_weights(slots) for layer in layers)
        return live / spec.sparse_weights


def _dense_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    compact = set()
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            compact |= {f"{name}.values", f"{name}.slots"}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in compact and tensor.is_floating_point()
    }


def model_spec(model: nn.Module) -> ModelSpec:
    """Describe a model's state."""
    names = {id(m): n for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    groups = {g.name: tuple(names[id(m)] for m in g.layers) for g in mask_groups(model)}
    layouts = {n: m.layout for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    dense = {name: tuple(tensor.shape) for name, tensor in _dense_tensors(model).items()}
    return ModelSpec(groups, layouts, dense)


def read_state(model: nn.Module) -> SparseState:
    """Copy a model's state out."""

    def array(tensor: torch.Tensor) -> Floats:
        return tensor.detach().to("cpu", torch.float32, copy=True).numpy()

    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    masks = {g.name: g.mask.slots.cpu().numpy().astype(np.int32) for g in mask_groups(model)}
    values = {name: array(layer.values) for name, layer in layers.items()}
    dense = {name: array(tensor) for name, tensor in _dense_tensors(model).items()}
    return SparseState(masks, values, dense)


def write_state(model: nn.Module, state: SparseState) -> None:
    """Copy a state into a model of the same specification."""
    for group in mask_groups(model):
        slots = torch.from_numpy(state.masks[group.name])
        for layer in group.layers:
            layer.slots = slots.to(layer.values.device)
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            module.load(module.slots, torch.from_numpy(state.values[name]))
    tensors = _dense_tensors(model)
    with torch.no_grad():
        for name, values in state.dense.items():
            tensors[name].copy_(torch.from_numpy(values))
