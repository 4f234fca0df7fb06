"""FleetGrid: a simulated fleet for a script or a notebook, in a line."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from flwr.app import UserConfigValue
from flwr.clientapp import ClientApp

from mest_fed.config.fleet import FleetConfig, read_fleet
from mest_fed.devices import Assignment, DeviceProfile, assign_devices, load_profile
from mest_fed.errors import InputError, not_allowed
from mest_fed.server.run_log import CLIENT_LOG
from mest_fed.simulation.behaviour.behaviour import MemoryNeed
from mest_fed.simulation.behaviour.clock import VirtualClock, trace_of
from mest_fed.simulation.engine.executor import make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import (
    NodeKind,
    Nodes,
    TaskObserver,
    make_nodes,
    partition_of,
)
from mest_fed.simulation.fleet import ByNode


class SimulatedDevices:
    """The devices of a fleet whose clients are any Flower app's.

    Parameters
    ----------
    config : FleetConfig
        How many there are of which profile, and how they behave.

    Raises
    ------
    InputError
        If a profile or a trace is missing or wrong, a budget is of no device of the fleet, or
        memory is to be short but nothing says what a client takes.
    """

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        fleet, seed = config.fleet, config.run.seed
        unknown = sorted(set(fleet.budget_bytes) - set(fleet.weights))
        if unknown:
            allowed = ", ".join(fleet.weights)
            raise InputError(f"fleet.budgets names {unknown[0]}; allowed: {allowed}")
        if config.behaviour.memory_pressure and config.work.memory_bytes is None:
            pressure = config.behaviour.memory_pressure
            raise not_allowed(
                "behaviour.memory_pressure", pressure, "0, or work.memory beside it: such as 120MB"
            )
        self.assignment: Assignment = assign_devices(fleet.weights, fleet.devices, seed)
        self.profiles = {name: load_profile(name) for name in self.assignment.counts}
        self._trace = trace_of(config, self.assignment)

    def profile_of(self, node_id: int) -> DeviceProfile:
        """Return the profile of a node's device."""
        return self.profiles[self.assignment[partition_of(node_id)]]

    def nodes(self) -> Nodes:
        """Return the nodes; the configuration of each names its device."""
        memory = self.config.work.memory_bytes or 0
        kinds = {name: NodeKind({"device": name}, memory=memory) for name in self.profiles}
        return make_nodes(len(self.assignment), lambda part: kinds[self.assignment[part]])

    def clock(self) -> VirtualClock:
        """Return the clock that simulates the devices."""
        config, needs = self.config, None
        if (peak := config.work.memory_bytes) is not None:
            budgets = config.fleet.budget_bytes
            need = {
                name: MemoryNeed(budgets.get(name, profile.budget_bytes), peak)
                for name, profile in self.profiles.items()
            }
            needs = ByNode(self.assignment, need)
        return VirtualClock(
            ByNode(self.assignment, self.profiles),
            scheme="unstructured",  # speeds sparse work, which a client reports by itself
            seed=config.run.seed,
            deadline=config.fleet.deadline or None,
            behaviour=config.behaviour,
            trace=self._trace,
            needs=needs,
            flops_per_example=config.work.flops_per_example,
        )


def fleet_of(devices: Mapping[str, int] | FleetConfig | str | Path) -> FleetConfig:
    """Return a fleet given by counts of profiles, as a configuration, or as the path of a file.

    Raises
    ------
    InputError
        If a count is not a whole number from 1, or the file is wrong.
    """
    if isinstance(devices, FleetConfig):
        return devices
    if isinstance(devices, str | Path):
        return read_fleet(Path(devices))
    for name, count in devices.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise not_allowed(f"devices[{name!r}]", count, "a whole number from 1")
        load_profile(name)  # refuses one that is none
    if not devices:
        raise not_allowed("devices", dict(devices), "at least one profile with its number")
    fleet = {"devices": sum(devices.values()), "mix": dict(devices)}
    return FleetConfig.model_validate({"fleet": fleet, "behaviour": {"availability": "always"}})


class FleetGrid(EngineGrid):
    """A simulated fleet that any Flower strategy or ServerApp drives.

    ::

        from flwr.serverapp.strategy import FedAvg
        from mest_fed import FleetGrid

        with FleetGrid(client_app, devices={"rpi-4": 6, "phone-low": 4}, workers=2) as grid:
            result = FedAvg().start(grid, initial_arrays=arrays, num_rounds=3)
            print(result.evaluate_metrics_clientapp, f"after {grid.now:.0f} virtual seconds")

    Results are the same bits for any number of workers, and, without devices that are away or too
    slow, the same as on Flower's own simulation engine. Flower's strategies draw nodes with
    :mod:`random`: seed it, and what else the server draws with, to have a run again.

    Parameters
    ----------
    client_app : ClientApp or str
        The client, as an object or as ``"module:attribute"`` or ``"file.py:attribute"``.
    devices : int, mapping of str to int, FleetConfig or path
        How many clients there are, without a device each: no time passes and none is away. Or the
        number of devices of each profile (names: ``mest-fed devices``), which are always there. Or
        a whole fleet with its behaviour: a :class:`mest_fed.config.FleetConfig`, or the path of
        its TOML file.
    workers : int
        Ray worker processes, one core each; 0 runs clients in this process.
    run_config : mapping of str to scalar, optional
        ``context.run_config`` of the clients.
    address : str, optional
        Ray cluster to join, for example ``"10.0.0.1:6379"``.
    show_clients : bool
        Write what clients print to standard error, with their nodes. It goes to the logger
        ``mest_fed.run.clients`` in any case.
    observer : callable, optional
        Called with each instruction that ends and its result.

    Raises
    ------
    InputError
        If there is no such ClientApp, profile or file, a number is not allowed, or Ray does not
        start.
    """

    def __init__(
        self,
        client_app: ClientApp | str,
        devices: int | Mapping[str, int] | FleetConfig | str | Path,
        *,
        workers: int = 0,
        run_config: Mapping[str, UserConfigValue] | None = None,
        address: str | None = None,
        show_clients: bool = False,
        observer: TaskObserver | None = None,
    ) -> None:
        if isinstance(devices, int):
            nodes, clock = make_nodes(devices), None
        else:
            simulated = SimulatedDevices(fleet_of(devices))
            nodes, clock = simulated.nodes(), simulated.clock()
        self._fleet_executor = make_executor(client_app, workers, address)
        self._shown = logging.StreamHandler() if show_clients else None
        if self._shown is not None:
            clients = logging.getLogger(CLIENT_LOG)
            clients.addHandler(self._shown)
            clients.setLevel(logging.INFO)
        super().__init__(
            nodes, self._fleet_executor, run_config=run_config, simulator=clock, observer=observer
        )

    def __enter__(self) -> Self:
        """Return the grid; workers run when the block begins.

        Raises
        ------
        InputError
            If a worker cannot load the ClientApp.
        """
        try:
            self._fleet_executor.ensure_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the grid."""
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        if self._shown is not None:
            logging.getLogger(CLIENT_LOG).removeHandler(self._shown)
            self._shown = None
        self._fleet_executor.close()
