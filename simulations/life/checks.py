"""What is refused before a run begins: impossible deadlines, and cohorts larger than the fleet."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from mest_fed.config import RunConfig
from mest_fed.devices import DeviceProfile, download_seconds, upload_seconds
from mest_fed.errors import InputError, not_allowed
from mest_fed.nn import ModelSpec
from mest_fed.units import format_seconds
from simulations.life.traces import Trace, load_trace

#: Least bytes of a value in each format.
_VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


def check_cohort(config: RunConfig) -> None:
    """Refuse a cohort that is larger than the fleet.

    Raises
    ------
    InputError
        If it is.
    """
    devices, cohort = config.fleet.devices, config.server.clients_per_round
    if cohort > devices:
        allowed = f"1 to {devices} (fleet.devices = {devices})"
        raise not_allowed("server.clients_per_round", cohort, allowed)


def check_deadline(
    config: RunConfig, spec: ModelSpec, tiers: Iterable[tuple[DeviceProfile, float]]
) -> None:
    """Refuse a deadline that passes before any device could have received and sent its values.

    That is taken at the rates of the profiles; time to train and masks come on top of it.

    Parameters
    ----------
    config : RunConfig
        The run.
    spec : ModelSpec
        Its model.
    tiers : iterable of (DeviceProfile, float)
        Each profile of the fleet with the density of its plan.

    Raises
    ------
    InputError
        If nobody can meet it; says what the fastest device needs at least.
    """
    deadline = config.fleet.deadline or math.inf
    needed = {
        profile.name: least_transfer_seconds(config, spec, profile, density)
        for profile, density in tiers
    }
    fastest = min(needed, key=lambda name: needed[name])
    if deadline < needed[fastest]:
        raise InputError(
            f"fleet.deadline = {deadline:g} is not allowed: no device meets it; allowed: more than "
            f"{needed[fastest]:.3g}, the {format_seconds(needed[fastest])} that {fastest} needs at "
            "least to receive and to send its values (modelled), or 0 for none"
        )


def least_transfer_seconds(
    config: RunConfig, spec: ModelSpec, profile: DeviceProfile, density: float
) -> float:
    """Return the time to receive and to send the values of a model, and nothing else (modelled)."""
    values = density * spec.sparse_weights + sum(math.prod(s) for s in spec.dense.values())
    down, up = (_VALUE_BYTES[form] for form in (config.wire.download, config.wire.upload))
    return download_seconds(profile, down * values) + upload_seconds(profile, up * values)


def trace_of(config: RunConfig, devices: Sequence[str]) -> Trace | None:
    """Read the run's trace, if it has one.

    Parameters
    ----------
    config : RunConfig
        The run.
    devices : sequence of str
        Profile of each partition.

    Raises
    ------
    InputError
        If the file is missing or wrong.
    """
    life = config.life
    if life.availability != "trace":
        return None
    return load_trace(Path(life.trace), devices, repeats=life.trace_repeats)
