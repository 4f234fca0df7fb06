"""Specifications and random states for the tests of the wire."""

import numpy as np
import torch

from mest_fed.rng import numpy_generator
from mest_fed.sparsity import layout_for
from mest_fed.sparsity.schemes import Channel
from mest_fed.sparsity.state import ModelSpec, SparseState

SHAPES = ((6, 4, 3, 3), (5, 3, 3, 3), (7, 10))  # blocks of 4 divide none of them
DENSE = {"stem.weight": (3, 2, 3, 3), "bn.running_var": (3,), "scale": ()}
SCHEMES = ("unstructured", "block", "block:3", "pattern", "channel", "pair", "dense")


def spec_for(scheme, shapes=SHAPES):
    if scheme == "dense":
        return ModelSpec({}, {}, DENSE)
    if scheme == "pair":
        layouts = {"a": Channel((6, 4, 3, 3)), "b": Channel((5, 6, 3, 3), axis="in")}
        return ModelSpec({"a": ("a", "b")}, layouts, DENSE)
    layouts = {f"layer{i}": layout_for(scheme, shape) for i, shape in enumerate(shapes)}
    return ModelSpec({name: (name,) for name in layouts}, layouts, DENSE)


def random_slots(layout, density, rng):
    count = min(layout.num_granules, max(1, round(density * layout.num_granules)))
    granules = np.sort(rng.choice(layout.num_granules, count, replace=False))
    return (granules * layout.variants + rng.integers(layout.variants, size=count)).astype(np.int32)


def random_masks(spec, density, seed):
    rng = numpy_generator(seed, "masks")
    return {g: random_slots(spec.group_layout(g), density, rng) for g in spec.groups}


def moved_masks(masks, spec, seed):
    """Let some granules of each mask die and as many others active."""
    rng = numpy_generator(seed, "moved")
    moved = {}
    for group, slots in masks.items():
        layout = spec.group_layout(group)
        inactive = np.setdiff1d(np.arange(layout.num_granules), slots // layout.variants)
        count = min(len(inactive), len(slots) // 5)
        kept = rng.choice(slots, len(slots) - count, replace=False)
        grown = rng.choice(inactive, count, replace=False) * layout.variants
        moved[group] = np.sort(np.concatenate([kept, grown])).astype(np.int32)
    return moved


def random_values(spec, masks, seed, spread=1.0):
    rng = numpy_generator(seed, "values")
    values = {}
    for group, layers in spec.groups.items():
        for layer in layers:
            layout = spec.layouts[layer]
            drawn = rng.normal(0, spread, (len(masks[group]), layout.width)).astype(np.float32)
            drawn[padding(layout, masks[group])] = 0
            values[layer] = drawn
    return values


def random_state(spec, density=0.3, seed=0, masks=None):
    masks = random_masks(spec, density, seed) if masks is None else masks
    rng = numpy_generator(seed, "dense")
    dense = {n: np.asarray(rng.normal(size=s), np.float32) for n, s in spec.dense.items()}
    return SparseState(masks, random_values(spec, masks, seed), dense)


def padding(layout, slots):
    return (layout.positions(torch.tensor(slots)) == layout.num_weights).numpy()


def assert_same(got, want, tolerance=0.0, reference=None):
    """Compare two states: masks exactly, values to a share of each tensor's largest magnitude.

    A difference from a reference may be as large as both tensors' largest magnitudes together.
    """
    assert list(got.masks) == list(want.masks)
    for group, slots in want.masks.items():
        assert got.masks[group].dtype == np.int32
        np.testing.assert_array_equal(got.masks[group], slots)
    start = want if reference is None else reference
    pairs = (got.values, want.values, start.values), (got.dense, want.dense, start.dense)
    for ours, theirs, starts in pairs:
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            assert ours[name].dtype == np.float32
            assert ours[name].shape == array.shape
            largest = float(np.abs(array).max())
            if reference is not None:
                largest += float(np.abs(starts[name]).max())
            limit = tolerance * largest
            np.testing.assert_allclose(ours[name], array, rtol=0, atol=limit)


def with_what_is_owed(got, residual):
    """Return a state that was decoded plus what its message left out."""
    parts = {
        name: values + residual.values[name].reshape(values.shape)
        for name, values in (got.values | got.dense).items()
        if name in residual.values
    }
    values = {name: parts[name] for name in got.values}
    dense = {name: parts.get(name, values) for name, values in got.dense.items()}
    return SparseState(got.masks, values, dense)
