"""What the native runtime refuses, and that it knows no torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from native_cases import Buffer, Operator, Program, compute, near, one

from mest_fed.errors import InputError
from mest_fed.runtime.native import Runtime, fitting

CONV = {"stride": (1, 1), "padding": (1, 1), "groups": 1}
POOL = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil": False}
SPARSE = {"stride": (1, 1), "padding": (1, 1), "weight_shape": (8, 3, 3, 3), "rows": 4}
X, W, Y = (2, 3, 6, 6), (8, 3, 3, 3), (2, 8, 6, 6)


def conv(x=X, w=W, y=Y, b=None, **how):
    return one("conv2d", {"x": x, "w": w, "b": b}, {"y": y}, **{**CONV, **how})


def sparse(active=2, rows=4, **how):
    given = {"x": X, "values": (active, rows), "slots": (active,)}
    return one("sparse_conv2d", given, {"y": Y}, **{**SPARSE, **how})


def changed(program, **fields):
    operator = program.operators[0]
    return Program(program.buffers, [Operator(**{**vars(operator), **fields})])


def typed(program, place, dtype):
    buffers = [Buffer(**vars(it)) for it in program.buffers]
    buffers[place].dtype = dtype
    return Program(buffers, program.operators)


def norm(groups=2, relu=True, y=(2, 4, 3), mean=(2, 2)):
    given = {"x": (2, 4, 3), "y": y, "mean": mean, "scale": (2, 2), "gamma": (4,), "dy": (2, 4, 3)}
    to = {"dx": (2, 4, 3), "dgamma": (4,), "dbeta": (4,)}
    return one("group_norm_gradient", given, to, groups=groups, relu=relu)


REFUSED = {
    "an unknown operator": changed(conv(), name="conv3d"),
    "too few arguments": changed(conv(), inputs=(0, 1)),
    "a buffer that is not there": changed(conv(), inputs=(0, 7, -1)),
    "an absent argument that is no optional one": changed(conv(), inputs=(0, -1, -1)),
    "an output that is an input": changed(conv(), outputs=(0,)),
    "a missing attribute": changed(conv(), attributes={"stride": (1, 1), "padding": (1, 1)}),
    "an unknown attribute": changed(conv(), attributes={**CONV, "dilation": 1}),
    "an attribute of another length": conv(stride=(1,)),
    "a stride of 0": conv(stride=(0, 1)),
    "a negative padding": conv(padding=(-1, 1)),
    "a number beyond 64 bits": conv(stride=(2**70, 1)),
    "another dtype": typed(conv(), 1, "int32"),
    "an unknown dtype": typed(conv(), 1, "float128"),
    "a dtype that no operator takes": typed(conv(), 1, "bfloat16"),
    "an empty buffer": conv(x=(0, 3, 6, 6), y=(0, 8, 6, 6)),
    "9 dimensions": one("relu", {"x": (1,) * 9}, {"y": (1,) * 9}),
    "a buffer of too many bytes": one("relu", {"x": (2**39,)}, {"y": (2**39,)}),
    "a size whose product overflows": one("relu", {"x": (2**31,) * 3}, {"y": (2**31,) * 3}),
    "channels that do not fit": conv(x=(2, 4, 6, 6)),
    "outputs of another size": conv(y=(2, 8, 6, 5)),
    "outputs of another batch": conv(y=(3, 8, 6, 6)),
    "a kernel larger than the plane": conv(x=(2, 3, 1, 1), y=(2, 8, 1, 1), padding=(0, 0)),
    "groups that are no divisor": conv(groups=3),
    "a bias of another length": conv(b=(7,)),
    "three dimensions": conv(x=(3, 6, 6)),
    "padding that takes too much memory": conv(
        y=(2, 8, 2**20 + 4, 2**20 + 4), padding=(2**19,) * 2
    ),
    "more slots than granules": sparse(active=55),
    "values of other rows": changed(sparse(), attributes={**SPARSE, "rows": 2}),
    "a sparse weight of another shape": sparse(weight_shape=(8, 3, 3, 2)),
    "rows of 0": changed(sparse(), attributes={**SPARSE, "rows": 0}),
    "groups of a norm that are no divisor": norm(groups=3),
    "statistics of another shape": norm(mean=(2, 4)),
    "a ReLU without its output": norm(y=None),
    "more axes than dimensions": one(
        "layer_norm",
        {"x": (2,), "gamma": (2,), "beta": (2,)},
        {"y": (2,), "mean": (), "scale": ()},
        axes=1,
        epsilon=0.0,
    ),
    "an epsilon that is no number": one(
        "layer_norm",
        {"x": (2, 2), "gamma": (2,), "beta": (2,)},
        {"y": (2, 2), "mean": (2,), "scale": (2,)},
        axes=1,
        epsilon=float("nan"),
    ),
    "a pool that pads more than half": one(
        "max_pool2d",
        {"x": (1, 1, 4, 4)},
        {"y": (1, 1, 4, 4), "where": (1, 1, 4, 4)},
        **{**POOL, "padding": (2, 2)},
    ),
    "a pool of 256 places": one(
        "max_pool2d",
        {"x": (1, 1, 16, 16)},
        {"y": (1, 1, 1, 1), "where": (1, 1, 1, 1)},
        **{**POOL, "kernel": (16, 16)},
    ),
    "a reshape to another size": one("reshape", {"x": (4,)}, {"y": (5,)}),
    "thirds of 4": one("split", {"x": (4,)}, {"a": (1,), "b": (1,), "c": (1,)}),
    "heads that are no divisor": one(
        "attention",
        {"q": (1, 2, 4), "k": (1, 2, 4), "v": (1, 2, 4)},
        {"y": (1, 2, 4), "weights": (1, 3, 2, 2)},
        heads=3,
        causal=False,
    ),
    "one value a channel": one(
        "batch_norm",
        {"x": (1, 2), "gamma": (2,), "beta": (2,), "running_mean": (2,), "running_variance": (2,)},
        {"y": (1, 2), "mean": (2,), "scale": (2,)},
        epsilon=0.1,
        momentum=0.1,
        relu=False,
    ),
    "targets of another shape": one(
        "cross_entropy",
        {"logits": (2, 3), "targets": (3,), "share": (1,)},
        {"loss": (), "probabilities": (2, 3)},
    ),
    "a table of another width": one("embedding", {"indices": (4,), "table": (5, 3)}, {"y": (4, 2)}),
    "positions beyond the table": one(
        "add_positions", {"x": (1, 4, 3), "table": (3, 3)}, {"y": (1, 4, 3)}
    ),
    "a momentum of another shape": one(
        "sgd",
        {"gradient": (3,), "rates": (1,), "parameter": (3,), "momentum_buffer": (2,)},
        {},
        weight_decay=0.0,
        momentum=0.9,
        nesterov=False,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_program_that_is_wrong(name):
    with pytest.raises(InputError) as refused:
        Runtime(REFUSED[name], {}, 0)
    text = str(refused.value)
    assert "\n" not in text
    assert "operators[0]" in text or "buffers[" in text or "'" in text or "64 bits" in text


@pytest.mark.parametrize(
    ("offset", "size"), [(64, 64), (2, 1024), (-5, 1024), (2**62, 1024), (2**70, 1024)]
)
def test_an_offset_that_is_wrong(offset, size):
    program = one("relu", {"x": (16,)}, {"y": (16,)})
    Runtime(program, {0: 0, 1: 64}, 128)
    with pytest.raises(InputError):
        Runtime(program, {0: 0, 1: offset}, size)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads_that_are_wrong(threads):
    with pytest.raises(InputError, match="threads"):
        Runtime(one("relu", {"x": (16,)}, {"y": (16,)}), {}, 0, threads=threads)


@pytest.mark.parametrize("span", [(-1, 1), (0, 2), (1, 0)])
def test_a_range_that_is_wrong(span):
    runtime = Runtime(one("relu", {"x": (16,)}, {"y": (16,)}), {}, 0)
    with pytest.raises(InputError, match="operators"):
        runtime.run(*span)


def test_arrays_that_are_wrong():
    runtime = Runtime(one("relu", {"x": (4, 4)}, {"y": (4, 4)}), {1: 0}, 64)
    fixed = np.zeros((4, 4), np.float32)
    fixed.flags.writeable = False
    wrong = [
        np.zeros((4, 4)),
        np.zeros(16, np.float32),
        np.zeros((4, 8), np.float32)[:, ::2],
        fixed,
    ]
    for array in wrong:
        with pytest.raises(InputError):
            runtime.bind(0, array)
    with pytest.raises(InputError):
        runtime.bind(1, np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match="'z'"):
        runtime.read("z")
    with pytest.raises(InputError):
        runtime.write("x", np.zeros((2, 2)))


@pytest.mark.parametrize("slots", [[0, 54], [-1, 3], [3, 3], [4, 3], [3, -2]])
def test_slots_that_are_wrong(slots):
    x, values = torch.zeros(X), torch.zeros(2, 4)
    given = {"x": x, "values": values, "slots": torch.tensor(slots, dtype=torch.int32)}
    with pytest.raises(InputError, match="slots"):
        compute("sparse_conv2d", given, {"y": Y}, **SPARSE)


@pytest.mark.parametrize("target", [-1, 3, 2**62])
def test_targets_and_indices_that_are_wrong(target):
    wrong = torch.tensor([0, target])
    to = {"loss": (), "probabilities": (2, 3)}
    given = {"logits": torch.zeros(2, 3), "targets": wrong, "share": torch.ones(1)}
    if target < 0:  # such a row does not count
        near(compute("cross_entropy", given, to)["loss"], torch.tensor(3.0).log())
    else:
        with pytest.raises(InputError, match=r"targets\[1\]"):
            compute("cross_entropy", given, to)
    with pytest.raises(InputError, match=r"indices\[1\]"):
        compute("embedding", {"indices": wrong, "table": torch.zeros(3, 2)}, {"y": (2, 2)})


def test_the_runtime_needs_no_torch():
    code = (
        "import sys, numpy, mest_fed.runtime.native_table as n; n.kinds();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_array_of_the_type_is_taken_as_it_is_and_another_only_without_loss():
    whole = np.arange(6).reshape(2, 3)
    assert fitting("it", whole, "int64") is whole
    turned = fitting("it", whole.T, "int64")
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, whole.T)
    assert fitting("it", [0.5], "float32").dtype == np.float32
    assert fitting("it", np.float32(2), "float32").shape == ()
    for array, dtype in ((whole / 2, "int64"), (np.array([2**40]), "int32")):
        with pytest.raises(InputError, match=f"allowed: what {dtype} holds"):
            fitting("it", array, dtype)
