"""The sparse layers that stand for torch's, and how they compute.

A 1-D convolution is computed as a 2-D one of height 1, whose weight has the same memory.
"""

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mest_fed.kernels import ConvGeometry, How, SparseProduct, SparseWeight, choose, scatter
from mest_fed.kernels.choice import EVERYTHING_DENSE
from mest_fed.kernels.functions import backward, forward
from mest_fed.kernels.reference import dense_forward
from mest_fed.nn.identity import plain_tensors, transformed
from mest_fed.nn.layers import Plain, SparseLayer
from mest_fed.sparsity import Layout, Mask


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


class ProductLayer(SparseLayer):
    """A layer that multiplies its input by its weight."""

    @property
    def product_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, as kernels take it."""
        return self.layout.shape

    def product_weight(self) -> SparseWeight:
        """Return the weight without its values, as kernels take it."""
        if not torch.compiler.is_compiling():
            self._check_slots_are_unedited()
        slots = self.slots  # a backward pass must see the mask of its forward pass
        hook = self._keep_gradient if self.keep_dense_gradient else None
        layout = self.layout
        return SparseWeight(
            self.product_shape, slots, layout.storage, lambda: layout.positions(slots), hook
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
            weight = self.product_weight()
            given: tuple[Tensor, Tensor, Tensor | None] = (x, self.values, self.bias)
            device = "cpu" if x.is_meta else x.device.type
            if torch.is_autocast_enabled(device):
                given = autocast(given, torch.get_autocast_dtype(device))
            if transformed():
                dense = scatter(given[1], weight.positions(), weight.shape)
                return dense_forward(given[0], dense, given[2], geometry)
            how = self._how(given[0], weight, geometry)
            y: Tensor = SparseProduct.apply(*given, weight, how)  # type: ignore[no-untyped-call]
        return y

    def _keep_gradient(self, gradient: Tensor) -> None:
        if not _is_wanted(self.values):
            return
        # Micro-batches add up, as they do in values.grad, whatever type autocast computes in.
        gradient = gradient.detach().to(self.values.dtype).view(self.layout.shape)
        kept = self.dense_gradient
        self.dense_gradient = gradient if kept is None else kept + gradient


class _Convolution(ProductLayer):
    added = (*SparseLayer.added, "geometry")
    geometry: ConvGeometry
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    def _compact(self, layout: Layout, mask: Mask, values: nn.Parameter) -> None:
        if isinstance(self.padding, str):
            raise ValueError(f"padding = {self.padding!r} by name is not supported, use numbers")
        super()._compact(layout, mask, values)
        self.geometry = ConvGeometry(
            _pair(1, self.stride), _pair(0, self.padding), _pair(1, self.dilation)
        )


class SparseConv2d(_Convolution):
    """2-D convolution with a sparse weight; see :class:`SparseLayer`."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape (n, in, h, w) or (in, h, w)."""
        if x.dim() == 3:
            return self._product(x.unsqueeze(0), self.geometry).squeeze(0)
        return self._product(x, self.geometry)

    def into(self, x: Tensor, y: Tensor) -> Tensor:
        """Convolve ``x`` into ``y``, unseen by autograd."""
        with plain_tensors():
            weight = self.product_weight()
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
            weight = self.product_weight()
            how = self._how(x, weight, self.geometry)
            values, wanted = self.values.detach(), (into is not None, self.values.requires_grad)
            gradient = backward(grad, x, values, weight, how, wanted=wanted, into=into)[1]
        return self.values, gradient


class SparseConv1d(_Convolution):
    """1-D convolution with a sparse weight; see :class:`SparseLayer`."""

    @property
    def product_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight as that of a 2-D convolution of height 1."""
        out_channels, in_channels, taps = self.layout.shape
        return out_channels, in_channels, 1, taps

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape (n, in, length) or (in, length)."""
        if x.dim() == 2:
            return self._product(x[None, :, None], self.geometry)[0, :, 0]
        if x.dim() != 3:
            raise RuntimeError(f"expected an input of 2 or 3 dimensions, not of {tuple(x.shape)}")
        return self._product(x.unsqueeze(2), self.geometry).squeeze(2)


class SparseLinear(ProductLayer):
    """Linear map with a sparse weight; see :class:`SparseLayer`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape (..., in)."""
        y = self._product(x.reshape(-1, x.shape[-1]), ConvGeometry())
        return y.view(*x.shape[:-1], self.layout.shape[0])


#: Dense class -> the sparse one that stands for it. A subclass may compute something else.
SPARSE_CLASSES: dict[type[Plain], type[SparseLayer]] = {
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.Linear: SparseLinear,
    NonDynamicallyQuantizableLinear: SparseLinear,  # which attention has at its end
}


def _pair(across: int, sides: tuple[int, ...]) -> tuple[int, int]:
    """Give a 1-D convolution's stride, padding or dilation a value for the height of 1."""
    height, width = (across, *sides)[-2:]
    return height, width


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
