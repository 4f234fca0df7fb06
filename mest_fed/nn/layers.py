"""Sparse layers: compact values and an index, never a dense weight."""

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mest_fed.kernels import (
    Choice,
    ConvGeometry,
    How,
    SparseProduct,
    SparseWeight,
    choose,
)
from mest_fed.kernels.choice import EVERYTHING_DENSE
from mest_fed.kernels.functions import backward, forward
from mest_fed.sparsity import Layout, Mask, carry

Plain = TypeVar("Plain", nn.Conv2d, nn.Linear)


class HasState(Protocol):
    """What mutation needs of an optimizer: torch's all have it."""

    state: Any
    """Parameter -> its state by name, such as the momentum."""


class SparseLayer(nn.Module):
    """A weight held as live values and their slots.

    Parameters
    ----------
    layout : Layout
        How the weight is cut.
    mask : Mask
        Which slots live; of a layout with the same granules.
    dense : Tensor
        Dense weight from which the live values are read.
    bias : Tensor or None
        Dense bias.

    Attributes
    ----------
    values : Parameter
        Shape ``(live, width)``.
    slots : Tensor
        int32, shape ``(live,)``, increasing. A buffer.
    dense_gradient : Tensor or None
        Set by a backward pass while ``keep_dense_gradient`` is true (RigL); else None.
    """

    slots: Tensor

    def __init__(self, layout: Layout, mask: Mask, dense: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layout = layout
        live = len(mask.slots) > 0  # torch imports sympy to read a tensor on the meta device
        values = layout.gather(dense.detach(), mask.slots) if live else torch.empty(0, layout.width)
        self.values = nn.Parameter(values)
        self.register_buffer("slots", mask.slots.clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.keep_dense_gradient = False
        self.dense_gradient: Tensor | None = None
        #: Which implementations the last forward pass chose; see mest_fed.kernels.choice.
        self.choice: Choice | None = None
        #: Name of the layer whose mask this one shares; see mest_fed.nn.groups.
        self.mask_of: str | None = None

    @property
    def mask(self) -> Mask:
        """The mask; replace it with :meth:`replace_mask`."""
        return Mask(self.layout, self.slots)

    def replace_mask(self, mask: Mask, optimizer: HasState | None = None) -> None:
        """Give the layer another mask: kept values stay, new ones start at zero.

        The optimizer's state of the values (momentum) is edited with them, in place, so that new
        values have none. Gradients of the old mask are dropped.
        """
        rows = mask.rows_in(self.mask)
        old = self.values.data
        self._set(mask.slots, carry(old, rows))
        if optimizer is not None:
            state = optimizer.state.get(self.values, {})
            for key, entry in state.items():
                if isinstance(entry, Tensor) and entry.shape == old.shape:
                    state[key] = carry(entry, rows)

    def load(self, slots: Tensor, values: Tensor) -> None:
        """Copy slots and values of shape ``(live,)`` and ``(live, width)`` in."""
        device, dtype = self.values.device, self.values.dtype
        self._set(slots.to(device, torch.int32, copy=True), values.to(device, dtype, copy=True))

    def _set(self, slots: Tensor, values: Tensor) -> None:
        self.slots = slots
        self.values.grad = None
        # While a loss of the old shape is alive, autograd holds new gradients to that shape; a
        # change of type makes it forget.
        self.values.data = values.new_empty(0, dtype=torch.complex64)
        self.values.data = values

    def dense_weight(self) -> Tensor:
        """Build the dense weight."""
        return self.layout.scatter(self.values.detach(), self.slots)

    def _weight(self) -> SparseWeight:
        slots = self.slots  # a backward pass must see the mask of its forward pass
        hook = self._keep_gradient if self.keep_dense_gradient else None
        layout = self.layout
        return SparseWeight(layout.shape, slots, layout.cut, lambda: layout.positions(slots), hook)

    def _how(self, x: Tensor, weight: SparseWeight, geometry: ConvGeometry) -> How:
        """Choose the implementations for an input, and note the choice."""
        # Meta tensors stand for the CPU's: whoever traces a model wants what will really run.
        on_cpu = x.device.type in ("cpu", "meta")
        if on_cpu and x.dtype == self.values.dtype == torch.float32:
            size = (x.shape[2], x.shape[3]) if x.dim() == 4 else (1, 1)
            self.choice = choose(weight, size, geometry)
        else:
            self.choice = EVERYTHING_DENSE
        return How(geometry, self.choice)

    def _product(self, x: Tensor, geometry: ConvGeometry) -> Tensor:
        """Multiply by the weight and add the bias, with the implementation chosen for the case."""
        weight = self._weight()
        how = self._how(x, weight, geometry)
        y: Tensor = SparseProduct.apply(  # type: ignore[no-untyped-call]
            x, self.values, self.bias, weight, how
        )
        return y

    def _keep_gradient(self, gradient: Tensor) -> None:
        # Micro-batches add up, as they do in values.grad.
        kept = self.dense_gradient
        self.dense_gradient = gradient.detach() if kept is None else kept + gradient.detach()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The number of live granules differs between checkpoints, so resize before copying.
        # Another scheme's width stays as it is: load_state_dict then reports the mismatch.
        slots, values = state_dict.get(prefix + "slots"), state_dict.get(prefix + "values")
        if slots is not None and values is not None and values.shape[1:] == self.values.shape[1:]:
            self.load(slots, values)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Describe the layer for ``print(model)``."""
        name = type(self.layout).__name__.lower()
        return f"{self.layout.shape}, {name}, density={self.mask.density:.3f}"


class SparseConv2d(SparseLayer):
    """2-D convolution with a sparse weight; see :class:`SparseLayer`."""

    def __init__(self, layout: Layout, mask: Mask, conv: nn.Conv2d) -> None:
        super().__init__(layout, mask, conv.weight, conv.bias)
        if isinstance(conv.padding, str):
            raise ValueError(f"padding = {conv.padding!r} by name is not supported, use numbers")
        height, width = conv.padding
        self.geometry = ConvGeometry(
            (conv.stride[0], conv.stride[1]),
            (height, width),
            (conv.dilation[0], conv.dilation[1]),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape (n, in, h, w)."""
        return self._product(x, self.geometry)

    def into(self, x: Tensor, y: Tensor) -> Tensor:
        """Convolve ``x`` into ``y``, unseen by autograd."""
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
        weight = self._weight()
        how = self._how(x, weight, self.geometry)
        wanted = (into is not None, self.values.requires_grad)
        gradient = backward(grad, x, self.values.detach(), weight, how, wanted=wanted, into=into)[1]
        return self.values, gradient

    def to_dense(self) -> nn.Conv2d:
        """Return a plain ``nn.Conv2d`` with the same weight."""
        out_channels, in_channels, *kernel = self.layout.shape
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            (kernel[0], kernel[1]),
            stride=self.geometry.stride,
            padding=self.geometry.padding,
            dilation=self.geometry.dilation,
            bias=self.bias is not None,
            device="meta",  # draws nothing from the global generator
        )
        return _fill(conv, self)


class SparseLinear(SparseLayer):
    """Linear map with a sparse weight; see :class:`SparseLayer`."""

    def __init__(self, layout: Layout, mask: Mask, linear: nn.Linear) -> None:
        super().__init__(layout, mask, linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape (..., in)."""
        y = self._product(x.reshape(-1, x.shape[-1]), ConvGeometry())
        return y.view(*x.shape[:-1], self.layout.shape[0])

    def to_dense(self) -> nn.Linear:
        """Return a plain ``nn.Linear`` with the same weight."""
        out_features, in_features = self.layout.shape
        linear = nn.Linear(in_features, out_features, self.bias is not None, device="meta")
        return _fill(linear, self)


def _fill(plain: Plain, layer: SparseLayer) -> Plain:
    plain.weight = nn.Parameter(layer.dense_weight())
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    return plain
