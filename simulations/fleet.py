"""The fleet of a run: which device holds which share of the data, and what each device plans."""

from collections.abc import Mapping
from dataclasses import dataclass

from clients.plans import GIVEN, GIVEN_PEAK
from mest_fed.devices import DeviceProfile, assign_devices, load_profile
from mest_fed.errors import InputError
from mest_fed.memory import Plan
from mest_fed.task import Task
from simulations.engine.nodes import FleetNode, make_nodes


@dataclass(frozen=True)
class Tier:
    """All devices of one profile.

    Parameters
    ----------
    profile : DeviceProfile
        What they are.
    clients : int
        How many there are.
    plan : Plan
        How each of them trains.
    """

    profile: DeviceProfile
    clients: int
    plan: Plan


@dataclass(frozen=True)
class Fleet:
    """Devices by partition, and their tiers.

    Parameters
    ----------
    devices : list of str
        Partition -> profile name.
    tiers : list of Tier
        One for each profile, by budget.
    plans : dict of str to Plan
        Profile name (or path), as in the mix -> its plan.
    """

    devices: list[str]
    tiers: list[Tier]
    plans: dict[str, Plan]

    @classmethod
    def of(cls, task: Task) -> "Fleet":
        """Mix the fleet of a run.

        Raises
        ------
        InputError
            If a profile is unknown, an override names none of the fleet, or a budget fits no plan.
        """
        fleet = task.config.fleet
        strangers = sorted(set(fleet.budget_bytes) - set(fleet.weights))
        if strangers:
            raise InputError(
                f"fleet.budgets names {strangers[0]}, which is not in the fleet; "
                f"allowed: {', '.join(fleet.weights)}"
            )
        devices = assign_devices(fleet.weights, fleet.devices, task.config.run.seed)
        plans = {name: task.plan(task.budget(name), name) for name in sorted(set(devices))}
        tiers = [
            Tier(load_profile(name), devices.count(name), plan) for name, plan in plans.items()
        ]
        return cls(devices, sorted(tiers, key=lambda tier: tier.plan.budget), plans)

    def nodes(self, peaks: Mapping[Plan, int]) -> list[FleetNode]:
        """Return the fleet's Flower nodes; each knows its plan and the plan's measured peak."""
        configs = [_node(device, self.plans[device], peaks) for device in self.devices]
        return make_nodes(len(self.devices), configs)


def _node(device: str, plan: Plan, peaks: Mapping[Plan, int]) -> dict[str, str | int]:
    node: dict[str, str | int] = {"device": device, GIVEN: plan.as_json()}
    if plan in peaks:
        node[GIVEN_PEAK] = peaks[plan]
    return node
