"""A deployed run's folder on the server: the same files as a simulation leaves."""

import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from logging import getLogger
from pathlib import Path

from mest_fed.config import RunConfig, to_flat, to_toml
from mest_fed.errors import InputError
from mest_fed.run_rows.facts import Provenance
from mest_fed.run_rows.row import Row
from mest_fed.server.checkpoint import (
    checkpoint_name,
    checkpoint_of_run,
    load_newest,
    restore_strategy,
    save_checkpoint,
    strategy_arrays,
)
from mest_fed.server.exchange import DeviceGrid
from mest_fed.server.folder_names import CLIENTS, ENCODING, LOG, PROVENANCE, ROUNDS
from mest_fed.server.node import Node
from mest_fed.server.real_devices import (
    built_in_profile,
    real_devices,
    reported_peaks,
    tier_plans,
)
from mest_fed.server.round_record import ClientOutcome, ClientTiming, RoundRecord
from mest_fed.server.rows import client_rows, round_row
from mest_fed.server.run_folder import FLOWER_KEYS, RunFolder
from mest_fed.server.run_log import SERVER_LOG, log_failure, logged, shown_by_flower
from mest_fed.server.seal import read_seal
from mest_fed.server.strategy import MestStrategy
from mest_fed.server.summary import RunLogs, build_summary
from mest_fed.strict_json import read_json
from mest_fed.task import Task

log = getLogger("flwr.mest_fed")


