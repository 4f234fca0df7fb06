"""What a machine, or a container's part of it, has for workers: cores, memory and GPUs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from mest_fed.system.cgroups import available_cores
from mest_fed.system.limits import limit_of_process, usage
from mest_fed.system.proc import PROC

#: Memory of the server process and Ray's own, and of one worker with torch and data (measured:
#: 560 MB and 225 MB before any client has run).
BASE_BYTES = 600 << 20
WORKER_BYTES = 400 << 20
#: Ray's parts of a GPU have four digits.
_PARTS = 10_000


def free_memory(proc: Path = PROC) -> int:
    """Return the bytes that this process and its children may still take.

    The machine's available memory, or what is left of the tightest limit of a control group.
    """
    available = int(psutil.virtual_memory().available)
    limit = limit_of_process(proc)
    return available if limit is None else max(0, min(available, limit - usage(proc)))


def default_workers(proc: Path = PROC) -> int:
    """Return how many workers this machine has cores and memory for; at least 1."""
    by_memory = (free_memory(proc) - BASE_BYTES) // WORKER_BYTES
    return max(1, min(available_cores(proc), by_memory))


def gpu_share(workers: int, machines: Iterable[tuple[int, int]]) -> float:
    """Return which part of a GPU each worker asks Ray for; 0 if it should ask for none.

    Ray sets ``CUDA_VISIBLE_DEVICES`` of a worker to the GPU that it got, so that ``cuda:0`` of
    different workers are different GPUs, with as few workers on each as possible.

    Parameters
    ----------
    workers : int
        How many workers there will be.
    machines : iterable of (int, int)
        Free cores and GPUs of each machine of the cluster. A worker takes one core. If the machines
        with GPUs have too few cores for all workers, none asks for a GPU: it might never start.
    """
    with_gpus = [(cores, gpus) for cores, gpus in machines if cores > 0 and gpus > 0]
    for on_each in range(1, workers + 1):
        if sum(min(cores, gpus * on_each) for cores, gpus in with_gpus) >= workers:
            return _PARTS // on_each / _PARTS
    return 0.0


def cores_and_gpus(node: Mapping[str, Any]) -> tuple[int, int]:
    """Return the cores and GPUs of one of ``ray.nodes()``."""
    resources = node["Resources"] if node["Alive"] else {}
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
