"""What does not fit is refused by name, and nothing crashes: the operators take any argument."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mest_fed.kernels import native, ops

pytestmark = pytest.mark.skipif(not native.available(), reason="no compiled kernels")


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


GOOD = {
    "x": torch.ones(2, 3, 8, 8),
    "grad": torch.ones(2, 4, 8, 8),
    "values": torch.ones(2, 1),
    "bias": torch.ones(4),
    "slots": int32(0, 5),
    "cells": None,
    "rows": 1,
    "shape": [4, 3, 3, 3],
    "geometry": [1, 1, 1, 1, 1, 1],
    "size": [2, 3, 8, 8],
    "plane": 0,
}
ARGUMENTS = {
    "conv2d": "x values bias slots cells rows shape geometry plane",
    "conv2d_input": "grad values slots cells rows shape geometry size plane",
    "conv2d_values": "grad x slots cells rows shape geometry plane",
    "conv2d_backward": "grad x values slots cells rows shape geometry plane",
}


def call(name, **changes):
    """Call an operator with good arguments but for some."""
    arguments = [{**GOOD, **changes}[key] for key in ARGUMENTS[name].split()]
    return getattr(ops.OPERATORS, name)(*arguments)


def outputs(name, **changes):
    """Return what an operator gives as a tuple, of one or more."""
    result = call(name, **changes)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_good_arguments_are_good(name):
    assert all(result.isfinite().all() for result in outputs(name))


WRONG = [
    ("x", {"x": torch.ones(3, 8, 8)}),
    ("x", {"x": torch.ones(2, 4, 8, 8)}),
    ("x", {"x": torch.ones(2, 3, 8, 8).double()}),
    ("x", {"x": torch.ones(2, 3, 8, 8).bfloat16()}),
    ("grad", {"grad": torch.ones(2, 4, 8, 7)}),
    ("grad", {"grad": torch.ones(2, 4, 8, 8).double()}),
    ("grad", {"grad": torch.ones(2, 4)}),
    ("values", {"values": torch.ones(3, 1)}),
    ("values", {"values": torch.ones(2, 2)}),
    ("values", {"values": torch.ones(2)}),
    ("values", {"values": torch.ones(2, 1).double()}),
    ("bias", {"bias": torch.ones(3)}),
    ("bias", {"bias": torch.ones(4, 1)}),
    ("bias", {"bias": torch.ones(4).double()}),
    ("slots", {"slots": int32(5, 0)}),
    ("slots", {"slots": int32(5, 5)}),
    ("slots", {"slots": int32(-1, 5)}),
    ("slots", {"slots": int32(5, 108)}),
    ("slots", {"slots": int32(5, 2**31 - 1)}),
    ("slots", {"slots": torch.tensor([0, 5])}),
    ("slots", {"slots": int32(0, 5).view(2, 1)}),
    ("slots", {"slots": torch.ones(2)}),
    ("cells", {"cells": torch.zeros(1, 1, dtype=torch.int64)}),
    ("cells", {"cells": torch.zeros(1, 1, 1, dtype=torch.int32)}),
    ("cells", {"cells": int32(0)}),
    ("cells", {"cells": torch.tensor(0, dtype=torch.int32)}),
    ("cells", {"cells": int32(9).view(1, 1)}),
    ("cells", {"cells": int32(-1).view(1, 1)}),
    ("rows", {"rows": 0}),
    ("rows", {"rows": -4}),
    ("weight", {"shape": [4, 3, 3]}),
    ("weight", {"shape": [4, 2, 3, 3]}),
    ("weight", {"shape": [4, 3, 3, 3, 1]}),
    ("weight", {"shape": []}),
    ("weight", {"shape": [4, 3, 11, 11]}),
    ("size", {"shape": [4, 3, 0, 0]}),
    ("size", {"shape": [-4, 3, 3, 3]}),
    ("geometry", {"geometry": [1, 1, 1, 1, 1]}),
    ("geometry", {"geometry": [1, 1, 1, 1, 1, 1, 1]}),
    ("stride", {"geometry": [0, 1, 1, 1, 1, 1]}),
    ("stride", {"geometry": [-1, 1, 1, 1, 1, 1]}),
    ("padding", {"geometry": [1, 1, -1, 1, 1, 1]}),
    ("dilation", {"geometry": [1, 1, 1, 1, 0, 1]}),
    ("dilation", {"geometry": [1, 1, 1, 1, 1, -1]}),
    ("size", {"size": [2, 3, 8]}),
    ("size", {"size": [2, 3, 8, -8]}),
    ("size", {"size": [-2, 3, 8, 8]}),
    ("size", {"size": [2, 3, 8, 8, 8]}),
]


def uses(changes):
    return [name for name, keys in ARGUMENTS.items() if set(changes) <= set(keys.split())]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param(name, changes, id=f"{name}-{named}-{i}")
        for i, (named, changes) in enumerate(WRONG)
        for name in uses(changes)
    ],
)
def test_wrong_arguments_are_refused(name, changes):
    with pytest.raises((ValueError, TypeError)):
        call(name, **changes)


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        pytest.param(*pair, id=f"{pair[0]}-{i}")
        for i, pair in enumerate(WRONG)
        if pair[0] not in ("size", "weight")
    ],
)
def test_the_message_names_what_is_wrong(named, changes):
    with pytest.raises((ValueError, TypeError), match=rf"{named}|input of shape|convolution sizes"):
        call(uses(changes)[0], **changes)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name, keys in ARGUMENTS.items()
        for key in keys.split()
        if isinstance(GOOD[key], torch.Tensor)
    ],
)
def test_tensors_on_several_devices_give_no_numbers(name, key):
    try:
        results = outputs(name, **{key: GOOD[key].to("meta")})
    except (ValueError, TypeError, RuntimeError):
        return
    assert all(result.is_meta for result in results)  # else it is memory that nobody has written


SAFE = (ValueError, TypeError, RuntimeError, MemoryError)


def no_slots(rows):
    return {"slots": int32(), "values": torch.empty(0, rows), "rows": rows}


HOSTILE = {
    "rows of 31 bits": no_slots(2**31 - 1),
    "rows of 32 bits": no_slots(2**32),
    "rows of 40 bits": no_slots(2**40 + 1),
    "cells without a tap": {
        "slots": torch.arange(64, dtype=torch.int32),
        "values": torch.empty(64, 0),
        "cells": torch.empty(8, 0, dtype=torch.int32),
    },
    "cells without a variant": {
        "values": torch.ones(2, 4),
        "cells": torch.empty(0, 4, dtype=torch.int32),
    },
    "padding of 28 bits": {"geometry": [1, 1, 2**28, 2**28, 1, 1]},
    "padding of 62 bits": {"geometry": [1, 1, 2**62, 2**62, 1, 1]},
    "stride of 40 bits": {"geometry": [2**40, 1, 1, 1, 1, 1]},
    "scratch of 2^64 floats": {
        "x": torch.ones(1, 64, 16, 16),
        "grad": torch.ones(1, 4, 16, 16),
        "shape": [4, 64, 3, 3],
        "size": [1, 64, 16, 16],
        "geometry": [1, 1] + [2**28 - 8] * 4,
    },
    "output channels of 40 bits": {"shape": [2**40, 3, 3, 3]},
    "kernel of 31 bits": {"shape": [4, 3, 2**31, 1], "geometry": [1, 1, 2**31, 0, 1, 1]},
    "no input channels": {
        **no_slots(1),
        "x": torch.ones(2, 0, 8, 8),
        "shape": [4, 0, 3, 3],
        "size": [2, 0, 8, 8],
    },
    "plane of 40 bits": {"plane": 2**40},
}


# Calls in children of a small process, each with 8 GB of addresses, and says how they ended.
CALLS = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
from test_kernels_refusals import ARGUMENTS, HOSTILE, SAFE, call
for hostile, changes in HOSTILE.items():
    for name in ARGUMENTS:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                call(name, **changes)
            except SAFE:
                pass
            except BaseException as error:
                print(hostile, name, repr(error), flush=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            print(hostile, name, "signal", status, flush=True)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_hostile_arguments_do_not_crash():
    done = subprocess.run(
        [sys.executable, "-c", CALLS, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.splitlines() == ["done"]


def test_no_image_is_a_result_without_images():
    none = {"x": torch.ones(0, 3, 8, 8), "grad": torch.ones(0, 4, 8, 8), "size": [0, 3, 8, 8]}
    assert call("conv2d", **none).shape == (0, 4, 8, 8)
    assert call("conv2d_input", **none).shape == (0, 3, 8, 8)
    assert torch.equal(call("conv2d_values", **none), torch.zeros(2, 1))
    dx, dvalues = call("conv2d_backward", **none)
    assert dx.shape == (0, 3, 8, 8)
    assert torch.equal(dvalues, torch.zeros(2, 1))
