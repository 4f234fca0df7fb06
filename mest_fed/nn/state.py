"""A model's state: described, copied out, copied in."""

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mest_fed.errors import InputError
from mest_fed.nn.identity import plain_tensors
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.mutator import mask_groups
from mest_fed.nn.stored import STORED_KEYS
from mest_fed.sparsity import slot_objection
from mest_fed.sparsity.arrays import Floats
from mest_fed.sparsity.state import ModelSpec, SparseState


def _dense_tensors(model: nn.Module, *, detached: bool = True) -> dict[str, torch.Tensor]:
    """Return what ``model.state_dict()`` holds beside masks and active values, without copies."""
    tensors: dict[str, torch.Tensor | None] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        compact = STORED_KEYS if isinstance(module, SparseLayer) else ()
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if name not in compact and name not in module._non_persistent_buffers_set:
                tensors[prefix + name] = tensor
    sent = {n: t for n, t in tensors.items() if t is not None and t.is_floating_point()}
    return {n: t.detach() for n, t in sent.items()} if detached else sent


class UnsentBuffers:
    """Copies of the buffers of a model that no state holds: counters of batches, caches.

    Clients that share a process's model would else find them as the client before left them.

    Parameters
    ----------
    model : nn.Module
        As its builder left it.
    """

    def __init__(self, model: nn.Module) -> None:
        sent = {id(tensor) for tensor in _dense_tensors(model, detached=False).values()}
        self._copies = [
            (module, name, None if tensor is None else tensor.detach().clone())
            for module in model.modules()
            for name, tensor in module._buffers.items()
            if id(tensor) not in sent
            and not (isinstance(module, SparseLayer) and name in STORED_KEYS)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers the numbers that they had."""
        for module, name, copy in self._copies:
            now = module._buffers[name]
            if now is not None and copy is not None and now.shape == copy.shape:
                now.copy_(copy)
            else:
                module._buffers[name] = None if copy is None else copy.clone()


def model_spec(model: nn.Module) -> ModelSpec:
    """Describe a model's state."""
    names = {id(m): n for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    groups = {g.name: tuple(names[id(m)] for m in g.layers) for g in mask_groups(model)}
    layouts = {n: m.layout for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    dense = {name: tuple(tensor.shape) for name, tensor in _dense_tensors(model).items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    statistics = frozenset(dense.keys() - parameters)
    return ModelSpec(groups, layouts, dense, _variances(model) & dense.keys(), statistics)


def _variances(model: nn.Module) -> frozenset[str]:
    """Return the names of the running variances of torch's batch and instance norms."""
    return frozenset(
        f"{name}.running_var" if name else "running_var"
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _NormBase)
    )


def read_state(model: nn.Module) -> SparseState:
    """Copy a model's state out."""

    def array(tensor: torch.Tensor) -> Floats:
        with plain_tensors():
            return tensor.detach().to("cpu", torch.float32, copy=True).numpy()

    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    masks = {g.name: g.mask.slots.copy() for g in mask_groups(model)}
    values = {name: array(layer.values) for name, layer in layers.items()}
    dense = {name: array(tensor) for name, tensor in _dense_tensors(model).items()}
    return SparseState(masks, values, dense)


def write_state(model: nn.Module, state: SparseState) -> None:
    """Copy a state into a model of the same specification.

    The state's active counts become the layers' targets: what travels is at its target.

    Raises
    ------
    InputError
        If the state is not of the model's specification, or a mask is none. The model then stays
        as it is.
    """
    groups, tensors = mask_groups(model), _dense_tensors(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    names = {id(layer): name for name, layer in layers.items()}
    for part, theirs, ours in (
        ("masks", state.masks, {group.name for group in groups}),
        ("values", state.values, layers.keys()),
        ("dense tensors", state.dense, tensors.keys()),
    ):
        if theirs.keys() != ours:
            odd = ", ".join(sorted(theirs.keys() ^ ours)[:3])
            raise InputError(f"the {part} of a state are not those of the model: {odd}, ...")
    shapes: dict[str, tuple[int, ...]] = {n: tuple(t.shape) for n, t in tensors.items()}
    for group in groups:
        slots = state.masks[group.name]
        if slots.dtype != np.int32 or slots.ndim != 1:
            raise InputError(
                f"the mask of {group.name} = {slots.dtype} of shape {slots.shape} is not allowed;"
                " allowed: int32 of shape (active,)"
            )
        for layer in group.layers:
            layer.check_mask_can_change()
            has_it = layer.has_mask(torch.from_numpy(slots))
            objection = None if has_it else slot_objection(layer.layout, slots)
            if objection:
                raise InputError(f"the mask of {group.name} is not allowed: {objection}")
            shapes[names[id(layer)]] = len(slots), layer.layout.width
    for name, array in (state.values | state.dense).items():
        if array.shape != shapes[name]:
            raise InputError(
                f"{name} = array of {array.shape} is not allowed; allowed: {shapes[name]}"
            )
    for group in groups:
        active = torch.from_numpy(state.masks[group.name])
        for layer in group.layers:
            layer.copy_in(active, torch.from_numpy(state.values[names[id(layer)]]), None)
    with torch.no_grad():
        for name, values in state.dense.items():
            tensors[name].copy_(torch.from_numpy(values))
