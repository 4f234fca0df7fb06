"""The rounds of a simulated run: strategy, grid, clock, clients' states and run folder together."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, MessageType

from mest_fed.config import RunConfig
from mest_fed.config.load import Scalar
from mest_fed.errors import OwnThingError
from mest_fed.memory import Plan
from mest_fed.server.app import build_server_app
from mest_fed.server.flower_internals import run_server_app
from mest_fed.server.folder_names import CLIENTS, LOG, ROUNDS
from mest_fed.server.round_record import RoundRecord
from mest_fed.server.rows import client_rows, round_row
from mest_fed.server.run_folder import RunFolder
from mest_fed.server.run_log import log_failure
from mest_fed.server.strategy import MestStrategy
from mest_fed.simulation.behaviour.behaviour import memory_needs
from mest_fed.simulation.behaviour.clock import VirtualClock, trace_of
from mest_fed.simulation.checkpoint import RunFacts, Snapshot
from mest_fed.simulation.client_state import VersionedStates
from mest_fed.simulation.engine.executor import Executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import TaskResult
from mest_fed.simulation.fleet import Fleet
from mest_fed.simulation.trackers.progress import Observers
from mest_fed.task import Task


class Interrupted(Exception):
    """The run was stopped by Ctrl-C; its folder has a checkpoint of the last whole round."""


@dataclass
class OpenedRun:
    """A run of a folder.

    Parameters
    ----------
    preset : str
        What the configuration is called; a resumed run takes its own name from the checkpoint.
    config : RunConfig
        The run.
    folder : RunFolder
        Where it leaves what it finds.
    resumed : Snapshot, optional
        From which to go on.
    observer : Observers
        Receive the rows of each round, and what goes on between them.
    """

    preset: str
    config: RunConfig
    folder: RunFolder
    resumed: Snapshot | None = None
    observer: Observers = field(default_factory=Observers)


class RunningRounds:
    """A run in progress: connects the strategy, the grid, the clock and the folder."""

    def __init__(self, run: OpenedRun, task: Task, fleet: Fleet, states: VersionedStates) -> None:
        self.run = run
        self.states = states
        self.folder = run.folder
        self.task = task
        self.fleet = fleet
        self.snapshot: Snapshot | None = None  # until the strategy exists
        self.wall_before = 0.0

    def drive(
        self, executor: Executor, peaks: Mapping[Plan, int], flat: Mapping[str, Scalar]
    ) -> MestStrategy:
        """Run the ServerApp over devices whose plans have measured peaks; return its strategy."""
        config = self.run.config
        nodes = self.fleet.nodes(peaks)
        needs = memory_needs(self.fleet.plans, peaks)
        self.clock = VirtualClock(
            self.fleet.profiles,
            scheme=config.sparsity.scheme,
            seed=config.run.seed,
            deadline=config.fleet.deadline or None,
            behaviour=config.behaviour,
            trace=trace_of(config, self.fleet.devices),
            needs=self.fleet.by_node(needs) if config.behaviour.memory_pressure else None,
        )
        self.grid = EngineGrid(
            nodes,
            executor,
            run_config=flat,
            simulator=self.clock,
            states=self.states,
            stream=True,
            observer=self._task_ended,
        )
        self.started = time.perf_counter()
        try:
            run_server_app(build_server_app(self.prepare), self.grid, run_config=flat)
        except KeyboardInterrupt:
            if self.snapshot is not None:
                self.snapshot.save(self.folder.checkpoints)
            raise Interrupted from None
        except OwnThingError as error:
            if self.snapshot is None or not self.folder.has_checkpoint:
                raise  # nothing was computed
            self.snapshot.save(self.folder.checkpoints)
            log_failure("the run ends", error)
            log = self.folder.path / LOG
            raise OwnThingError(
                f"{error}; traceback: {log}; go on with: {self.folder.resume}"
            ) from error.__cause__
        finally:
            self.run.observer.end()
        return self.strategy

    def prepare(self, task: Task, strategy: MestStrategy) -> Callable[[RoundRecord], None]:
        """Restore the strategy if the run is resumed; return the observer of its rounds."""
        self.strategy = strategy
        snapshot = self.run.resumed
        if snapshot is not None:
            facts = RunFacts.read(snapshot.facts)
            snapshot.restore(strategy, self.grid, self.clock)
            self.states.rewind(strategy.first_round)
            self.wall_before = facts.wall_seconds
            self.run.preset = facts.preset
            # Round 0 is the evaluation before training, which is done anew.
            self.folder.logs.cut_to(facts.seal if strategy.first_round else None)
            self.run.resumed = None
        else:
            self.states.commit(0)
        self.kept_from = strategy.first_round
        self.snapshot = self._take_snapshot(self.wall_before)
        done = self.folder.logs.read(ROUNDS)
        self.run.observer.begin(task.config, self.run.preset, done)
        return self.round_done

    def round_done(self, record: RoundRecord) -> None:
        """Log a round, and write a checkpoint if one is due."""
        timings = self.clock.take_timings()
        wall = self.wall_before + time.perf_counter() - self.started
        row = round_row(record, timings, virtual_seconds=self.clock.now, wall_seconds=wall)
        tasks = client_rows(record, timings)
        self.folder.logs.append(CLIENTS, tasks)
        self.folder.logs.append(ROUNDS, [row])
        if record.round > 0:
            self.states.commit(record.round)
        self.snapshot = self._take_snapshot(wall)
        config = self.run.config.run
        ends = record.round == config.rounds or bool(self.strategy.progress.stopped)
        if record.round % config.checkpoint_every == 0 or ends:
            self._checkpoint(self.snapshot)
        self.run.observer.tasks_done(tasks)
        self.run.observer.round_done(row)

    def _task_ended(self, instruction: Message, result: TaskResult) -> None:
        del result  # the round's rows say how it ended
        kind = instruction.metadata.message_type
        if kind in (MessageType.TRAIN, MessageType.EVALUATE):
            self.run.observer.task_ended(kind)

    def _checkpoint(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, and forget states that neither it nor the one before needs."""
        snapshot.save(self.folder.checkpoints)
        self.states.prune(self.kept_from)
        self.kept_from = self.strategy.record.round

    def _take_snapshot(self, wall_seconds: float) -> Snapshot:
        facts = RunFacts(
            self.strategy.record.round,
            self.run.preset,
            wall_seconds,
            self.fleet.plans,
            self.fleet.kinds,
            self.folder.seal(self.run.config),
            self.states.digest(),
        )
        return Snapshot.take(self.strategy, self.grid, self.clock, run=facts.as_table())
