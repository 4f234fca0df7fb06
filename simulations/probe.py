"""Measured peaks of a fleet's plans: each distinct plan trains one round in a process of its own.

The simulation starts this module as a process beside it (``python -m simulations.probe``): a
configuration, its kernels and the plans come in on standard input, bytes go out as JSON, one line a
plan.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from logging import getLogger

import numpy as np
import torch
from flwr.app import Context, RecordDict

from clients.capability import Capability
from clients.local_round import RoundOrder, train_round
from clients.state import ClientState
from mest_fed.config import RunConfig, from_flat, to_flat
from mest_fed.config.sections import ModelSection
from mest_fed.kernels.choice import use
from mest_fed.kernels.table import Table, choices_to_rows
from mest_fed.kernels.table_reader import load_choices
from mest_fed.memory import Plan, read_plan
from mest_fed.memory.meter import ALLOCATOR_ENVIRONMENT, can_measure, measure
from mest_fed.memory.rehearsal import rehearse
from mest_fed.nn import SparseState, read_state
from mest_fed.task import Task
from mest_fed.wire import Payload, decode, encode
from server.global_model import GlobalModel
from server.optimizers import ServerOptimizer

log = getLogger(__name__)


@dataclass
class Probe:
    """A probe at work in its own process.

    Parameters
    ----------
    process : subprocess.Popen or None
        None where this system cannot measure, or nothing is to be measured.
    plans : sequence of Plan
        What it measures.
    """

    process: "subprocess.Popen[str] | None"
    plans: Sequence[Plan] = ()

    @classmethod
    def start(
        cls, config: RunConfig, partition_file: str, kernels: Table, plans: Sequence[Plan]
    ) -> "Probe":
        """Start measuring plans of a run, with the run's kernels."""
        if not (plans and can_measure()):
            return cls(None)
        process = subprocess.Popen(
            [sys.executable, "-m", "simulations.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | ALLOCATOR_ENVIRONMENT,
            text=True,
        )
        assert process.stdin is not None
        flat = to_flat(config) | {"data.partition_file": partition_file}
        rows, tables = choices_to_rows(kernels), [plan.as_json() for plan in plans]
        process.stdin.write(json.dumps({"config": flat, "kernels": rows, "plans": tables}))
        process.stdin.close()
        process.stdin = None
        return cls(process, plans)

    def results(self) -> dict[Plan, int]:
        """Wait, and return measured bytes by plan; what failed is absent."""
        if self.process is None:
            return {}
        output, errors = self.process.communicate()
        if self.process.returncode != 0:
            reason = errors.strip().rpartition("\n")[2]
            log.warning("memory was not measured for every plan: %s", reason)
        return dict(zip(self.plans, map(int, output.split()), strict=False))

    def stop(self) -> None:
        """End the process if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def measure_plans(task: Task, plans: Sequence[Plan]) -> Iterator[int]:
    """Measure plans, each by an epoch of the client that has most examples; yield bytes."""
    # Devices that draw their examples all have as many.
    sizes = [1] if task.draws_examples else [len(part) for part in task.partitions]
    busiest = int(np.argmax(sizes))
    training = task.config.training.model_copy(update={"local_epochs": 1})  # the peak is there
    task = Task(task.config.model_copy(update={"training": training}))
    small = Task(task.config.model_copy(update={"model": _narrow(task.config.model)}))
    for plan in plans:
        who = Capability(busiest, "probe", plan.budget, plan)
        messages = [encode(_received(each, plan.density), each.spec)[0] for each in (small, task)]
        rehearsal = partial(_rehearse, small, messages[0], who)
        yield measure(partial(_round, task, messages[1], who), rehearsal).added


def _narrow(model: ModelSection) -> ModelSection:
    """Return the model at a quarter of its width."""
    return model.model_copy(update={"width": model.width / 4})


def _rehearse(small: Task, message: Payload, who: Capability) -> None:
    """Bring in what any round brings in, of training and of the client around it."""
    rehearse(small.config.sparsity.scheme if small.spec.groups else None)
    _round(small, message, who)


def _received(task: Task, density: float) -> SparseState:
    """Return what a device of a density receives when the mask is at its peak."""
    sparsity = task.config.sparsity
    model = GlobalModel.from_state(task.spec, read_state(task.build_model()))
    if sparsity.mutation == "server":
        model.mutate(task.method, 0.0, ServerOptimizer(), (task.config.run.seed, "probe", 0))
    return model.state(model.tier_masks(density, sparsity.distribution))


def _round(task: Task, payload: Payload, who: Capability) -> None:
    """Do what a client does: decode, train, encode."""
    received = decode(payload, task.spec)
    kept = ClientState(Context(0, 0, {}, RecordDict(), {}))
    mutate = task.config.sparsity.mutation == "client"
    result = train_round(task, received, RoundOrder(1, mutate), who, kept)
    encode(result.state, task.spec, values=task.config.wire.upload, reference=received)


def main() -> None:
    """Measure the plans on standard input."""
    torch.set_num_threads(1)
    given = json.load(sys.stdin)
    task = Task(from_flat(given["config"]))
    use(load_choices(given["kernels"], "kernels").choices)
    for size in measure_plans(task, [read_plan(text) for text in given["plans"]]):
        print(size, flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
