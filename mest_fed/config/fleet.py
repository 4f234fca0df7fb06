"""The configuration of the devices alone, for a Flower app that brings everything else."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from mest_fed.config.base import Section
from mest_fed.config.behaviour import BehaviourSection
from mest_fed.config.load import read_toml, validated
from mest_fed.config.sections import FleetSection
from mest_fed.errors import InputError
from mest_fed.units import parse_bytes


class SeedSection(Section):
    """What everything random about the devices derives from."""

    seed: int = 1


class WorkSection(Section):
    """What a client's work costs a device, where the client itself does not report it."""

    flops_per_example: Annotated[float, Field(ge=0)] = 0.0
    """Floating-point operations of a task for each of the ``num-examples`` that its reply reports,
    all local epochs together; 0: only a client's own ``flops-dense`` and ``flops-sparse`` count."""
    memory: str = ""
    """Bytes that training adds to a client's process, such as ``120MB``. A device with a smaller
    budget refuses to train; empty: memory is not simulated."""

    @field_validator("memory")
    @classmethod
    def _bytes(cls, value: str) -> str:
        if value:
            try:
                parse_bytes(value)
            except InputError as error:
                raise ValueError(str(error)) from None
        return value

    @property
    def memory_bytes(self) -> int | None:
        """The memory in bytes; None if it is not simulated."""
        return parse_bytes(self.memory) if self.memory else None


class FleetConfig(Section):
    """A fleet of devices: what ``mest-fed run --fleet FILE`` reads."""

    run: SeedSection = Field(default_factory=SeedSection)
    fleet: FleetSection = Field(default_factory=FleetSection)
    behaviour: BehaviourSection = Field(default_factory=BehaviourSection)
    work: WorkSection = Field(default_factory=WorkSection)

    @property
    def counts_devices(self) -> bool:
        """Whether the configuration itself says how many devices there are."""
        return "devices" in self.fleet.model_fields_set

    def with_devices(self, devices: int) -> "FleetConfig":
        """Return the same fleet with another number of devices."""
        fleet = self.fleet.model_copy(update={"devices": devices})
        return self.model_copy(update={"fleet": fleet})


def read_fleet(path: Path) -> FleetConfig:
    """Read a fleet from a TOML file with the sections of :class:`FleetConfig`.

    Raises
    ------
    InputError
        If the file is missing or is not TOML, a key is unknown, or a value is not allowed.
    """
    return validated(FleetConfig, read_toml(path), str(path), path.parent)
