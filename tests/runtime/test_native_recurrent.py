"""Recurrent layers of sizes that fill panels, blocks of rows and threads, against the reference."""

import numpy as np
import pytest
import torch
from native_cases import compute as run_native
from native_cases import near

from mest_fed.runtime.operators import OPERATORS
from mest_fed.runtime.reference import compute

GATES = {"lstm": (4, "cells"), "gru": (3, "candidate")}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("examples", "length", "hidden"), [(15, 4, 20), (1, 7, 33), (130, 2, 40)])
def test_a_layer_and_its_gradient(name, biased, examples, length, hidden):
    (gates, kept), rng = GATES[name], np.random.default_rng(hidden)
    width = gates * hidden
    arrays = {
        "x": rng.normal(size=(examples, length, width)),
        "u": rng.normal(size=(width, hidden)) / hidden**0.5,
        "dy": rng.normal(size=(examples, length, hidden)),
    }
    if biased:
        arrays["bias"] = rng.normal(size=width)
    arrays = {it: array.astype(np.float32).astype(np.float64) for it, array in arrays.items()}
    shapes = {"y": (examples, length, hidden), "gates": arrays["x"].shape}
    shapes[kept] = shapes["y"]
    arrays |= check(OPERATORS[name], arrays, shapes, {"gates": "x"})
    shapes = {"dx": arrays["x"].shape, "du": arrays["u"].shape}
    if biased:
        shapes["dbias"] = (width,)
    check(OPERATORS[f"{name}_gradient"], arrays, shapes, {"dx": "gates"})


def check(kind, arrays, shapes, over):
    """Compare outputs, apart and over an input, and return them in single precision."""
    given = {it: arrays[it] for it in kind.inputs if it in arrays}
    exact = compute(kind, {**given, **{it: np.zeros(shape) for it, shape in shapes.items()}})
    single = {it: torch.tensor(array, dtype=torch.float32) for it, array in given.items()}
    for place in ({}, over):
        found = run_native(kind.name, single, shapes, place)
        for name, array in exact.items():
            near(found[name], torch.from_numpy(array))
    return {it: array.astype(np.float32).astype(np.float64) for it, array in exact.items()}