class DeployedRun:
    """Keeps a run of real devices in a folder, and goes on with one that was stopped.

    Times are real: a client's is from its instruction to its reply, transfers included. The run's
    time stands still until the nodes of its first round are there. Energy is
    modelled: the power of its device's profile while it computes, over that time. Of a device whose
    profile is not on the server it is not known.

    Parameters
    ----------
    task : Task
        The run's task.
    strategy : MestStrategy
        Fresh; a resumed run's state is put into it.
    grid : DeviceGrid
        Knows how long devices took.
    run_id : int
        Flower's id of the run, which names the folder where the configuration does not.
    bundle : Path, optional
        The folder that this process imports the run's code from; Flower makes one for each version.
    about : Provenance, optional
        What is known of the run before it begins, which a new folder keeps.

    Raises
    ------
    InputError
        If the folder is in use, or has no run of this configuration to go on with.
    """

    def __init__(
        self,
        task: Task,
        strategy: MestStrategy,
        grid: DeviceGrid,
        *,
        run_id: int,
        bundle: Path | None = None,
        about: Provenance | None = None,
    ) -> None:
        self.task = task
        self.strategy = strategy
        strategy.keeps_reports = True
        self.grid = grid
        self._nodes: dict[int, Node] = {}
        self._seconds_before = 0.0
        deployment = task.config.deployment
        path = Path(deployment.folder or f"runs/flwr-{run_id}").expanduser().absolute()
        self.folder = RunFolder(path, FLOWER_KEYS, bundle)
        with ExitStack() as stack:
            self._open_folder(stack, resume=deployment.resume)
            if about is not None and not deployment.resume:
                self.folder.write_row(PROVENANCE, about)
            log.info("run folder: %s", path)
            stack.enter_context(logged(SERVER_LOG)).write_to(path / LOG)
            stack.enter_context(shown_by_flower(SERVER_LOG))
            self._open = stack.pop_all()
        self._started = time.monotonic()

    def __enter__(self) -> "DeployedRun":
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            log_failure("the run ends", error)
        self._open.close()

    def round_done(self, record: RoundRecord) -> Row:
        """Log a round and write its checkpoint: a round of real devices is worth one.

        Its row is returned.
        """
        self._nodes |= {node.partition: node for node in self.strategy.clients.nodes.values()}
        seconds = self._seconds(time.monotonic())
        timings = [self._timing(outcome) for outcome in record.clients]
        self.grid.durations.clear()
        row = round_row(record, timings, virtual_seconds=seconds, wall_seconds=seconds)
        self.folder.logs.append(CLIENTS, client_rows(record, timings))
        self.folder.logs.append(ROUNDS, [row])
        arrays, facts = strategy_arrays(self.strategy)
        facts["wall_seconds"] = seconds
        facts["seal"] = self.folder.seal(self.task.config)
        facts["nodes"] = [asdict(node) for node in self._nodes.values()]
        save_checkpoint(self._checkpoint(record.round), arrays, facts)
        # The last two stay, and as many as a simulation keeps.
        if (record.round - 2) % self.task.config.run.checkpoint_every:
            self._checkpoint(record.round - 2).unlink(missing_ok=True)
        return row

    def finish(self) -> None:
        """Write the model, the summary and, where its packages are installed, the report."""
        model, folder = self.strategy.model, self.folder
        logs = RunLogs(folder.logs.read(ROUNDS), folder.logs.read(CLIENTS))
        nodes = list(self._nodes.values())
        tiers = tier_plans(self.task, nodes)
        summary = build_summary(
            self.task,
            tiers,
            self.strategy,
            preset=self._base() or folder.path.name,
            logs=logs,
            peaks=reported_peaks(tiers, nodes, logs.clients),
            nodes=real_devices(nodes, logs.clients),
        )
        folder.write_model(self.task, model.state())
        self._write_encoding()
        folder.write_summary(summary)
        if summary.warning:
            getLogger(SERVER_LOG).warning("%s", summary.warning)
        log.info("the model, the summary and the rows of all rounds are in %s", folder.path)
        write_report(folder.path)

    def _base(self) -> str:
        """Return the preset that the run began with; empty where it is not known."""
        place = self.folder.path / PROVENANCE
        return str(read_json(place, dict).get("base", "")) if place.exists() else ""

    def _write_encoding(self) -> None:
        try:
            self.folder.write_encoding(self.task.encoding)
        except InputError as error:  # a server that does not evaluate may be without the data
            log.warning("no %s was written: %s", ENCODING, error)

    def _open_folder(self, stack: ExitStack, *, resume: bool) -> None:
        """Have the folder for this process until the stack is left."""
        folder = self.folder
        if not resume:
            folder.check_new()
            folder.begin(to_toml(self.task.config))
        else:
            check_same(folder.reopen(), self.task.config, folder.path)
            folder.hold()
        stack.callback(folder.release)
        if resume:
            self._resume()

    def _resume(self) -> None:
        folder = self.folder
        arrays, facts = load_newest(folder.checkpoints)
        with checkpoint_of_run():
            seal = read_seal(facts)
        folder.check_seal(seal)
        restore_strategy(self.strategy, arrays, facts)
        self.strategy.forget_devices()
        try:
            self._seconds_before = float(facts["wall_seconds"])
            self._nodes = {node["partition"]: Node(**node) for node in facts["nodes"]}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the checkpoint is not of a deployed run: {error}") from None
        # Round 0 is the evaluation before training, which is done anew.
        folder.logs.cut_to(seal if self.strategy.first_round else None)
        log.info("going on after round %d", self.strategy.first_round)

    def _checkpoint(self, number: int) -> Path:
        return self.folder.checkpoints / checkpoint_name(number)

    def _seconds(self, moment: float) -> float:
        """Return how long the run has gone at a moment, without the wait for its first nodes."""
        here = moment - self._started - self.strategy.clients.first_wait
        return self._seconds_before + max(0.0, here)

    def _timing(self, outcome: ClientOutcome) -> ClientTiming:
        took = self.grid.durations.get(outcome.node_id)
        profile = built_in_profile(outcome.device)
        if took is None:
            joules = None if profile is None else 0.0
            return ClientTiming(outcome.node_id, "train", outcome.failure, energy_joules=joules)
        return ClientTiming(
            outcome.node_id,
            "train",
            outcome.failure,
            start=self._seconds(took.start),
            train_seconds=took.seconds,
            energy_joules=None if profile is None else profile.compute_watts * took.seconds,
        )


def write_report(folder: Path) -> None:
    """Write the report of a run folder; where that fails, log a warning that says why."""
    # The report's package is above the server's, so its command writes it.
    done: subprocess.CompletedProcess[str] | None = None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mest_fed", "report", str(folder)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("no report was written: %s", error)
        return
    if done.returncode:
        log.warning("no report was written: %s", " ".join(done.stderr.split()))
    else:
        log.info("report: %s", folder / "report.html")


#: What another command line does.
_MORE = ("run.rounds", "--resume")


def check_same(old: RunConfig, new: RunConfig, path: Path, key: str = "deployment.resume") -> None:
    """Compare the run's configuration with that of its folder, where both say what to train.

    Parameters
    ----------
    old, new : RunConfig
        Of the folder, and of the run that is to go on in it.
    path : Path
        The folder.
    key : str
        What asks to go on.

    Raises
    ------
    InputError
        If they differ.
    """
    kept, given = to_flat(old), to_flat(new)
    for name, value in kept.items():
        if given[name] != value and not name.startswith("deployment."):
            more = "; for more rounds: --resume --rounds N" if (name, key) == _MORE else ""
            raise InputError(
                f"{name} = {given[name]!r} is not allowed with {key}; "
                f"allowed: {value!r}, as the run in {path} began{more}"
            )
