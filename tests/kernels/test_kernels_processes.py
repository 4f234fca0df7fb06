"""What a process decides once: the instruction set, missing compiled kernels, and forks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mest_fed.kernels import native

compiled = pytest.mark.skipif(not native.available(), reason="no compiled kernels")

# Prints how far the products are from float64's, in tolerances, and what was warned of.
CHECK = """
import json, sys, warnings
{before}
sys.path.insert(0, sys.argv[1])
import torch
from kernel_cases import Sizes, every
from mest_fed.kernels import ConvGeometry, Kernels, Strips, native
from mest_fed.kernels.choice import rule
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    chosen = []
    for cut in (Strips(1), Strips(4), Kernels(((0, 1, 4), (4, 5, 8)))):
        for width in (3, 8, 21):
            geometry = ConvGeometry((1, 1), (1, 1))
            sizes = Sizes((9, 4, 3, 3), cut, (5, 4, 6, width), geometry)
            case = sizes.case(sizes.num_granules // 10, whole=True)
            choice = rule(case.weight)
            chosen.append(choice.forward)
            case.check(case.gradients(choice))
            if native.available():
                case.check(case.gradients(every("shifted")))
variant = native.variant()
result = dict(variant=variant, chosen=sorted(set(chosen)),
              warned=[w.category.__name__ for w in caught], said=[str(w.message) for w in caught])
print(json.dumps(result))
"""


def run(code, timeout=100, **environment):
    """Run code in a process of its own."""
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    return subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def checked(before="", **environment):
    done = run(CHECK.format(before=before), **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_without_compiled_kernels_one_warning_is_given_and_results_are_right():
    found = checked('sys.modules["mest_fed.kernels._native"] = None')
    assert found["variant"] is None
    assert found["chosen"] == ["dense"]
    assert found["warned"] == ["RuntimeWarning"]
    assert "without its compiled kernels" in found["said"][0]


@compiled
@pytest.mark.parametrize("name", ["plain", "avx2", "avx512", "avx512bf16"])
def test_each_instruction_set_can_be_asked_for(name):
    best, known = native.variant(), ("plain", "avx2", "avx512", "avx512bf16")
    if best not in known or known.index(name) >= known.index(best):
        pytest.skip(f"this process runs {best}")
    found = checked(MEST_FED_KERNELS=name)
    assert found["variant"] == name
    assert (found["chosen"], found["warned"]) == (["padded"], [])


@pytest.mark.soak
@compiled
def test_an_unknown_instruction_set_is_a_clear_error_each_time():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from kernel_cases import Sizes, Strips, every\n"
        "case = Sizes((4, 3), Strips(1), (2, 3)).case(2)\n"
        "from mest_fed.errors import InputError\n"
        "from mest_fed.kernels import variant\n"
        "for work in (variant, lambda: case.gradients(every('padded'))) * 2:\n"
        "    try:\n"
        "        work()\n"
        "    except InputError as error:\n"
        "        print(error)\n"
    )
    done = run(code, MEST_FED_KERNELS="avx1024")
    assert done.returncode == 0, done.stderr[-2000:]
    said = "MEST_FED_KERNELS = 'avx1024' is not among the kernels of this machine"
    assert done.stdout.splitlines() == [said] * 4


FORK = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
from kernel_cases import Sizes, Strips, every
from mest_fed.kernels import ConvGeometry
case = Sizes((8, 4, 3, 3), Strips(4), (20, 4, 9, 16), ConvGeometry((1, 1), (1, 1))).case(9)
torch.set_num_threads(int(sys.argv[2]))
expected = case.gradients(every("padded"))
for count in (1, 2):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(count)
        same = all(map(torch.equal, case.gradients(every("padded")), expected))
        print(count, "same" if same else "other", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.soak
@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("parent", [1, 2])
def test_forked_children_compute_the_same_on_one_and_two_threads(parent):
    # The memory meter forks from a process of one thread; another one may have used several.
    command = [sys.executable, "-c", FORK, str(Path(__file__).parent), str(parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as it:
        try:
            said, _ = it.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(it.pid, signal.SIGKILL)  # the child, too
            pytest.fail("a forked child hangs")
    assert said == "1 same\n2 same\n"
