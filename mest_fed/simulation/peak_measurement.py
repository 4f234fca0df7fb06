"""The measured peaks of a run's plans: from the run folder, from earlier runs, or measured now."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, RecordDict

from mest_fed.catalogue import MODELS, MutationPlace
from mest_fed.client.capability import Capability
from mest_fed.client.local_round import ClientState, TrainInstruction, train_round
from mest_fed.client.upload import write_update
from mest_fed.config import RunConfig, from_flat, named_files, to_flat
from mest_fed.config.learning import ModelSection, sends_differences
from mest_fed.data import num_held_out
from mest_fed.data.cache import cache_folder
from mest_fed.errors import InputError
from mest_fed.kernels import variant
from mest_fed.kernels.table import Table, choices_to_rows, load_choices
from mest_fed.memory import Plan, read_plan
from mest_fed.memory.warm_up import warm_up
from mest_fed.nn import read_state
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.optimizers import ServerOptimizer
from mest_fed.server.run_folder import RunFolder
from mest_fed.sparsity.state import SparseState
from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT
from mest_fed.system.peak_meter import can_measure, measure
from mest_fed.task import Task
from mest_fed.task_data import OnePartition
from mest_fed.wire import Payload, decode, encode

log = getLogger(__name__)

#: The weights stay as they are.
_LEAST_RATE = 1e-12


@dataclass
class PeakMeasurement:
    """A measurement of plans' peaks, in a process of its own.

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
    ) -> "PeakMeasurement":
        """Start measuring plans of a run, with the run's kernels."""
        if not (plans and can_measure()):
            return cls(None)
        process = subprocess.Popen(
            [sys.executable, "-m", "mest_fed.simulation.peak_measurement"],
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
    """Measure plans, each by an epoch of the client that has most examples; yield bytes.

    So many of its examples are left out that the last batch is one short of a whole one, where it
    has enough. A step then has groups of all sizes that it can have, each with memory of its own,
    as a prediction counts them: another client of the plan needs no more.
    """
    # Devices that draw their examples all have as many.
    sizes = [1] if task.draws_examples else [len(part) for part in task.partitions]
    busiest = int(np.argmax(sizes))
    # The peak is in the first epoch; a run that diverges shall be measured, too.
    changes = {"local_epochs": 1, "learning_rate": _LEAST_RATE}
    training = task.config.training.model_copy(update=changes)
    config, part = task.config.model_copy(update={"training": training}), task.partitions[busiest]
    part = part[: _one_short(len(part), config)]
    task = Task(config, data=task.data, partitions=OnePartition(part), choices=task.choices)
    small = task.reconfigured(_small(task), task.choices)
    for plan in plans:
        who = Capability(busiest, "measurement", plan.budget, plan)
        tasks = [each.at_width(plan.density) for each in (small, task)]
        messages = [encode(_received(each, plan.density), each.spec)[0] for each in tasks]
        warm_up_run = partial(_warm_up, tasks[0], messages[0], who)
        yield measure(partial(_round, tasks[1], messages[1], who), warm_up_run).added


def _one_short(examples: int, config: RunConfig) -> int:
    """Return how many of a client's examples make a last batch that is one short of a whole one.

    All where there is no such number: one example a batch, or too few examples.
    """
    batch, held_out = config.training.batch_size, config.data.hold_out
    if batch == 1:
        return examples
    numbers = range(examples, max(0, examples - 2 * batch), -1)
    short = (it for it in numbers if (it - num_held_out(it, held_out)) % batch == batch - 1)
    return next(short, examples)


def _small(task: Task) -> RunConfig:
    """Return the run with a model a quarter as wide, or with one of ours for a user's own."""
    config = task.config
    model, width = ModelSection(norm=config.model.norm), config.model.width / 4
    if MODELS.is_builtin(config.model.name):
        model = config.model.model_copy(update={"weights": ""})
    elif task.example.input_dtype == torch.int64:
        model = ModelSection(name="transformer")
    elif len(task.example.input_shape) != 3:
        model = ModelSection(name="mlp")
    # Names of layers and segments are those of the run's model.
    sparsity = {"include": "", "exclude": "", "layers": ""}
    return config.model_copy(
        update={
            "model": model.model_copy(update={"width": width}),
            "sparsity": config.sparsity.model_copy(update=sparsity),
            "memory": config.memory.model_copy(update={"segments": ""}),
        }
    )


def _warm_up(small: Task, message: Payload, who: Capability) -> None:
    """Bring in what any round brings in, of training and of the client around it."""
    warm_up(small.config.sparsity.scheme if small.spec.groups else None)
    _round(small, message, who)


def _received(task: Task, density: float) -> SparseState:
    """Return what a device of a density receives when the mask is at its peak."""
    sparsity = task.config.sparsity
    model = GlobalModel.from_state(task.spec, read_state(task.build_model()))
    if sparsity.mutation == MutationPlace.SERVER:
        model.mutate(task.method, 0.0, ServerOptimizer(), (task.config.run.seed, "probe", 0))
    return model.state(model.tier_masks(density, sparsity.densities))


def _round(task: Task, payload: Payload, who: Capability) -> None:
    """Do what a client does: decode, train, encode."""
    received = decode(payload, task.spec)
    task.programs.keep_within(0)  # as on a device
    kept = ClientState(Context(0, 0, {}, RecordDict(), {}))
    form = task.config.wire.upload
    if sends_differences(form):  # as from the second round on
        _, kept.residual = encode(received, task.spec, values=form)
    mutate = task.config.sparsity.mutation == MutationPlace.CLIENT
    instruction = TrainInstruction(1, mutate)
    result = train_round(task, received, instruction, who, kept, choices=task.choices)
    write_update(task, result, received, kept)


def main() -> None:
    """Measure the plans on standard input."""
    torch.set_num_threads(1)
    given = json.load(sys.stdin)
    kernels = load_choices(given["kernels"], "kernels")
    task = Task(from_flat(given["config"]), choices=kernels.choices)
    for size in measure_plans(task, [read_plan(text) for text in given["plans"]]):
        print(size, flush=True)


if __name__ == "__main__":
    main()


#: What of a configuration the memory of a round depends on, beside its plan.
_SECTIONS = ("task", "data", "model", "sparsity", "training", "forgetting", "wire", "fleet")
_VERSIONS = ("mest-fed", "torch", "numpy")


class Peaks:
    """Measures the plans of a run that were not measured yet; :meth:`wait` gives all of them.

    A run's peaks stand in its folder, so that a resumed run holds its devices to the same ones,
    whatever machine it goes on with; nothing is then measured. In a new run, a peak that was
    measured once on this machine, for the same plan and the same versions, is taken from the cache.

    Parameters
    ----------
    task : Task
        The run's.
    plans : iterable of Plan
        Those of its devices.
    folder : RunFolder
        Of the run; nothing is written there.
    kernels : Table
        Its kernels.
    """

    def __init__(
        self, task: Task, plans: Iterable[Plan], folder: RunFolder, kernels: Table
    ) -> None:
        self._task, self._kernels = task, kernels
        self._partitions, self._kept = folder.partition_file, folder.read_memory()
        self._known: dict[Plan, int] = {}
        self.add(plans)

    def add(self, plans: Iterable[Plan]) -> None:
        """Look up plans, and begin to measure those that are not known; no others may run."""
        plans, known = list(dict.fromkeys(plans)), self._known
        for plan in plans:
            key = _plan_key(plan)
            found = _cached(self._key(plan)) if self._kept is None else self._kept.get(key)
            if found is not None:
                known.setdefault(plan, found)
        of_shape = {plan.shape: size for plan, size in known.items()}
        # Plans of one shape need the same memory, whatever their budgets.
        known |= {plan: of_shape[plan.shape] for plan in plans if plan.shape in of_shape}
        self._unknown = [plan for plan in plans if plan not in known] if self._kept is None else []
        distinct = list({plan.shape: plan for plan in self._unknown}.values())
        self._measurement = PeakMeasurement.start(
            self._task.config, self._partitions, self._kernels, distinct
        )

    @property
    def pending(self) -> int:
        """How many plans are being measured, for the first time on this machine."""
        return 0 if self._measurement.process is None else len(self._measurement.plans)

    @property
    def by_key(self) -> dict[str, int]:
        """What the run folder keeps: the bytes of each plan that was measured, by its name."""
        return {_plan_key(plan): size for plan, size in self._known.items()}

    def wait(self) -> Mapping[Plan, int]:
        """Wait for the measurement; return measured bytes by plan, where they could be measured."""
        found = {plan.shape: size for plan, size in self._measurement.results().items()}
        for plan in self._unknown:
            size = found.get(plan.shape)
            if size is not None:
                self._known[plan] = size
                _keep(self._key(plan), size)
        self._unknown, self._measurement = [], PeakMeasurement(None)
        return dict(self._known)

    def close(self) -> None:
        """End the measurement if it still runs."""
        self._measurement.stop()

    def _key(self, plan: Plan) -> str:
        return _key(self._task, self._kernels, plan)


def _key(task: Task, kernels: Table, plan: Plan) -> str:
    config = task.config
    facts = {
        "config": {name: getattr(config, name).model_dump() for name in _SECTIONS},
        "files": [hashlib.sha256(file.read_bytes()).hexdigest() for file in named_files(config)],
        "seed": config.run.seed,
        "example": asdict(task.example),
        "kernels": choices_to_rows(kernels)["rows"],
        "plan": _shape(plan),
        "counted": "anonymous memory, groups of all sizes",
        "versions": {name: version(name) for name in _VERSIONS},
        "machine": (platform.machine(), platform.libc_ver(), variant()),
    }
    return _hash(facts)


def kept_peaks(folder: RunFolder, plans: Iterable[Plan]) -> dict[Plan, int]:
    """Return the measured bytes of plans that a run's folder keeps, where they were measured."""
    kept = folder.read_memory() or {}
    return {plan: size for plan in plans if (size := kept.get(_plan_key(plan))) is not None}


def _plan_key(plan: Plan) -> str:
    """Return the name of a plan in the run folder."""
    return _hash(_shape(plan))


def _shape(plan: Plan) -> dict[str, Any]:
    table = plan.as_table()
    for budgeted in ("budget_bytes", "shortfall_bytes", "parts", "predicted_peak_bytes"):
        del table[budgeted]
    return table


def _hash(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _cached(key: str) -> int | None:
    try:
        return int(_file(key).read_text(encoding="utf-8"))
    except (OSError, ValueError, InputError):  # it was not measured, or the cache is unusable
        return None


def _keep(key: str, size: int) -> None:
    try:
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{size}\n", encoding="utf-8")
    except (OSError, InputError):  # a cache that cannot be written is none
        return


def _file(key: str) -> Path:
    return cache_folder() / "peaks" / key
