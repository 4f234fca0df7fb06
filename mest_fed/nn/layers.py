"""Sparse layers: compact values and an index, never a dense weight.

A dense layer becomes a sparse one, and a sparse one dense again, by a change of its class, as
``torch.nn.utils.parametrize`` does: the module stays the same object, so that hooks, names,
attributes of a user's and every reference to it stay valid.
"""

import copy
from collections import OrderedDict
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from mest_fed.errors import InputError
from mest_fed.kernels import (
    Choice,
    ConvGeometry,
    How,
    SparseProduct,
    SparseWeight,
    choose,
)
from mest_fed.kernels.choice import EVERYTHING_DENSE, Choices
from mest_fed.kernels.functions import backward, forward
from mest_fed.nn.distributed import refuse_new_shape, running
from mest_fed.nn.identity import Values, digest_of, plain_tensors
from mest_fed.nn.optimizer_state import HasState, carry_state
from mest_fed.nn.stored import DIGEST, SLOTS, TARGET, VALUES, check_slots, read_layer, write_layer
from mest_fed.sparsity import Layout, Mask, carry

Plain = nn.Conv2d | nn.Linear


_ANYS = frozenset(dir(nn.Module))


def _is_wanted(tensor: Tensor) -> bool:
    """Whether the backward pass in progress goes on to a tensor.

    ``autograd.grad(loss, inputs)`` does not go to the values, although it calls the function that
    computes their gradient too.
    """
    with plain_tensors():
        node = get_gradient_edge(tensor).node
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # it ends there: autograd.grad(loss, values)
        return True


