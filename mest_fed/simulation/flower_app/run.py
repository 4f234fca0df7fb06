"""A run of a Flower app on a simulated fleet, from its folder to the run folder."""

import io
import logging
import random
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tomli_w
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from mest_fed.config.fleet import FleetConfig, SeedSection
from mest_fed.errors import MestFedError
from mest_fed.rng import derive_seed
from mest_fed.server.flower_internals import recorded_results, run_server_app
from mest_fed.server.folder_names import LOG
from mest_fed.server.run_folder import RunFolder
from mest_fed.server.run_log import RUN_LOG, SERVERAPP_LOG, is_kept, logged
from mest_fed.simulation.engine.client_output import in_client
from mest_fed.simulation.engine.client_runner import one_line
from mest_fed.simulation.engine.executor import Executor, make_executor
from mest_fed.simulation.engine.grid import EngineGrid, ReplyStream
from mest_fed.simulation.engine.interfaces import make_nodes
from mest_fed.simulation.fleet_grid import SimulatedDevices
from mest_fed.simulation.flower_app.project import AppFolder, AppProject, load_app
from mest_fed.simulation.flower_app.record import AppRecord, AppWatcher
from mest_fed.simulation.flower_app.summary import build_summary
from mest_fed.units import number_of

#: Nodes of an app that does not say how many it wants.
DEFAULT_NODES = 10
FLOWER_LOG = "flwr"
log, server_log = logging.getLogger(RUN_LOG), logging.getLogger(SERVERAPP_LOG)


