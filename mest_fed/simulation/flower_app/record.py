"""The record of a run of a Flower app: rows of its tasks and rounds, written as it goes on."""

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from flwr.app import Message, MessageType, MetricRecord, RecordDict

from mest_fed.run_rows.app import AppRoundRow
from mest_fed.run_rows.rounds import APP_CLIENTS_LACK, ClientRow
from mest_fed.run_rows.row import Row, as_row
from mest_fed.schema import FailureKind, TaskStatus, failure_of_code
from mest_fed.server.folder_names import CLIENTS, ROUNDS
from mest_fed.server.round_record import ClientTiming
from mest_fed.server.rows import count_failures, count_statuses, timed
from mest_fed.server.run_folder import RunFolder
from mest_fed.simulation.engine.interfaces import TaskResult, partition_of
from mest_fed.simulation.fleet_grid import SimulatedDevices
from mest_fed.simulation.trackers.progress import Watcher
from mest_fed.wire.records import content_bytes

#: What replies call their number of examples: today's apps, and those of NumPyClient.
_WEIGHTS = ("num-examples", "num_examples")
_MOST_PENDING_ROWS = 1000


class AppWatcher(Watcher, Protocol):
    """Sees a run of an app while it goes."""

    def begin_app(self, name: str, *, timed: bool) -> None:
        """Take the app's name, and whether its nodes have devices; rounds follow."""

    def round_done(self, row: Row) -> None:
        """Take a round's row of ``rounds.jsonl``."""


class AppRecord:
    """Writes the rows of a run as it goes on.

    A round begins with each exchange of training, unless its messages belong to the same round of
    the server as those before: by their group, or by the ``server-round`` that strategies write.
    What comes before the first is round 0.

    Parameters
    ----------
    folder : RunFolder
        Gets the rows.
    devices : SimulatedDevices, optional
        The fleet, if the nodes have devices.
    watcher : AppWatcher, optional
        Is told of tasks and rounds as they end.
    """

    def __init__(
        self,
        folder: RunFolder,
        devices: SimulatedDevices | None,
        watcher: AppWatcher | None = None,
    ) -> None:
        self._folder = folder
        self._devices = devices
        self._watcher = watcher
        self._rows: list[Row] = []
        self._round = _Round(0)
        self._server_round = ""
        self._pushed: dict[str, int] = {}
        # Flower's older strategies send from a pool of threads.
        self._lock = threading.Lock()
        self._began = time.perf_counter()
        self._rounds: list[AppRoundRow] = []
        #: How many tasks ended so, and failed for this, in the whole run.
        self.statuses: Counter[TaskStatus] = Counter()
        self.failures: Counter[FailureKind] = Counter()
        self.left_out = LeftOut()

    @property
    def rounds(self) -> Sequence[AppRoundRow]:
        """The rows of the rounds that are over."""
        return self._rounds

    def exchange(self, messages: Iterable[Message], now: float) -> None:
        """Begin a new round if messages of training are about to be sent."""
        first = next((m for m in messages if _kind(m) == MessageType.TRAIN), None)
        if first is None:
            return
        with self._lock:
            server_round = _server_round(first)
            if not server_round or server_round != self._server_round:
                self._end_round(now)
                self._round = _Round(self._round.number + 1)
            self._server_round = server_round

    def pushed(self, message_ids: Iterable[str]) -> None:
        """Remember of which round messages are whose replies are pulled later."""
        self._pushed |= dict.fromkeys(message_ids, self._round.number)

    def task_ended(self, instruction: Message, result: TaskResult) -> None:
        """Take in a task; see :data:`mest_fed.simulation.engine.interfaces.TaskObserver`."""
        with self._lock:
            self._take_in(instruction, result)

    def end(self, now: float) -> None:
        """Write what is not written yet."""
        with self._lock:
            self._end_round(now)

    def _take_in(self, instruction: Message, result: TaskResult) -> None:
        metadata, reply = instruction.metadata, result.reply
        number = self._pushed.pop(metadata.message_id, self._round.number)
        timing: ClientTiming | None = result.timing
        down = content_bytes(instruction.content) if timing is None else timing.bytes_down
        if timing is None:
            failure = failure_of_code(reply.error.code) if reply.has_error() else None
            up = 0 if reply.has_error() else content_bytes(reply.content)
        else:
            failure, up = timing.failure, timing.bytes_up
        kind = _kind(instruction)
        joules = (timing and timing.energy_joules) or 0.0
        self._round.count("failed" if failure else kind, up=up, down=down, joules=joules)
        if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
            return
        self._round.ends.append(failure)
        if failure is None:
            self._round.learn(kind, metrics_of(reply.content))
            for record in reply.content.metric_records.values():
                self.left_out.see(kind, number, record)
        status = TaskStatus.OK if failure is None else failure.status
        self.statuses[status] += 1
        if failure is not None:
            self.failures[failure] += 1
        row = ClientRow(
            round=number,
            type=kind,
            partition=partition_of(metadata.dst_node_id),
            device=self._device(metadata.dst_node_id),
            status=status,
            failure=failure,
            reason=(reply.error.reason if reply.has_error() else None) or None,
            bytes_down=down,
            bytes_up=up,
            **timed(timing),
        )
        self._rows.append(as_row(row, optional=APP_CLIENTS_LACK))
        if self._watcher is not None:
            self._watcher.task_ended(kind)
            self._watcher.tasks_done(self._rows[-1:])
        if len(self._rows) >= _MOST_PENDING_ROWS:
            self._write_tasks()

    def _end_round(self, now: float) -> None:
        self._write_tasks()
        if self._round.number == 0 and self._round.is_empty:
            return  # nothing was sent before training
        row = self._round.row(now, time.perf_counter() - self._began)
        self._rounds.append(row)
        self._folder.logs.append(ROUNDS, [as_row(row)])
        if self._watcher is not None:
            self._watcher.round_done(as_row(row))

    def _write_tasks(self) -> None:
        rows, self._rows = self._rows, []
        self._folder.logs.append(CLIENTS, rows)

    def _device(self, node_id: int) -> str:
        return "" if self._devices is None else self._devices.profile_of(node_id).name


