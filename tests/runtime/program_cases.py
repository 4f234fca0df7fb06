"""Small programs."""

import numpy as np

from mest_fed.runtime.build import Builder
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.program import Program
from mest_fed.runtime.updates import SGD, with_updates


def linear_step() -> Program:
    """A linear classifier of 3 features and 2 classes, 4 examples, SGD with momentum."""
    builder = Builder()
    inputs = {
        "x": builder.buffer("input", (4, 3), role="input"),
        "w": builder.buffer("w", (2, 3), role="parameter"),
    }
    (logits,) = builder.operator("linear", inputs, {}, "logits")
    builder.role(logits, "output")
    forward = builder.end_phase(0).program()
    gradients = with_gradients(with_loss(forward, "logits"))
    return with_updates(gradients, SGD(momentum=0.9))


def random_forward(seed: int) -> Program:
    """Elementwise operators on buffers of one size, which are used once or several times."""
    rng, builder = np.random.default_rng(seed), Builder()
    made = [builder.buffer("input", (3, 4), role="input")]
    made += [builder.buffer(f"p{i}", (3, 4), role="parameter") for i in range(2)]
    for _ in range(rng.integers(3, 10)):
        name = str(rng.choice(["relu", "silu", "add", "multiply", "reshape"]))
        chosen = [int(rng.choice(made)) for _ in range(2)]
        if name in ("add", "multiply"):
            shape = builder.buffers[chosen[0]].shape
            chosen[1] = next(it for it in reversed(made) if builder.buffers[it].shape == shape)
            made += builder.operator(name, {"a": chosen[0], "b": chosen[1]}, {})
        elif name == "reshape":
            shape = (4, 3) if builder.buffers[chosen[0]].shape == (3, 4) else (3, 4)
            made += builder.operator(name, {"x": chosen[0]}, {"y": shape})
        else:
            made += builder.operator(name, {"x": chosen[0]}, {})
    last = made[-1]
    weight = builder.buffer("w", (5, builder.buffers[last].shape[1]), role="parameter")
    (logits,) = builder.operator("linear", {"x": last, "w": weight}, {}, "logits")
    builder.role(logits, "output")
    return builder.end_phase(0).program()
