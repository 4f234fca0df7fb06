"""Nodes that die, lie or are slow, links that break: rounds complete, nothing counts twice."""

import contextlib
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from edge_processes import Edge, config_of, killed_at, simulated
from link_parts import Relay

from mest_fed.errors import RefusedError
from mest_fed.link.description import RunDescription
from mest_fed.link.messages import InstructionKind, NodeDescription
from mest_fed.link.node.data import read_examples
from mest_fed.link.node.programs import NodePrograms
from mest_fed.link.node.transport import NodeLink, Patience
from mest_fed.link.node.worker import NodeState, NodeWorker
from mest_fed.schema import FailureKind
from mest_fed.wire.npy import HEADER, read_npy

pytestmark = [pytest.mark.soak, pytest.mark.net]

#: Where a node is killed, and whether it has trained the round then.
PHASES = {
    "waits": (killed_at("transport:NodeLink.wait", before=False), False),
    "fetches": (killed_at("transfers:Transfers.fetch"), False),
    "trains": (killed_at("rounds:NodeRounds.train_round"), False),
    "has trained": (killed_at("rounds:NodeRounds.train_round", before=False), False),
    "saves": (killed_at("store:NodeFolder.write", when="args[1] == 'state.npz'"), False),
    "has saved": (killed_at("store:StateStore.save", before=False), True),
    "uploads": (killed_at("transfers:Transfers.upload"), True),
    "has uploaded": (killed_at("transport:NodeLink._send"), True),
    "evaluates": (killed_at("worker:NodeWorker.evaluate", before=False), False),
}


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    return simulated(config_of(), tmp_path_factory.mktemp("simulated") / "run")


def statuses(edge):
    """Return how each task of the run ended, and how often."""
    return Counter((row["failure"] or row["status"]) for row in edge.rows("clients"))


@pytest.mark.parametrize("phase", PHASES)
def test_a_node_that_is_killed_and_restarted_loses_nothing(tmp_path, phase, digest):
    dies, trained = PHASES[phase]
    with Edge(tmp_path, config_of()) as edge:
        edge.serve_here()
        for number in range(1, 4):
            edge.node(number)
        victim = edge.node(0, dies=dies)
        assert edge.end(victim) == -signal.SIGKILL
        edge.node(0)
        summary = edge.ended_here()
        log = edge.log("node0")
        assert statuses(edge) == {"ok": 12}
    assert summary["model_sha256"] == digest
    assert ("done before, reported again" in log) == trained
    assert log.count("round 1: train in") == 1


def test_a_node_that_dies_of_each_attempt_reports_a_failure_and_goes_on(tmp_path):
    dies = killed_at("rounds:NodeRounds.train_round", when="args[2].round == 1")
    with Edge(tmp_path, config_of()) as edge:
        edge.serve_here()
        for number in range(1, 4):
            edge.node(number)
        for _ in range(2):
            assert edge.end(edge.node(0, dies=dies)) == -signal.SIGKILL
        edge.node(0, dies=dies)
        edge.ended_here()
        assert edge.log("node0").count("the process died 2 times while it worked on this") == 1
        failed = [(row["round"], row["failure"]) for row in edge.rows("clients") if row["failure"]]
    assert failed == [(1, FailureKind.WORKER_DIED)]


def test_a_link_that_is_cut_throttled_and_delayed_loses_nothing(tmp_path, digest):
    with Edge(tmp_path, config_of()) as edge:
        edge.serve_here()
        with (
            Relay(edge.port) as cut,
            Bad(edge.port, rate=60_000) as slow,
            Bad(edge.port, 0.15) as far,
        ):
            for number, relay in enumerate((cut, slow, far, None)):
                edge.node(number, port=relay.port if relay else 0)
            thread = edge.thread
            while thread.is_alive():
                thread.join(0.4)
                cut.cut()
            summary = edge.ended_here()
        assert cut.cuts > 3
        assert statuses(edge) == {"ok": 12}
    assert summary["model_sha256"] == digest


def test_a_slow_node_misses_its_deadline_and_its_late_report_does_not_count(tmp_path):
    slow = """
        import time
        from mest_fed.link.node.rounds import NodeRounds
        train = NodeRounds.train_round
        def later(self, received, order, forgetting):
            time.sleep(9 if order.round == 1 else 0)
            return train(self, received, order, forgetting)
        NodeRounds.train_round = later
    """
    config = config_of(fleet={"deadline": 6.0}, server={"evaluate_clients_every": 0})
    with Edge(tmp_path, config) as edge:
        edge.serve_here()
        for number in range(1, 4):
            edge.node(number)
        edge.node(0, dies=slow)
        edge.ended_here()
        edge.line("node0", "round 1: train in", seconds=10)
        rows = [row for row in edge.rows("clients") if row["partition"] == 0]
        assert rows[0]["failure"] in (FailureKind.DEADLINE, FailureKind.NO_REPLY)
        late = [line for line in edge.log("node0").splitlines() if "round 1: " in line]
        assert len(late) == 1
        assert late[0].endswith("too late to count")
        assert edge.link._book.room.taken == 0
        assert statuses(edge)["ok"] >= 9


