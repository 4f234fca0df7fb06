"""One simulated run from configuration to summary: opened, checked, set up, driven, summed up."""

import math
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

from mest_fed.client.kernels import given_table
from mest_fed.config import RunConfig, find_named, to_flat, to_toml
from mest_fed.data import save_partitions
from mest_fed.errors import InputError
from mest_fed.kernels.table import Table
from mest_fed.memory import Plan
from mest_fed.process_tasks import PROCESS_TASKS
from mest_fed.server.folder_names import CLIENTS, LABELS, LOG, PROVENANCE, ROUNDS
from mest_fed.server.modes import check_mode
from mest_fed.server.repeated_update import check_repeatable
from mest_fed.server.run_folder import RunFolder
from mest_fed.server.run_log import RUN_LOG, RunLog, logged
from mest_fed.server.strategy import MestStrategy
from mest_fed.server.summary import RunLogs, build_summary
from mest_fed.simulation.behaviour.clock import check_cohort, check_deadline, trace_of
from mest_fed.simulation.checkpoint import RunFacts
from mest_fed.simulation.client_state import DiskStates, VersionedStates
from mest_fed.simulation.engine.executor import make_executor
from mest_fed.simulation.fitted_plans import fitted, over_budget, refit
from mest_fed.simulation.fleet import Fleet, SharedData, TaskSetup, run_kernels
from mest_fed.simulation.label_counts import label_counts
from mest_fed.simulation.more_rounds import NewPlan
from mest_fed.simulation.peak_measurement import Peaks
from mest_fed.simulation.provenance import provenance_of
from mest_fed.simulation.rounds import OpenedRun, RunningRounds
from mest_fed.simulation.trackers.progress import Observer, Observers
from mest_fed.task import Task
from mest_fed.task_trials import try_examples, try_settings
from mest_fed.units import number_of

CLIENT_APP = "mest_fed.client.app:app"


@dataclass
class Simulation(OpenedRun):
    """A run about to start, with everything checked.

    Parameters
    ----------
    preset, config, folder, resumed, observer
        See :class:`OpenedRun`.
    plan : NewPlan, optional
        The configuration, where the run's folder does not say it yet.
    """

    plan: NewPlan | None = None

    @cached_property
    def task(self) -> Task:
        """The run's task."""
        return Task(self.config)

    @cached_property
    def fleet(self) -> Fleet:
        """The run's devices and their plans, which a resumed run has made before."""
        if self.resumed is None:
            return Fleet.of(self.task)
        facts = RunFacts.read(self.resumed.facts)
        return Fleet.of(self.task, facts.plans, facts.profiles)

    def run(self, workers: int, address: str | None = None, *, patience: float = math.inf) -> Path:
        """Run to the end; return the path of the run folder.

        Parameters
        ----------
        workers : int
            Ray worker processes; 0 runs all clients in this process, with the same result.
        address : str, optional
            Ray cluster to join. The data goes there by Ray.
        patience : float
            Seconds of wall-clock time after which a client counts as hung, where there are workers.

        Raises
        ------
        InputError
            If data, fleet, checkpoint, clients' states or table of kernels is unusable.
        Interrupted
            On Ctrl-C, after a checkpoint was written.
        """
        facts = None if self.resumed is None else RunFacts.read(self.resumed.facts)
        tell = self.observer
        fleet = self.fleet
        if self.config.training.kernels == "tuned" and facts is None:
            tell.phase("timing kernels")
        kernels = run_kernels(self.task, fleet, self.folder, resume=facts is not None)
        task = self.task.reconfigured(self.config, kernels.choices)
        flat = to_flat(self.config)
        if not task.draws_examples:
            flat |= {"data.partition_file": str(self.folder.partitions)}
        PROCESS_TASKS.put(flat, task)  # of the server, and of clients that run in this process
        options: dict[str, Any] = {}
        if workers:
            shares = address is not None or not task.data.reloads
            data = SharedData.of(task) if shares else None
            options = {"patience": patience, "setup": TaskSetup(flat, kernels.choices, data)}
        with (
            logged() as log,
            closing(Peaks(task, fleet.plans.values(), self.folder, kernels)) as measured,
            closing(make_executor(CLIENT_APP, workers, address, **options)) as executor,
        ):
            if (reason := task.why_torch(fleet.plans)) is not None:
                self._warn(reason)
            for name in fleet.changed_profiles():
                self._warn(
                    f"device profile {name} has changed since the run began; "
                    "the run goes on with the profile that it began with"
                )
            # All of this can fail, so the folder is left alone until it has not.
            if workers:
                # Both take the same cores: what the first phase takes is of both.
                beside = f", and {_measuring(measured.pending)}" if measured.pending else ""
                tell.phase(f"starting Ray with {number_of(workers, 'worker')}{beside}")
            executor.ensure_ready()
            if measured.pending:
                tell.phase(_measuring(measured.pending))
            peaks = measured.wait()
            if facts is None:  # a resumed run has its plans
                fleet, peaks = self._fit(task, fleet, measured), measured.wait()
                if (reason := fleet.nobody_trains(task)) is not None:
                    self._warn(reason)
            with self._open_folder(task, kernels, measured.by_key, log) as states:
                strategy = RunningRounds(self, task, fleet, states).drive(executor, peaks, flat)
                self._summarise(task, fleet, strategy, peaks)
        return self.folder.path

    def _fit(self, task: Task, fleet: Fleet, measured: Peaks) -> Fleet:
        """Return the fleet with plans made anew where a measured peak is over its budget."""
        over = over_budget(fleet.plans, measured.wait())
        if not over:
            return fleet
        self.observer.phase(
            f"planning anew: {number_of(len(over), 'plan')} over budget as measured"
        )
        refit(task, over, measured)
        for each in over:
            self._warn(each.in_words(measured.wait()))
        return Fleet.of(task, fitted(fleet.plans, over))

    def _warn(self, text: str) -> None:
        getLogger(RUN_LOG).warning("%s", text)
        self.observer.note(text)

    @contextmanager
    def _open_folder(
        self, task: Task, kernels: Table, peaks: Mapping[str, int], log: RunLog
    ) -> Iterator[VersionedStates]:
        """Have the run's folder, which is as it was before if the run ends without a checkpoint."""
        folder, resumed = self.folder, self.resumed
        if resumed is None:
            folder.begin(to_toml(self.config))
        else:
            folder.hold()
        expected = None if resumed is None else RunFacts.read(resumed.facts).states
        try:
            # A process of an earlier version holds the clients' states alone.
            with closing(DiskStates(folder.states, expected)) as states:
                if resumed is not None and self.plan is not None:
                    self.plan.write(folder, resumed)
                log.write_to(folder.path / LOG)
                folder.keep_facts(kernels, peaks)
                if resumed is None:
                    self._write_facts(task)
                if not task.draws_examples and not folder.partitions.exists():
                    save_partitions(folder.partitions, task.partitions)
                yield states
        except BaseException:
            if resumed is None and not folder.has_checkpoint:
                folder.discard()
            raise
        finally:
            folder.release()

    def _write_facts(self, task: Task) -> None:
        """Write down what the report says of the run beside its rounds."""
        self.folder.write_row(PROVENANCE, provenance_of(self.preset, self.config))
        if (labels := label_counts(task)) is not None:
            self.folder.write_row(LABELS, labels)

    def _summarise(
        self, task: Task, fleet: Fleet, strategy: MestStrategy, peaks: Mapping[Plan, int]
    ) -> None:
        logs = RunLogs(self.folder.logs.read(ROUNDS), self.folder.logs.read(CLIENTS))
        summary = build_summary(
            task, fleet.tiers, strategy, preset=self.preset, logs=logs, peaks=peaks
        )
        self.folder.write_model(task, strategy.model.state())
        self.folder.write_encoding(task.encoding)
        self.folder.write_summary(summary)
        if summary.warning:
            getLogger(RUN_LOG).warning("%s", summary.warning)


