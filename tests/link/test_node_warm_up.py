"""A node warms up by what its rounds do, and holds no library that they do not need."""

import subprocess
import sys


def test_a_warm_up_makes_the_runtime_ready_without_torch():
    code = (
        "import sys; from mest_fed.link.node.warm_up import warm_up; "
        "from mest_fed.runtime.native_table import kinds; "
        "assert not kinds.cache_info().currsize; warm_up(); "
        "assert kinds.cache_info().currsize; "
        "print(sorted({'torch', 'flwr', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
