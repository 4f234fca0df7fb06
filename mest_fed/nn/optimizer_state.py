"""What a mutation does to an optimizer: its state of a layer's values is edited with the values."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from mest_fed.errors import InputError
from mest_fed.nn.identity import Values
from mest_fed.sparsity import carry

#: Optimizers of torch that do not suit sparse layers, and why.
_REFUSED = {
    "LBFGS": "keeps vectors over all parameters, which a mutation cannot edit",
    "Muon": "takes a layer's values for a matrix of weights, which they are not",
}

#: Where a state does not begin at zero: (optimizer of torch, state) -> the option it begins at.
_BEGINS_AT = {
    ("Rprop", "step_size"): "lr",
    ("Adagrad", "sum"): "initial_accumulator_value",
}


class HasState(Protocol):
    """What mutation needs of an optimizer.

    The parameters that it trains stand in ``param_groups``, as in torch, or in ``parameters``.
    """

    state: Any
    """Parameter -> its state by name, such as the momentum."""


def check_optimizer(optimizer: HasState, layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse an optimizer that does not train the values that a model's sparse layers have now.

    Raises
    ------
    InputError
        If values that require a gradient are not among the optimizer's parameters, or mutation
        cannot edit what the optimizer keeps.
    """
    refuse_unsuited(optimizer)
    trained = {id(parameter) for parameter in _parameters(optimizer)}
    for name, layer in layers:
        values = layer.values
        assert isinstance(values, Tensor)
        if values.requires_grad and id(values) not in trained:
            raise InputError(
                f"{name}.values is not among the optimizer's parameters: make the optimizer from"
                " this model's parameters, after sparsify"
            )


def refuse_unsuited(optimizer: Any) -> None:
    """Refuse an optimizer of torch that does not suit sparse layers."""
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.Optimizer) and name in _REFUSED:
        raise InputError(f"{name} {_REFUSED[name]}")


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    if hasattr(optimizer, "param_groups"):
        for group in optimizer.param_groups:
            yield from group["params"]
    elif hasattr(optimizer, "parameters"):
        yield from optimizer.parameters
    else:
        raise InputError(
            f"{type(optimizer).__name__} has no param_groups: give the optimizer that it wraps"
        )


def trainer_of(values: Tensor) -> HasState | None:
    """Return the torch optimizer that took the last step with values, if its state is still of it.

    State that was loaded since belongs to the values that are loaded with it.
    """
    noted = vars(values).get("trainer")
    if noted is None:
        return None
    reference, state = noted
    optimizer: torch.optim.Optimizer | None = reference()
    if optimizer is None or id(optimizer.state.get(values)) != state:
        return None
    return optimizer


def _note_trainer(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Note with values which optimizer has state of them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, Values):
                parameter.trainer = weakref.ref(optimizer), id(optimizer.state.get(parameter))


# An optimizer does not know that a layer gets another mask, and a layer no optimizer.
register_optimizer_step_post_hook(_note_trainer)


def carry_state(optimizer: HasState, values: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Return the state of values under a new mask, as far as it changes.

    Parameters
    ----------
    optimizer : HasState
        Stays as it is.
    values : Tensor
        The values before, shape ``(active, width)``.
    rows : Tensor
        int64, shape ``(new active,)``, as from :meth:`Mask.rows_in`.

    Returns
    -------
    dict of str to Tensor
        What has one entry for each value or each row; new rows are as before the first step: zero,
        but for Rprop's step sizes and Adagrad's sums. Counts of steps go on.

    Raises
    ------
    InputError
        If the optimizer keeps a tensor of another shape than the values', a row's, a column's or a
        number's: what a mutation would make of it is unknown.
    """
    carried = {}
    active, width = values.shape
    for key, entry in optimizer.state.get(values, {}).items():
        kept = list(_tensors(entry))
        if not kept or all(tensor.numel() <= 1 and tensor.shape != values.shape for tensor in kept):
            continue
        if isinstance(entry, Tensor):
            shape = tuple(entry.shape)
            if shape in {(active, width), (active, 1), (active,)}:
                carried[key] = carry(entry, rows)
                start = _start(optimizer, values, key)
                if start is not None:
                    carried[key][rows < 0] = start
                continue
            if shape in {(1, width), (width,)}:  # a mean over rows
                continue
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in kept)
        raise InputError(
            f"{type(optimizer).__name__} keeps {key!r} of shape {shapes} for values of shape"
            f" {(active, width)}: a mutation cannot edit it"
        )
    return carried


def _start(optimizer: Any, values: Tensor, key: str) -> float | Tensor | None:
    """Return what a state begins at, None if that is zero."""
    optimizer = getattr(optimizer, "wrapped", optimizer)
    option = _BEGINS_AT.get((type(optimizer).__name__, key))
    if option is None or not isinstance(optimizer, torch.optim.Optimizer):
        return None
    groups = optimizer.param_groups
    group = next(g for g in groups if any(it is values for it in g["params"]))
    start: float | Tensor = group[option]
    return start


def _tensors(entry: Any) -> Iterator[Tensor]:
    if isinstance(entry, Tensor):
        yield entry
    elif isinstance(entry, list | tuple):
        for each in entry:
            yield from _tensors(each)
    elif isinstance(entry, dict):
        for each in entry.values():
            yield from _tensors(each)