class _Round:
    """The tasks that ended in one round, added up."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._bytes = {"bytes_down": 0, "bytes_up": 0}
        self._counts: Counter[str] = Counter()
        self._joules = 0.0
        #: Why tasks of training and evaluation failed; None: they did not.
        self.ends: list[FailureKind | None] = []
        #: Kind -> metric -> (sum of weights, weighted sum).
        self._means: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)

    @property
    def is_empty(self) -> bool:
        """Whether no task has ended in it."""
        return not self._counts

    def count(self, counted_as: str, *, up: int, down: int, joules: float) -> None:
        """Count a task of any kind, or as ``failed``, with its bytes and energy."""
        self._bytes["bytes_down"] += down
        self._bytes["bytes_up"] += up
        self._joules += joules
        self._counts[counted_as] += 1

    def learn(self, kind: str, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of a reply, weighted by its number of examples."""
        weight = next((metrics[key] for key in _WEIGHTS if metrics.get(key, 0) > 0), 1.0)
        means = self._means[kind]
        for name, value in metrics.items():
            if name not in _WEIGHTS:
                weights, total = means.get(name, (0.0, 0.0))
                means[name] = (weights + weight, total + weight * value)

    def row(self, now: float, wall_seconds: float) -> AppRoundRow:
        """Return the row of the round."""
        return AppRoundRow(
            round=self.number,
            virtual_seconds=now,
            wall_seconds=wall_seconds,
            bytes_up=self._bytes["bytes_up"],
            bytes_down=self._bytes["bytes_down"],
            trained=self._counts[MessageType.TRAIN],
            evaluated=self._counts[MessageType.EVALUATE],
            failed=self._counts["failed"],
            tasks=count_statuses(self.ends),
            failures=count_failures(self.ends),
            energy_joules=self._joules,
            train_metrics=self._mean(MessageType.TRAIN),
            evaluate_metrics=self._mean(MessageType.EVALUATE),
        )

    def _mean(self, kind: str) -> dict[str, float]:
        means = {name: total / weights for name, (weights, total) in self._means[kind].items()}
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _kind(message: Message) -> str:
    return str(message.metadata.message_type).partition(".")[0]


def _server_round(message: Message) -> str:
    """Return what a message calls the server's round; empty if it does not say."""
    if message.metadata.group_id:
        return str(message.metadata.group_id)
    records = message.content.config_records.values() if message.has_content() else ()
    return next((str(r["server-round"]) for r in records if "server-round" in r), "")


class LeftOut:
    """Counts the values of metrics that are not finite, which no mean and no curve can hold."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._last: dict[str, int] = {}  # round of the last value, of any kind
        self._lost: dict[str, int] = {}  # and of the last one that is not finite

    def see(self, kind: str, number: int, record: MetricRecord) -> None:
        """Take note of the metrics of a round: of a reply, or of a strategy's result."""
        for name, value in record.items():
            values = value if isinstance(value, list) else [value]
            key = f"{kind} {name}"
            self._last[key] = max(number, self._last.get(key, number))
            if not all(map(math.isfinite, values)):
                self.counts[key] += 1
                self._lost[key] = max(number, self._lost.get(key, number))

    @property
    def at_the_end(self) -> tuple[str, ...]:
        """Metrics of which a last value is not finite."""
        return tuple(sorted(key for key, number in self._lost.items() if number == self._last[key]))


def metrics_of(content: RecordDict) -> dict[str, float]:
    """Return the finite numbers in the MetricRecords of a reply, by name; the last one counts."""
    records = (record for record in content.values() if isinstance(record, MetricRecord))
    return {name: value for record in records for name, value in finite_numbers(record).items()}


def finite_numbers(record: MetricRecord) -> dict[str, float]:
    """Return the finite numbers in a MetricRecord, by name."""
    return {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