def _measuring(count: int) -> str:
    return f"measuring the memory of {number_of(count, 'plan')}, each for the first time here"


def open_run(
    preset: str,
    config: RunConfig | None,
    out: Path,
    *,
    resume: bool = False,
    more: int = 0,
    observer: Observer | None = None,
) -> Simulation:
    """Prepare a run in a folder: a new one, or the one that is there.

    Parameters
    ----------
    preset : str
        What the configuration is called in the summary and the report.
    config : RunConfig or None
        Of a new run; a resumed run has its own.
    out : Path
        The run folder.
    resume : bool
        Whether to go on with the run in the folder.
    more : int
        Rounds that a resumed run gets beyond those that it was planned for, if it is finished or
        not. Its schedules go on as those of a run of all these rounds.
    observer : Observer, optional
        Receives the rows of each round.

    Raises
    ------
    InputError
        If the folder is in use, holds nothing to resume, or data, fleet or the table of kernels
        are unusable. No folder is made here: :meth:`Simulation.run` does, as late as it can.
    """
    if observer is None:
        observer = Observers()
    elif not isinstance(observer, Observers):
        observer = Observers(observer)
    if resume:
        observer.phase("reading the checkpoint")
        return _reopened(preset, RunFolder(out), more, observer)
    if config is None:
        raise InputError("a new run needs a configuration")
    folder = RunFolder(out)
    folder.check_new()
    deployment = config.deployment
    if deployment.folder:
        raise InputError(
            f"deployment.folder = {deployment.folder!r} is for flwr run; allowed: --out"
        )
    if deployment.link:
        raise InputError(
            f"deployment.link = {deployment.link!r} is for real devices; allowed: nothing, or "
            "flwr run"
        )
    check_cohort(config)
    find_named(config)
    check_mode(config)
    simulation = Simulation(preset, config, folder, observer=observer)
    observer.phase(f"reading the data: {config.data.name}")
    task = simulation.task
    try_examples(task)
    check_repeatable(task)
    kinds = number_of(len(task.devices.counts), "kind")
    devices = number_of(config.fleet.devices, "device")
    observer.phase(f"planning the memory of {devices} of {kinds}")
    fleet = simulation.fleet
    trace_of(config, fleet.devices)
    tiers = [(tier.profile, tier.plan.density) for tier in fleet.tiers if tier.profile]
    narrowest = task.at_width(min(density for _, density in tiers))
    check_deadline(config, narrowest.spec, tiers)
    given_table(task)
    observer.phase(f"trying {config.model.name} on the devices' shares of the data")
    _ = task.partitions  # what is wrong with the data is found before workers start
    try_settings(task)
    return simulation


def _reopened(preset: str, folder: RunFolder, more: int, observer: Observers) -> Simulation:
    """Prepare to go on with the run in a folder."""
    config = folder.reopen(finished=more > 0)
    plan, snapshot = NewPlan.of(config, folder, more)
    RunFacts.read(snapshot.facts)  # what is wrong with them is found before anything is begun
    config = config if plan is None else plan.config
    simulation = Simulation(preset, config, folder, snapshot, observer, plan)
    if more:
        try_settings(simulation.task)  # a user's own schedule at other moments of progress
    return simulation
