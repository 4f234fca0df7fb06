"""The measured peaks of a run's plans: from the run folder, from earlier runs, or from a probe."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mest_fed.config import RunConfig
from mest_fed.data.cache import cache_folder
from mest_fed.errors import InputError
from mest_fed.kernels import variant
from mest_fed.kernels.table import Table, choices_to_rows
from mest_fed.memory import Plan
from server.run_folder import RunFolder
from simulations.fleet import Fleet
from simulations.probe import Probe

#: What of a configuration the memory of a round depends on, beside its plan.
_SECTIONS = ("data", "model", "sparsity", "training", "forgetting", "wire", "fleet")
_VERSIONS = ("mest-fed", "torch", "numpy")


class Peaks:
    """Measures the plans of a run that nobody has measured yet; :meth:`wait` gives all of them.

    A run's peaks stand in its folder, so that a resumed run holds its devices to the same ones,
    whatever machine it goes on with; nothing is then measured. In a new run, a peak that was
    measured once on this machine, for the same plan and the same versions, is taken from the cache.

    Parameters
    ----------
    config : RunConfig
        The run.
    fleet : Fleet
        Its tiers have the plans.
    folder : RunFolder
        Of the run; nothing is written there.
    kernels : Table
        Its kernels.
    """

    def __init__(self, config: RunConfig, fleet: Fleet, folder: RunFolder, kernels: Table) -> None:
        plans = list(dict.fromkeys(tier.plan for tier in fleet.tiers))
        self._keys = {plan: _key(config, kernels, plan) for plan in plans}
        kept = folder.read_memory()
        known = (
            {plan: _cached(key) for plan, key in self._keys.items()}
            if kept is None
            else {plan: kept.get(_plan_key(plan)) for plan in plans}
        )
        self._known = {plan: size for plan, size in known.items() if size is not None}
        unknown = [plan for plan in plans if plan not in self._known] if kept is None else []
        # Plans of one shape need the same memory, whatever their budgets.
        distinct = list({plan.shape: plan for plan in unknown}.values())
        self._probe = Probe.start(config, folder.partition_file, kernels, distinct)
        self._unknown = unknown

    def wait(self) -> Mapping[Plan, int]:
        """Wait for the probe; return measured bytes by plan, where they could be measured.

        :attr:`by_key` then has what the run folder keeps.
        """
        found = {plan.shape: size for plan, size in self._probe.results().items()}
        for plan in self._unknown:
            size = found.get(plan.shape)
            if size is not None:
                self._known[plan] = size
                _keep(self._keys[plan], size)
        self.by_key = {_plan_key(plan): size for plan, size in self._known.items()}
        return dict(self._known)

    def close(self) -> None:
        """End the probe if it still runs."""
        self._probe.stop()


def _key(config: RunConfig, kernels: Table, plan: Plan) -> str:
    facts = {
        "config": {name: getattr(config, name).model_dump() for name in _SECTIONS},
        "seed": config.run.seed,
        "kernels": choices_to_rows(kernels)["rows"],
        "plan": _shape(plan),
        "counted": "anonymous memory",
        "versions": {name: version(name) for name in _VERSIONS},
        "machine": (platform.machine(), platform.libc_ver(), variant()),
    }
    return _hash(facts)


def _plan_key(plan: Plan) -> str:
    """Return the name of a plan in the run folder."""
    return _hash(_shape(plan))


def _shape(plan: Plan) -> dict[str, Any]:
    table = plan.as_table()
    del table["budget_bytes"], table["parts"], table["predicted_peak_bytes"]
    return table


def _hash(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _cached(key: str) -> int | None:
    try:
        return int(_file(key).read_text(encoding="utf-8"))
    except (OSError, ValueError, InputError):
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
