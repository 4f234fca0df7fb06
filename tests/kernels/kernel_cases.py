"""Sparse products, and the same products in float64 by torch's dense operators."""

import math
from dataclasses import dataclass

import torch

from mest_fed.kernels import (
    Channels,
    Choice,
    ConvGeometry,
    How,
    Kernels,
    SparseProduct,
    SparseWeight,
    Strips,
)

PLAIN = ConvGeometry()
UNIT = torch.finfo(torch.float32).eps / 2  # the relative error of one rounding
PLANES = ("padded", "shifted")


def every(name):
    """Choose one implementation for all three products."""
    return Choice(name, name, name)


def positions(storage, shape, slots):
    """List for each slot where its values stand in the flat weight, by the cuts' definitions."""
    columns, taps, total = math.prod(shape[1:]), math.prod(shape[2:]), math.prod(shape)

    def of(slot):
        if isinstance(storage, Strips):
            strip, column = divmod(slot, columns)
            rows = [strip * storage.rows + r for r in range(storage.rows)]
            return [row * columns + column if row < shape[0] else total for row in rows]
        if isinstance(storage, Kernels):
            kernel, variant = divmod(slot, len(storage.cells))
            return [kernel * taps + cell for cell in storage.cells[variant]]
        if storage.axis == "out":
            return list(range(slot * columns, (slot + 1) * columns))
        return [(o * shape[1] + slot) * taps + t for o in range(shape[0]) for t in range(taps)]

    width = len(of(0))
    return torch.tensor([of(slot) for slot in slots], dtype=torch.int64).view(-1, width)


@dataclass
class Case:
    """One product: float32 tensors, any strides."""

    x: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None
    weight: SparseWeight
    geometry: ConvGeometry
    upstream: torch.Tensor
    whole: bool  # small integers, so that float32 sums are exact

    def gradients(self, choice):
        """Return y, dx, dvalues and dbias as the sparse product computes them."""
        leaves = [self.x, self.values, *([] if self.bias is None else [self.bias])]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        bias = None if self.bias is None else leaves[2]
        y = SparseProduct.apply(leaves[0], leaves[1], bias, self.weight, How(self.geometry, choice))
        return [y.detach(), *torch.autograd.grad(y, leaves, self.upstream)]

    def expected(self, absolute=False):
        """Return the same in float64; of the absolute values, the sums' magnitudes."""

        def leaf(tensor):
            tensor = tensor.detach().double()
            return (tensor.abs() if absolute else tensor).requires_grad_()

        x, values = leaf(self.x), leaf(self.values)
        bias = None if self.bias is None else leaf(self.bias)
        shape = self.weight.shape
        flat = torch.zeros(math.prod(shape) + 1, dtype=torch.float64)
        at = positions(self.weight.storage, shape, self.weight.slots.tolist())
        dense = flat.index_put((at,), values)[:-1].view(shape)
        if len(shape) == 2:
            y = torch.nn.functional.linear(x, dense, bias)
        else:
            g = self.geometry
            y = torch.nn.functional.conv2d(x, dense, bias, g.stride, g.padding, g.dilation)
        upstream = self.upstream.double().abs() if absolute else self.upstream.double()
        leaves = [x, values, *([] if bias is None else [bias])]
        return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]

    def tolerances(self):
        """Return what float32 may be off by: n products, rounded and added in any order."""
        shape = self.weight.shape
        sums = math.prod(self.upstream.shape[2:]) * len(self.x)
        terms = [math.prod(shape[1:]) + 1, shape[0] * math.prod(shape[2:]), sums, sums]
        pairs = zip(terms, self.expected(absolute=True), strict=False)
        return [(n + 1) * UNIT * 1.001 * magnitude for n, magnitude in pairs]

    def check(self, got):
        """Compare what :meth:`gradients` returned with float64."""
        names = ("y", "dx", "dvalues", "dbias")
        for name, a, b, most in zip(names, got, self.expected(), self.tolerances(), strict=False):
            assert a.shape == b.shape, name
            assert a.dtype == torch.float32
            off = (a.double() - b).abs()
            assert bool((off <= (0 if self.whole else most)).all()), (name, off.max())


def _tensor(generator, shape, whole):
    if whole:
        return torch.randint(-4, 5, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


def restride(tensor, how):
    """Give a tensor of the same values and other strides."""
    if how == "strided":
        wide = torch.full((*tensor.shape, 2), torch.nan)
        wide[..., 0] = tensor
        return wide[..., 0]
    if how == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


@dataclass(frozen=True)
class Sizes:
    """Of a case without its numbers."""

    shape: tuple[int, ...]
    storage: Strips | Kernels | Channels
    size: tuple[int, ...]
    geometry: ConvGeometry = PLAIN

    @property
    def variants(self):
        """Return how many slots a granule has; one of them at most may be active."""
        return len(self.storage.cells) if isinstance(self.storage, Kernels) else 1

    @property
    def num_granules(self):
        """Return how many granules the weight has."""
        if isinstance(self.storage, Strips):
            return -(-self.shape[0] // self.storage.rows) * math.prod(self.shape[1:])
        if isinstance(self.storage, Kernels):
            return math.prod(self.shape[:2])
        return self.shape[0 if self.storage.axis == "out" else 1]

    def case(self, active, seed=0, bias=True, whole=False, strides=("", "", "")):
        """Draw ``active`` granules, and the numbers: values, input, bias and upstream gradient."""
        generator = torch.Generator().manual_seed(seed)
        granules = torch.randperm(self.num_granules, generator=generator)[:active].sort().values
        variants = torch.randint(self.variants, granules.shape, generator=generator)
        slots = (granules * self.variants + variants).to(torch.int32)
        at = positions(self.storage, self.shape, slots.tolist())
        weight = SparseWeight(self.shape, slots, self.storage, lambda: at)
        width = positions(self.storage, self.shape, [0]).shape[1]
        out = (self.size[0], self.shape[0])
        if len(self.shape) == 4:
            out += self.geometry.out_size(self.size[2:], self.shape[2:])
        shapes = (self.size, (len(slots), width), out)
        x, values, upstream = (
            restride(_tensor(generator, shape, whole), how)
            for shape, how in zip(shapes, strides, strict=True)
        )
        bias = _tensor(generator, (self.shape[0],), whole) if bias else None
        return Case(x, values, bias, weight, self.geometry, upstream, whole)
