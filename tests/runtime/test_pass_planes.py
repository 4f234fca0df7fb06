"""Layouts that the pass chooses: which buffers are planes, and that the meaning stays."""

import numpy as np
import pytest
from step_cases import BATCH, STEPS, dtype_of, inputs_of, model_of

from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.build import Builder
from mest_fed.runtime.passes.planes import with_planes
from mest_fed.runtime.reference import Reference
from mest_fed.training.step_program import PASSES, step_program
from mest_fed.training.tasks import Classification

#: All other passes.
BEFORE = [it for it in PASSES if it != "planes"]
CONV = {"stride": (1, 1), "padding": (1, 1), "groups": 1}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_a_model_means_the_same(name):
    """Copies are exact, so that all bits are equal; buffers share memory as the arena says."""
    shape, options, sparsity = STEPS[name]
    model = model_of(name, shape, options, sparsity)
    inputs = (BATCH, *shape), dtype_of(shape)
    program, captured = step_program(model, inputs, Classification(), OptimizerSettings(), BEFORE)
    laid = with_planes(program)
    held = []
    for one in (program, laid):
        held.append(Reference(one, captured.arrays(), arena=plan_arena(one)))
        held[-1].step(inputs_of(shape))
    for number in program.of_role("parameter", "state", "output"):
        buffer = program.buffers[number].name
        np.testing.assert_array_equal(held[1].read(buffer), held[0].read(buffer))
    assert any(it.margin for it in laid.buffers) == (name in PLANES)


#: Models with convolutions that planes serve: not those of cnn2, which are fused with pooling, and
#: not those of har1d, whose planes are views.
PLANES = {it for it in STEPS if not it.startswith(("cnn2", "mlp", "har1d", "transformer", "lstm"))}


def test_a_residual_network_is_on_planes_but_for_its_ends():
    shape, options, sparsity = STEPS["resnet32"]
    model = model_of("resnet32", shape, options, sparsity)
    inputs = (BATCH, *shape), dtype_of(shape)
    program, _ = step_program(model, inputs, Classification(), OptimizerSettings(), BEFORE)
    laid = with_planes(program)
    copies = [it for it in laid.operators if it.name == "copy"]
    assert [laid.buffers[number].name for number in copies[0].inputs] == ["input"]
    assert len(copies) == 1
    other = [it for it in laid.buffers if len(it.shape) == 4 and not it.margin]
    weights = {(3, 3), (1, 1)}
    assert all(it.role != "temporary" or it.shape[2:] in weights for it in other)


class Network:
    """Operators by name, each on what the one before gave."""

    def __init__(self):
        self.builder = Builder()

    def put(self, name, x, label, **attributes):
        inputs = {"x": x}
        if name == "conv2d":
            kernel, groups = attributes.pop("kernel", (3, 3)), attributes.get("groups", 1)
            shape = (4, 4 // groups, *kernel)
            inputs["w"] = self.builder.buffer(f"w:{label}", shape, role="parameter")
            attributes = {**CONV, **attributes}
        outputs = {"y": attributes.pop("shape")} if name == "reshape" else {}
        return self.builder.operator(name, inputs, outputs, label, **attributes)[0]

    def done(self, output):
        self.builder.role(output, "output")
        program = self.builder.end_phase(0).program()
        laid = with_planes(program)
        rng = np.random.default_rng(0)
        values = {
            it.name: rng.normal(size=it.shape) for it in program.buffers if it.role != "temporary"
        }
        found = []
        for one in (program, laid):
            reference = Reference(one, values, "float64")
            reference.step(values)
            found.append(reference.read(program.buffers[output].name))
        np.testing.assert_array_equal(found[0], found[1])
        return laid


def margins(program):
    return {it.name: it.margin for it in program.buffers if it.margin}


def start():
    network = Network()
    return network, network.builder.buffer("x", (2, 4, 6, 6), role="input")


def test_twins_on_both_sides():
    """The second convolution's input is viewed too, and the last one writes the output."""
    network, x = start()
    a = network.put("conv2d", x, "a")
    b = network.put("relu", a, "b")
    c = network.put("conv2d", b, "c")
    network.put("reshape", b, "view", shape=(2, 144))
    laid = network.done(network.put("conv2d", network.put("relu", c, "d"), "e"))
    assert margins(laid) == dict.fromkeys(["a", "c", "d", "x:planes", "b:planes", "e:planes"], 1)
    names = [laid.buffers[it.outputs[0]].name for it in laid.operators]
    wanted = ["x:planes", "a", "b:planes", "b", "c", "view", "d", "e:planes", "e"]
    assert names == wanted
    assert laid.phases == (9, 0, 0)


def test_copies_that_would_be_most_of_it_are_left_out():
    network, x = start()
    laid = network.done(network.put("conv2d", x, "y"))
    assert margins(laid) == {}
    assert "copy" not in {it.name for it in laid.operators}


@pytest.mark.parametrize(
    ("how", "fits"),
    [
        ({"kernel": (5, 5), "padding": (2, 2)}, 2),
        ({"kernel": (1, 3), "padding": (0, 1)}, 1),
        ({"kernel": (1, 1), "padding": (0, 0)}, 1),
        ({"stride": (2, 2)}, 1),
        ({"kernel": (1, 1), "padding": (0, 0), "stride": (2, 2)}, 1),
        ({"kernel": (7, 7), "padding": (3, 3)}, 0),
        ({"padding": (0, 0)}, 0),
        ({"stride": (2, 1)}, 0),
        ({"groups": 2}, 0),
    ],
)
def test_convolutions_that_planes_serve(how, fits):
    """Around them is what follows the layout; the margin is that of the largest padding."""
    network, x = start()
    a = network.put("silu", network.put("relu", x, "a"), "b")
    c = network.put("relu", network.put("conv2d", a, "c", **how), "d")
    laid = network.done(network.put("reshape", c, "y", shape=(2, size_of(how))))
    assert margins(laid) == ({} if not fits else dict.fromkeys(["a", "b", "c"], fits))


def size_of(how):
    """Values of an image that a convolution of this kind gives."""
    size = 4
    for axis in (0, 1):
        kernel, padding = how.get("kernel", (3, 3))[axis], how.get("padding", (1, 1))[axis]
        size *= (6 + 2 * padding - kernel) // how.get("stride", (1, 1))[axis] + 1
    return size


def test_a_sum_that_begins_in_c_order():
    """What a grouped convolution writes is added to in C order, and then read as planes."""
    network, x = start()
    first = network.put("conv2d", x, "sum", groups=2)
    network.builder.operator("accumulate", {"a": network.put("relu", x, "b")}, {"into": first})
    second = network.put("relu", network.put("conv2d", first, "c"), "d")
    laid = network.done(network.put("reshape", second, "y", shape=(2, 144)))
    assert margins(laid) == {"sum:planes": 1, "c": 1}
    assert [it.name for it in laid.operators][2:5] == ["accumulate", "copy", "conv2d"]