#: What a malicious node makes of an honest update and its numbers.
LIES = {
    "nan": lambda objects, metrics: spoil(objects, np.nan),
    "huge": lambda objects, metrics: spoil(objects, 3e38),
    "examples": lambda objects, metrics: metrics.update({"num-examples": 1e9}),
    "presented": lambda objects, metrics: metrics.update({"presented": 1e9}),
    "no header": lambda objects, metrics: objects.pop(HEADER),
    "rubbish": lambda objects, metrics: objects.update({HEADER: b"\0" * 2000}),
    "nothing": lambda objects, metrics: objects.clear(),
    "more": lambda objects, metrics: objects.update({"extra": b"\x93NUMPY" + b"\xff" * 100_000}),
}


def spoil(objects, value):
    for name, data in objects.items():
        if name != HEADER:
            array = read_npy(name, bytes(data)).copy()
            if array.dtype == np.float32:
                array.flat[0] = value
                objects[name] = bytes(data[: len(data) - array.nbytes]) + array.tobytes()


@pytest.mark.parametrize("lie", [*LIES, "wrong mask"])
def test_a_malicious_update_is_rejected_and_costs_its_sender_alone(tmp_path, lie, caplog):
    config = config_of(wire={"upload": "fp32"}, run={"rounds": 2})
    with Edge(tmp_path, config) as edge:
        edge.serve_here()
        for number in range(1, 4):
            edge.node(number)
        liar = threading.Thread(target=lies, args=(edge, lie), daemon=True)
        liar.start()
        edge.ended_here()
        liar.join(10.0)
        rows = edge.rows("clients")
        assert edge.link._book.room.taken == 0
    mine = [row for row in rows if row["partition"] == 0]
    others = [row["status"] for row in rows if row["partition"] != 0]
    assert [row["failure"] for row in mine] == [FailureKind.UPDATE_REJECTED] * 2, mine
    assert set(others) == {"ok"}
    lines = [it.getMessage() for it in caplog.records if "was rejected" in it.getMessage()]
    assert len([line for line in lines if line.startswith("the update of node")]) == 2
    assert all("\n" not in line for line in lines)


def lies(edge, lie):
    """Take part as node 0 with honest training and dishonest updates."""
    device = edge.task.devices[0]
    path = str(edge.folder / "part0.npz")
    with np.load(path) as file:
        count = len(file["targets"])
    said = NodeDescription(
        "liar",
        profile_name=device,
        budget_bytes=edge.task.budget(device),
        examples=count,
        partition=0,
    )
    patience = Patience(first=0.05, longest=0.2, altogether=2.0)
    link = NodeLink(f"127.0.0.1:{edge.port}", said, insecure=True, patience=patience)
    with link, contextlib.suppress(RefusedError):  # the server has gone
        run = RunDescription.read(link.register().run_json)
        worker = NodeWorker(
            run, read_examples(path, run.inputs), NodePrograms(link.program), NodeState()
        )
        while edge.thread.is_alive():
            instruction = link.wait()
            if instruction is None:
                continue
            objects = {name: link.fetch(ref) for name, ref in instruction.objects.items()}
            if instruction.kind is InstructionKind.EVALUATE:
                link.report(instruction, {}, worker.evaluate(objects))
                continue
            if lie == "wrong mask":
                worker.rounds.train_round = other_mask(worker.rounds.train_round)
            made, metrics = worker.train(objects, instruction.round, instruction.scalars)
            if lie in LIES:
                LIES[lie](made, metrics)
            link.report(instruction, made, metrics)


def other_mask(train_round):
    def changed(received, order, forgetting):
        state, totals, work = train_round(received, order, forgetting)
        group = next(iter(state.masks))
        slots = state.masks[group].copy()
        free = np.setdiff1d(np.arange(slots[-1] + 1, dtype=np.int32), slots)
        slots[0] = free[0]
        masks = {**state.masks, group: np.sort(slots)}
        return replace(state, masks=masks), totals, work

    return changed


class Bad(Relay):
    """A relay that holds data back: so many seconds, or so that no more bytes a second pass."""

    def __init__(self, port, delay=0.0, *, rate=0.0):
        self._delay, self._rate = delay, rate
        super().__init__(port)

    def _pass(self, one, other, way):
        if not (self._delay or self._rate):
            return super()._pass(one, other, way)

        class Slow:
            def recv(slow, size):
                data = one.recv(4096)
                time.sleep(self._delay + (len(data) / self._rate if self._rate else 0.0))
                return data

            def shutdown(slow, how):
                one.shutdown(how)

        return super()._pass(Slow(), other, way)