class RecordedGrid(EngineGrid):
    """A grid that tells a record of its exchanges; parameters beside it as of the grid."""

    def __init__(self, record: AppRecord, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, observer=record.task_ended, **options)
        self._record = record

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> ReplyStream | list[Message]:
        """Do as the grid does."""
        messages = list(messages)
        self._record.exchange(messages, self.now)
        return super().send_and_receive(messages, timeout=timeout)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Do as the grid does."""
        messages = list(messages)
        self._record.exchange(messages, self.now)
        ids = super().push_messages(messages)
        self._record.pushed(ids)
        return ids


@dataclass(frozen=True)
class AppRun:
    """A run about to start.

    Parameters
    ----------
    project : AppProject
        The app, with its run configuration.
    fleet : FleetConfig or None
        The devices; None for nodes without a device, on which no time passes.
    seed : int
        Of the run, where there is no fleet.
    out : Path
        The run folder.
    """

    project: AppProject
    fleet: FleetConfig | None
    seed: int
    out: Path

    @classmethod
    def of(
        cls, project: AppProject, fleet: FleetConfig | None, out: Path, *, seed: int | None = None
    ) -> "AppRun":
        """Prepare a run.

        Parameters
        ----------
        project, fleet, out : AppProject, FleetConfig or None, Path
            As for the class. A fleet that does not say how many devices it has gets as many as the
            app's federation.
        seed : int, optional
            Replaces the fleet's.
        """
        if fleet is not None:
            if not fleet.counts_devices and project.num_supernodes is not None:
                fleet = fleet.with_devices(project.num_supernodes)
            if seed is not None:
                fleet = fleet.model_copy(update={"run": SeedSection(seed=seed)})
            seed = fleet.run.seed
        return cls(project, fleet, 1 if seed is None else seed, out)

    @property
    def num_nodes(self) -> int:
        """Return how many nodes the fleet has."""
        if self.fleet is not None:
            return self.fleet.fleet.devices
        return self.project.num_supernodes or DEFAULT_NODES

    def run(
        self, workers: int, address: str | None = None, *, watcher: AppWatcher | None = None
    ) -> Path:
        """Run the app to its end; return the path of the run folder.

        Parameters
        ----------
        workers, address : int, str or None
            As for :meth:`mest_fed.simulation.simulate.Simulation.run`.
        watcher : AppWatcher, optional
            Sees the run.

        Raises
        ------
        InputError
            If the folder is in use, an app cannot be loaded, or the fleet is not possible: no
            folder is left behind.
        MestFedError
            If the ServerApp raises; its traceback is in the log of the run.
        """
        folder = RunFolder(self.out, ("--out", ""))
        folder.check_new()
        if watcher is not None:
            watcher.phase(f"loading {self.project.name}")
        devices = None if self.fleet is None else SimulatedDevices(self.fleet)
        seed_generators(self.seed)
        server_app = load_app(self.project.serverapp, ServerApp, self.project.folder)
        with (
            _at_info(logging.getLogger(FLOWER_LOG)),
            logged(FLOWER_LOG, keep=_keep) as run_log,
            closing(self._executor(workers, address)) as executor,
            ExitStack() as stack,
        ):
            if watcher is not None and workers:
                watcher.phase(f"starting Ray with {number_of(workers, 'worker')}")
            executor.ensure_ready()
            if watcher is not None:
                watcher.begin_app(self.project.name, timed=devices is not None)
            stack.enter_context(_begun(folder, self._as_toml()))
            run_log.write_to(folder.path / LOG)
            record = AppRecord(folder, devices, watcher)
            grid = RecordedGrid(
                record,
                make_nodes(self.num_nodes) if devices is None else devices.nodes(),
                executor,
                run_config=self.project.run_config,
                simulator=None if devices is None else devices.clock(),
                run_id=derive_seed(self.seed, "flower app"),
            )
            with recorded_results() as results:
                context = self._serve(server_app, grid, record)
            summary = build_summary(
                self.project,
                record,
                devices,
                seed=self.seed,
                num_nodes=self.num_nodes,
                results=results,
                state=context.state,
            )
            folder.write_summary(summary)
        return folder.path

    def _executor(self, workers: int, address: str | None) -> Executor:
        reference, folder = self.project.clientapp, self.project.folder
        if workers == 0:
            return make_executor(load_app(reference, ClientApp, folder), 0)
        setup = AppFolder(str(folder)) if address is None else AppFolder.with_files(folder)
        return make_executor(reference, workers, address, setup=setup)

    def _serve(self, server_app: ServerApp, grid: EngineGrid, record: AppRecord) -> Context:
        """Run the ServerApp; what it has done is written even if it raises."""
        seed_generators(self.seed)  # again: Ray draws from them as it starts
        try:
            with redirect_stdout(_Copied(sys.stdout)):
                return run_server_app(server_app, grid, run_config=self.project.run_config)
        except (Exception, SystemExit) as error:
            log.error("the ServerApp raised an error:\n%s", traceback.format_exc().rstrip())
            where = f"the traceback is in {self.out / LOG}"
            raise MestFedError(f"the ServerApp raised {one_line(error)}; {where}") from error
        finally:
            record.end(grid.now)

    def _as_toml(self) -> str:
        """Return what runs, as ``config.toml`` of the run folder."""
        project = self.project
        table: dict[str, Any] = {
            "app": {
                "name": project.name,
                "folder": str(project.folder),
                "serverapp": project.serverapp,
                "clientapp": project.clientapp,
                "nodes": self.num_nodes,
            },
            "run_config": dict(project.run_config),
            "run": {"seed": self.seed},
        }
        if self.fleet is not None:
            table |= self.fleet.model_dump()
        return tomli_w.dumps(table)


@contextmanager
def _begun(folder: RunFolder, config: str) -> Iterator[None]:
    """Have a run folder for the block; Ctrl-C before any client had a result leaves none."""
    folder.begin(config)
    try:
        yield
    except KeyboardInterrupt:
        folder.discard_if_early()
        raise
    finally:
        folder.release()


class _Copied(io.TextIOBase):
    """Standard output of the ServerApp: each whole line also goes to the log of the run."""

    encoding = "utf-8"

    def __init__(self, outer: TextIO) -> None:
        self._outer = outer
        self._line = ""

    def __getattr__(self, name: str) -> Any:
        """Return what only standard output itself has, such as ``buffer``."""
        if name == "_outer":
            raise AttributeError(name)
        return getattr(self._outer, name)

    def write(self, text: str) -> int:
        """Write text."""
        *lines, self._line = f"{self._line}{text}".split("\n")
        for line in filter(None, lines):
            server_log.info("%s", line)
        return self._outer.write(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def flush(self) -> None:
        """Flush standard output."""
        self._outer.flush()

    def isatty(self) -> bool:
        """Whether standard output is a terminal."""
        return self._outer.isatty()

    def fileno(self) -> int:
        """Return the descriptor of standard output; what goes there is not copied."""
        return self._outer.fileno()


@contextmanager
def _at_info(logger: logging.Logger) -> Iterator[None]:
    """Have a logger say in the block what it says in a new process, such as a worker."""
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)


def _keep(record: logging.LogRecord) -> bool:
    """Whether a record is kept: warnings, what clients print, and Flower's log of the server."""
    if record.name == FLOWER_LOG:
        return record.levelno >= logging.INFO and not in_client()
    return is_kept(record)


def seed_generators(seed: int) -> None:
    """Have the ServerApp draw the same in every run: strategies sample nodes by :mod:`random`."""
    start = derive_seed(seed, "server app")
    random.seed(start)
    np.random.seed(start % 2**32)  # noqa: NPY002 - what apps draw from
    torch.manual_seed(start % 2**63)