class SparseLayer(nn.Module):
    """A weight held as active values and their slots.

    Parameters
    ----------
    layout : Layout
        How the weight is cut.
    mask : Mask
        Which slots are active; of a layout with the same granules.
    dense : nn.Conv2d or nn.Linear
        Dense layer, which is copied and stays as it is; :meth:`convert` changes it instead.

    Attributes
    ----------
    values : Values
        A parameter of shape ``(active, width)`` that knows its mask.
    slots : Tensor
        int32, shape ``(active,)``, increasing. A buffer; replaced, never edited in place.
    target : int
        Active granules that the layer's density stands for. A mutation may leave more for a time.
    dense_gradient : Tensor or None
        Set by a backward pass while ``keep_dense_gradient`` is true (RigL); else None.
    """

    values: nn.Parameter
    slots: Tensor
    bias: nn.Parameter | None

    #: The dense class that the layer stands for.
    dense_class: ClassVar[type[Plain]]
    #: Attributes that the dense layer has not.
    added: ClassVar[tuple[str, ...]] = (
        *("layout", "target", "keep_dense_gradient", "dense_gradient", "choice"),
        *("choices", "_seen", "_stored"),
    )

    def __init__(self, layout: Layout, mask: Mask, dense: Plain) -> None:
        super().__init__()
        weight = dense.get_parameter("weight")
        vars(self).update(vars(copy.deepcopy(dense, {id(weight): weight})))
        self._compact(layout, mask, active_values(layout, mask, weight))

    @classmethod
    def convert(cls, dense: Plain, layout: Layout, mask: Mask, values: nn.Parameter) -> Self:
        """Turn a dense layer into a sparse one; it stays the same object.

        Parameters
        ----------
        dense : nn.Conv2d or nn.Linear
            Of the type ``dense_class``.
        layout, mask : Layout, Mask
            As for the constructor.
        values : Parameter
            As from :func:`active_values`.
        """
        layer: Any = dense
        inherit(values, dense.get_parameter("weight"))
        layer.__class__ = cls
        layer._compact(layout, mask, values)
        sparse: Self = layer
        return sparse

    @classmethod
    def names(cls) -> set[str]:
        """Return the names of what the layer has and no other module has."""
        return {*cls.added, "values", "slots", *(name for name in dir(cls) if name not in _ANYS)}

    def _compact(self, layout: Layout, mask: Mask, values: nn.Parameter) -> None:
        self._exchange("weight", "values", values)
        self.register_buffer("slots", mask.slots.clone())
        self.layout = layout
        self.target = len(mask.slots)
        #: Slots as they were last noted, and their version.
        self._seen = self.slots, self.slots._version
        #: What the last state_dict holds of the mask, and of which one; see _stored_mask.
        self._stored: tuple[tuple[int, ...], dict[str, Tensor]] = (), {}
        self._identify()
        self.keep_dense_gradient = False
        self.dense_gradient: Tensor | None = None
        #: Which implementations the last forward pass chose; see mest_fed.kernels.choice.
        self.choice: Choice | None = None
        #: Choices to take instead of the rule's; see mest_fed.nn.tuning.set_choices.
        self.choices: Choices | None = None

    def restore(self) -> None:
        """Turn the layer into the plain dense one; it stays the same object."""
        values = self.values
        weight = nn.Parameter(self.dense_weight(), values.requires_grad)
        inherit(weight, values)
        self._exchange("values", "weight", weight)
        del self.slots
        for name in self.added:
            delattr(self, name)
        plain: Any = self
        plain.__class__ = self.dense_class

    def to_dense(self) -> Plain:
        """Return a plain copy with the same weight."""
        plain: Any = copy.deepcopy(self)
        plain.restore()
        dense: Plain = plain
        return dense

    def _exchange(self, old: str, new: str, parameter: nn.Parameter) -> None:
        """Put a parameter in another's place, which decides the order of ``parameters()``."""
        held = dict(self._parameters)
        self._parameters.clear()
        for name, it in held.items():
            if name == old:
                self._parameters[new] = parameter
            else:
                self._parameters[name] = it

    @property
    def weight(self) -> Tensor:
        """The dense weight, built anew each time; its gradient reaches ``values``.

        For code that reads ``layer.weight`` of any layer. It is no parameter, and what is written
        into it is lost: change ``values``.
        """
        with plain_tensors():
            return self.layout.scatter(self.values, self.slots)

    @property
    def mask(self) -> Mask:
        """The mask; replace it with :meth:`replace_mask`."""
        self._check_slots_are_unedited()
        return Mask(self.layout, self.slots)

    def replace_mask(self, mask: Mask, optimizer: HasState | None = None) -> None:
        """Give the layer another mask: kept values stay, new ones start at zero.

        The optimizer's state of the values (momentum) is edited with them, in place, so that new
        values have none. Gradients of the old mask are dropped.

        Raises
        ------
        InputError
            If the slots are no mask of the layout, or the optimizer keeps what cannot be edited.
            Layer and optimizer then stay as they are.
        """
        self._check(mask.slots, None)
        with plain_tensors():
            rows = mask.rows_in(self.mask)
            old, state = self.values.detach(), {}
            if optimizer is not None:
                state = carry_state(optimizer, self.values, rows)
            self._set(mask.slots, carry(old, rows))
            if optimizer is not None and state:
                optimizer.state[self.values].update(state)

    def load(self, slots: Tensor, values: Tensor, target: int | None = None) -> None:
        """Copy slots and values of shape ``(active,)`` and ``(active, width)`` in.

        Parameters
        ----------
        slots, values : Tensor
            As the attributes, of any device.
        target : int or None
            As the attribute; None if it is the number of slots.

        Raises
        ------
        InputError
            If the slots are no mask of the layout, or the values have another shape. The layer
            then stays as it is.
        """
        self._check(slots, values)
        self.copy_in(slots, values, target)

    def copy_in(self, slots: Tensor, values: Tensor, target: int | None) -> None:
        """As :meth:`load`, of what was checked."""
        device, dtype = self.values.device, self.values.dtype
        with plain_tensors():
            kept = values.shape != self.values.shape  # else they are copied into the old ones
            self._set(slots.to(device, torch.int32, copy=True), values.to(device, dtype, copy=kept))
        self.target = len(slots) if target is None else target

    def _check(self, slots: Tensor, values: Tensor | None) -> None:
        name = f"slots of a {type(self).__name__} of shape {self.layout.shape}"
        check_slots(name, self.layout, slots)
        expected = (len(slots), self.layout.width)
        if values is not None and tuple(values.shape) != expected:
            raise InputError(
                f"values of shape {tuple(values.shape)} are not allowed; allowed: {expected},"
                f" as {name}"
            )
        self.check_mask_can_change()

    def check_mask_can_change(self) -> None:
        """Refuse a layer whose values are no parameter (pruning, a parametrization)."""
        if VALUES not in self._parameters:
            raise InputError(
                f"the values of a {type(self).__name__} are computed (by pruning or a"
                " parametrization), so that its mask cannot change; remove that first"
            )

    def _set(self, slots: Tensor, values: Tensor) -> None:
        if values.shape == self.values.shape:
            # In place: autograd keeps the node that DistributedDataParallel has its hooks on.
            self.values.detach().copy_(values)
        else:
            refuse_new_shape([self.values])
            # While a loss of the old shape is alive, autograd holds new gradients to that shape;
            # a change of type makes it forget.
            self.values.data = values.new_empty(0, dtype=torch.complex64)
            self.values.data = values
        self.slots = slots
        self.values.grad = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; values know the slots that were set last."""
        super().__setattr__(name, value)
        if name in (SLOTS, VALUES) and VALUES in self.__dict__.get("_parameters", ()):
            self._identify()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled layer, whose values are a plain parameter."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if VALUES in self._parameters:
            self._identify()

    def _identify(self) -> None:
        """Note the digest of the slots with the values."""
        values: Tensor | None = self._parameters.get(VALUES)
        slots = self.slots
        if values is not None and not isinstance(values, Values):
            values.__class__ = Values  # the same object: an optimizer may hold it
            values._is_param = True
        if isinstance(values, Values):
            values.masks = () if slots.is_meta else (digest_of(self.layout, slots),)
        self._seen = slots, slots._version
        self._stored = (), {}

    def _check_slots_are_unedited(self) -> None:
        """Refuse slots that were edited in place, as an average over buffers does."""
        slots, version = self._seen
        if self.slots is not slots or slots._version == version:
            return
        # DistributedDataParallel copies slots and values of the first process over the others'.
        masks = getattr(self._parameters.get(VALUES), "masks", ())
        if not running() and masks and masks != (digest_of(self.layout, slots),):
            raise InputError(
                f"the slots of a {type(self).__name__} of shape {self.layout.shape} were edited in"
                " place and are not those of its values; average parameters without buffers"
                " (use_buffers=False), or use replace_mask"
            )
        self._identify()

    def _apply(self, fn: Any, recurse: bool = True) -> "SparseLayer":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._seen = self.slots, self.slots._version
        return self

    def dense_weight(self) -> Tensor:
        """Build the dense weight."""
        with plain_tensors():
            return self.layout.scatter(self.values.detach(), self.slots)

    def _weight(self) -> SparseWeight:
        if not torch.compiler.is_compiling():
            self._check_slots_are_unedited()
        slots = self.slots  # a backward pass must see the mask of its forward pass
        hook = self._keep_gradient if self.keep_dense_gradient else None
        layout = self.layout
        return SparseWeight(
            layout.shape, slots, layout.storage, lambda: layout.positions(slots), hook
        )

    def _how(self, x: Tensor, weight: SparseWeight, geometry: ConvGeometry) -> How:
        """Choose the implementations for an input, and note the choice."""
        # Meta tensors stand for the CPU's: a trace wants what will really run.
        on_cpu = x.device.type in ("cpu", "meta")
        if on_cpu and x.dtype == self.values.dtype == torch.float32:
            size = (x.shape[2], x.shape[3]) if x.dim() == 4 else (1, 1)
            self.choice = choose(weight, size, geometry, self.choices)
        else:
            self.choice = EVERYTHING_DENSE
        return How(geometry, self.choice)

    def _product(self, x: Tensor, geometry: ConvGeometry) -> Tensor:
        """Multiply by the weight and add the bias, with the implementation chosen for the case."""
        with plain_tensors():
            weight = self._weight()
            given: tuple[Tensor, Tensor, Tensor | None] = (x, self.values, self.bias)
            device = "cpu" if x.is_meta else x.device.type
            if torch.is_autocast_enabled(device):
                given = autocast(given, torch.get_autocast_dtype(device))
            how = self._how(given[0], weight, geometry)
            y: Tensor = SparseProduct.apply(*given, weight, how)  # type: ignore[no-untyped-call]
        return y

    def _keep_gradient(self, gradient: Tensor) -> None:
        if not _is_wanted(self.values):
            return
        # Micro-batches add up, as they do in values.grad, whatever type autocast computes in.
        gradient, kept = gradient.detach().to(self.values.dtype), self.dense_gradient
        self.dense_gradient = gradient if kept is None else kept + gradient

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

    def extra_repr(self) -> str:
        """Describe the layer for ``print(model)``."""
        name = type(self.layout).__name__.lower()
        return f"{self.layout.shape}, {name}, density={self.mask.density:.3f}"


class SparseConv2d(SparseLayer):
    """2-D convolution with a sparse weight; see :class:`SparseLayer`."""

    dense_class = nn.Conv2d
    added = (*SparseLayer.added, "geometry")
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]

    def _compact(self, layout: Layout, mask: Mask, values: nn.Parameter) -> None:
        if isinstance(self.padding, str):
            raise ValueError(f"padding = {self.padding!r} by name is not supported, use numbers")
        super()._compact(layout, mask, values)
        self.geometry = ConvGeometry(self.stride, self.padding, self.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape (n, in, h, w) or (in, h, w)."""
        if x.dim() == 3:
            return self._product(x.unsqueeze(0), self.geometry).squeeze(0)
        return self._product(x, self.geometry)

    def into(self, x: Tensor, y: Tensor) -> Tensor:
        """Convolve ``x`` into ``y``, unseen by autograd."""
        with plain_tensors():
            weight = self._weight()
            how = self._how(x, weight, self.geometry)
            return forward(x, self.values.detach(), self.bias, weight, how, into=y)

    def gradients(
        self, x: Tensor, grad: Tensor, into: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Give the gradients for an output's gradient; a bias is not supported.

        Parameters
        ----------
        x, grad : Tensor
            Input, and gradient of the output.
        into : Tensor or None
            Where the gradient of ``x`` goes; None if it is not wanted.

        Returns
        -------
        parameter : Parameter
            The weight's values.
        gradient : Tensor or None
            Theirs, None where they do not train.
        """
        with plain_tensors():
            weight = self._weight()
            how = self._how(x, weight, self.geometry)
            values, wanted = self.values.detach(), (into is not None, self.values.requires_grad)
            gradient = backward(grad, x, values, weight, how, wanted=wanted, into=into)[1]
        return self.values, gradient


class SparseLinear(SparseLayer):
    """Linear map with a sparse weight; see :class:`SparseLayer`."""

    dense_class = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape (..., in)."""
        y = self._product(x.reshape(-1, x.shape[-1]), ConvGeometry())
        return y.view(*x.shape[:-1], self.layout.shape[0])


def active_values(layout: Layout, mask: Mask, weight: nn.Parameter) -> nn.Parameter:
    """Read the active values of a dense weight, and of its gradient; they train if it does."""
    at, active = mask.slots, len(mask.slots) > 0  # torch imports sympy to read a meta tensor
    values = layout.gather(weight.detach(), at) if active else torch.empty(0, layout.width)
    parameter = nn.Parameter(values, weight.requires_grad)
    if weight.grad is not None:
        parameter.grad = layout.gather(weight.grad, at)
    return parameter


def inherit(parameter: nn.Parameter, old: nn.Parameter, *, shared: bool = True) -> None:
    """Hand on what a user hung on a parameter: attributes and hooks.

    Hooks are shared if the parameter takes the place of the old one, so that their handles stay
    valid, and are not if it stands beside it.
    """
    own = ("masks", "joined", "_is_param")  # of Values, which say what they themselves are
    vars(parameter).update({name: it for name, it in vars(old).items() if name not in own})
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        hooks = getattr(old, name)
        if hooks is not None:
            setattr(parameter, name, hooks if shared else OrderedDict(hooks))


def autocast(
    tensors: tuple[Tensor, Tensor, Tensor | None], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast a product's operands as autocast does: all but those of double precision."""
    x, values, bias = (
        it if it is None or it.dtype == torch.float64 else it.to(dtype) for it in tensors
    )
    assert x is not None
    assert values is not None
    return x, values, bias
