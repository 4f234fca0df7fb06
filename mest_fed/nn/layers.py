"""Sparse layers: compact values and an index, never a dense weight.

A dense layer becomes a sparse one, and a sparse one dense again, by a change of its class, as
``torch.nn.utils.parametrize`` does: the module stays the same object, so that hooks, names,
attributes of a user's and every reference to it stay valid.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mest_fed.errors import InputError
from mest_fed.kernels import Choice
from mest_fed.kernels.choice import Choices
from mest_fed.nn.computed import DenseWeight, make_permanent
from mest_fed.nn.distributed import refuse_new_shape, running
from mest_fed.nn.identity import Values, active_values, digest_of, inherit, plain_tensors
from mest_fed.nn.optimizer_state import HasState, carry_state, trainer_of
from mest_fed.nn.slots import gathered, scattered
from mest_fed.nn.stored import SLOTS, VALUES, StoredInState, check_slots
from mest_fed.sparsity import Layout, Mask, carry

Plain = nn.Conv1d | nn.Conv2d | nn.Linear


_EVERY_MODULE_HAS = frozenset(dir(nn.Module))


class SparseLayer(StoredInState):
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

    #: The dense class that the layer stands for, and is again after :meth:`restore`.
    dense_class: type[Plain]
    #: Attributes that the dense layer has not.
    added: ClassVar[tuple[str, ...]] = (
        *("layout", "target", "keep_dense_gradient", "dense_gradient", "choice", "dense_class"),
        *("choices", "_seen", "_stored"),
    )

    def __init__(self, layout: Layout, mask: Mask, dense: Plain) -> None:
        super().__init__()
        self.dense_class = type(dense)
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
        dense_class = type(dense)
        inherit(values, dense.get_parameter("weight"))
        layer.__class__ = cls
        layer.dense_class = dense_class
        layer._compact(layout, mask, values)
        sparse: Self = layer
        return sparse

    @classmethod
    def names(cls) -> set[str]:
        """Return the names of what the layer has and no other module has."""
        own = (name for name in dir(cls) if name not in _EVERY_MODULE_HAS)
        return {*cls.added, "values", "slots", *own}

    def _compact(self, layout: Layout, mask: Mask, values: nn.Parameter) -> None:
        self._exchange("weight", "values", values)
        slots = torch.from_numpy(mask.slots.copy())
        self.register_buffer("slots", slots.to(values.device))
        self.layout = layout
        self.target = len(mask)
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

    def restore(self, weights: dict[tuple[Any, ...], nn.Parameter] | None = None) -> None:
        """Turn the layer into the plain dense one; it stays the same object.

        Parameters
        ----------
        weights : dict, optional
            Weights of layers that were restored before, and of this one afterwards: layers that
            share values and mask share a weight.
        """
        make_permanent(self)
        values, weights = self.values, {} if weights is None else weights
        shared = id(values), self.layout, digest_of(self.layout, self.slots)
        weight = weights.get(shared)
        if weight is None:
            weight = nn.Parameter(self.dense_weight(), values.requires_grad)
            inherit(weight, values)
            weights[shared] = weight
        self._exchange("values", "weight", weight)
        del self.slots
        dense_class = self.dense_class
        for name in self.added:
            delattr(self, name)
        plain: Any = self
        plain.__class__ = dense_class

    def to_dense(self) -> Plain:
        """Return a plain copy with the same weight."""
        plain: Any = copy.deepcopy(self)
        plain.restore()
        dense: Plain = plain
        return dense

    @torch.no_grad()
    def read_weight(self, weight: Tensor) -> None:
        """Take the values of a dense weight where the mask is active."""
        self.values.detach().copy_(gathered(self.layout, weight.detach(), self.slots))

    def reset_parameters(self) -> None:
        """Draw values and bias as the dense layer draws weight and bias; the mask stays."""
        plain = self.to_dense()
        plain.reset_parameters()
        self.read_weight(plain.weight)
        if self.bias is not None and plain.bias is not None:
            self.bias.detach().copy_(plain.bias.detach())

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

        For code that reads ``layer.weight`` of any layer. It is no parameter, and refuses to be
        written: change ``values``.
        """
        with plain_tensors():
            weight = scattered(self.layout, self.values, self.slots)
            return weight if torch.compiler.is_compiling() else weight.as_subclass(DenseWeight)

    @property
    def mask(self) -> Mask:
        """The mask; replace it with :meth:`replace_mask`."""
        self._check_slots_are_unedited()
        return Mask(self.layout, self.slots.cpu().numpy())

    @property
    def active_weights(self) -> int:
        """Number of active weights; on the meta device, of granules of average size."""
        layout = self.layout
        if not self.slots.is_meta:
            return layout.active_weights(self.slots)
        each = min(layout.width, layout.num_weights / layout.num_granules)
        return round(len(self.slots) * each)

    def replace_mask(self, mask: Mask, optimizer: HasState | None = None) -> None:
        """Give the layer another mask: kept values stay, new ones start at zero.

        The optimizer's state of the values (momentum) is edited with them, in place, so that new
        values have none; without an ``optimizer``, that of the torch optimizer that took the last
        step. Gradients of the old mask are dropped.

        Raises
        ------
        InputError
            If the slots are no mask of the layout, or the optimizer keeps what cannot be edited.
            Layer and optimizer then stay as they are.
        """
        slots = torch.from_numpy(mask.slots)
        self._check(slots, None)
        with plain_tensors():
            device, old = self.values.device, self.values.detach()
            rows = torch.from_numpy(mask.rows_in(self.mask)).to(device)
            with self._carrying(rows, optimizer):
                self._set(slots.to(device), carry(old, rows))

    @contextmanager
    def _carrying(self, rows: Tensor, optimizer: HasState | None) -> Iterator[None]:
        """Edit an optimizer's state for rows of values that are about to change."""
        optimizer = trainer_of(self.values) if optimizer is None else optimizer
        state = {} if optimizer is None else carry_state(optimizer, self.values, rows)
        yield
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
        with plain_tensors(), ExitStack() as stack:
            if self.has_mask(slots):
                self._set_values(values)
                self.target = len(slots) if target is None else target
                return
            kept = values.shape != self.values.shape  # else they are copied into the old ones
            new = slots.to(device, torch.int32, copy=True)
            if trainer_of(self.values) is not None and not torch.equal(new, self.slots):
                held = Mask(self.layout, self.slots.cpu().numpy())
                rows = torch.from_numpy(Mask(self.layout, new.cpu().numpy()).rows_in(held))
                stack.enter_context(self._carrying(rows.to(device), None))
            self._set(new, values.to(device, dtype, copy=kept))
        self.target = len(slots) if target is None else target

    def has_mask(self, slots: Tensor) -> bool:
        """Say whether slots are those that the layer has, unedited: they need no check again."""
        seen, version = self._seen
        unedited = self.slots is seen and seen._version == version and not seen.is_meta
        alike = slots.device == seen.device and slots.dtype == seen.dtype
        return unedited and alike and torch.equal(slots, seen)

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
            self._set_values(values)
        else:
            refuse_new_shape([self.values])
            # While a loss of the old shape is alive, autograd holds new gradients to that shape;
            # a change of type makes it forget.
            self.values.data = values.new_empty(0, dtype=torch.complex64)
            self.values.data = values
            self.values.grad = None
        self.slots = slots

    def _set_values(self, values: Tensor) -> None:
        """Copy values of the present shape in; gradients are dropped."""
        # In place: autograd keeps the node that DistributedDataParallel has its hooks on.
        self.values.detach().copy_(values)
        self.values.grad = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; values know the slots that were set last.

        Raises
        ------
        InputError
            If it is the weight, which is computed.
        """
        if name == "weight" and VALUES in vars(self).get("_parameters", ()):
            raise InputError(
                "the weight of a sparse layer is computed from its values and cannot be set; "
                "allowed: to change layer.values, or layer.read_weight(weight)"
            )
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
            return scattered(self.layout, self.values.detach(), self.slots)

    def extra_repr(self) -> str:
        """Describe the layer for ``print(model)``."""
        name = type(self.layout).__name__.lower()
        return f"{self.layout.shape}, {name}, density={self.mask.density:.3f}"
