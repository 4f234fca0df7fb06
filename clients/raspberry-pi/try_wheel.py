"""Tries an installed mest-fed without torch: trains a small program, and writes what came out.

``python try_wheel.py FILE`` writes numbers into FILE; ``python try_wheel.py FILE OTHER`` compares
them with those of another machine, too. Machines add up in another order and fuse other
multiply-adds, so that they agree within rounding alone.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np

from mest_fed.runtime.build import Builder
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.native_table import module
from mest_fed.runtime.passes.planes import with_planes
from mest_fed.runtime.step import CompiledStep
from mest_fed.runtime.updates import SGD, with_updates

STEPS, BATCH, PIXELS, CLASSES, RATE = 20, 8, 6, 3, 0.1
#: Differences that rounding makes of so many steps, as a share of the largest number.
ALLOWED = 1e-4


def step_of():
    """Return a step of a convolution, a rectifier and a classifier, with first weights."""
    builder, rng = Builder(), np.random.default_rng(0)
    x = builder.buffer("input", (BATCH, 2, PIXELS, PIXELS), role="input")
    kernel = builder.buffer("kernel", (4, 2, 3, 3), role="parameter")
    how = {"stride": (1, 1), "padding": (1, 1), "groups": 1}
    shape = (BATCH, 4, PIXELS, PIXELS)
    (y,) = builder.operator("conv2d", {"x": x, "w": kernel}, {"y": shape}, **how)
    (y,) = builder.operator("relu", {"x": y}, {"y": shape})
    (y,) = builder.operator("reshape", {"x": y}, {"y": (BATCH, 4 * PIXELS * PIXELS)})
    weight = builder.buffer("weight", (CLASSES, 4 * PIXELS * PIXELS), role="parameter")
    (logits,) = builder.operator("linear", {"x": y, "w": weight}, {}, "logits")
    builder.role(logits, "output")
    forward = builder.end_phase(0).program()
    program = with_updates(with_gradients(with_loss(forward, "logits")), SGD(momentum=0.9))
    step = CompiledStep(with_planes(program).checked())
    for name in ("kernel", "weight"):
        step.load(name, 0.1 * rng.standard_normal(step.arrays[name].shape, np.float32))
    return step


def trained():
    """Return the losses of some steps, and the weights after them."""
    step, rng = step_of(), np.random.default_rng(1)
    x = rng.standard_normal((BATCH, 2, PIXELS, PIXELS), np.float32)
    targets = rng.integers(0, CLASSES, BATCH)
    losses = [step.step(x, targets, RATE) for _ in range(STEPS)]
    weights = {name: step.arrays[name].ravel().tolist() for name in ("kernel", "weight")}
    return {"losses": losses, **weights}


def main(arguments):
    """Train, write, and compare."""
    found = trained()
    said = f"{platform.machine()}, Python {platform.python_version()}, {module().variant()}"
    print(f"{said}: loss {found['losses'][0]:.6f} -> {found['losses'][-1]:.6f}")
    if "torch" in sys.modules or not found["losses"][-1] < found["losses"][0] / 2:
        sys.exit("torch was imported, or nothing was learned")
    Path(arguments[0]).write_text(json.dumps(found))
    for other in arguments[1:]:
        theirs = json.loads(Path(other).read_text())
        for name, values in found.items():
            mine, other_values = np.array(values), np.array(theirs[name])
            share = np.abs(mine - other_values).max() / np.abs(other_values).max()
            print(f"{name}: largest difference {share:.1e} of the largest number")
            if not share < ALLOWED:
                sys.exit(f"{name}: more than rounding makes")


if __name__ == "__main__":
    main(sys.argv[1:])
