"""Whole runs over the edge link end with the weights of their simulation, to the bit."""

import threading
import time
from dataclasses import replace
from itertools import groupby
from unittest.mock import patch

import pytest
from edge_processes import Edge, config_of, free_port, simulated

from mest_fed.link.messages import NodeDescription, ProgramKind
from mest_fed.link.node import worker
from mest_fed.link.node.conditions import Conditions
from mest_fed.link.node.room import Room
from mest_fed.link.node.runner import NodeRunner, NodeSetup
from mest_fed.link.node.store import NodeFolder
from mest_fed.link.node.transport import NodeLink, Patience
from mest_fed.link.node.worker import NodeWorker
from mest_fed.link.server.lean_run import LeanRun
from mest_fed.schema import FailureKind
from mest_fed.system.readings import Readings


class Node(threading.Thread):
    """A node in this process."""

    def __init__(self, edge, number, **how):
        super().__init__(daemon=True)
        device = edge.task.devices[number]
        description = NodeDescription(f"node{number}", profile_name=device, partition=number)
        patience = Patience(first=0.05, longest=0.3, altogether=10.0)
        self.link = NodeLink(
            f"127.0.0.1:{edge.port}", description, insecure=True, patience=patience
        )
        setup = NodeSetup(str(edge.folder / f"part{number}.npz"), edge.task.budget(device))
        folder = NodeFolder(edge.folder / f"state{number}")
        conditions = how.pop("conditions", setup.conditions)
        setup = replace(setup, conditions=conditions)
        self.runner = NodeRunner(self.link, description, setup, folder, **how)
        self.stopped = threading.Event()

    def run(self):
        with self.link:
            self.runner.run(self.stopped.is_set)

    def end(self):
        """Have it stop after its present instruction."""
        self.stopped.set()
        self.join(10.0)
        assert not self.is_alive()


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """Return the digest of the weights that the simulation of the run ends with."""
    return simulated(config_of(), tmp_path_factory.mktemp("simulated") / "run")


def trained_by_four(edge):
    """Have four nodes take part in the run of an edge in every round; return its summary."""
    edge.serve_here()
    nodes = [Node(edge, number) for number in range(4)]
    for node in nodes:
        node.start()
    summary = edge.ended_here()
    for node in nodes:
        node.end()
    assert {row["status"] for row in edge.rows("clients")} == {"ok"}
    return summary


def test_four_nodes_of_mixed_budgets_end_with_the_weights_of_the_simulation(
    tmp_path, caplog, digest
):
    config = config_of()
    with Edge(tmp_path, config) as edge:
        plans = {edge.task.plan(edge.task.budget(it), it).density for it in edge.task.devices}
        assert len(plans) == 2
        summary = trained_by_four(edge)
        assert "does not take part" not in caplog.text
    assert summary["model_sha256"] == digest


def test_nodes_leave_out_what_they_keep_frozen(tmp_path):
    config = config_of(memory={"frozen": 1}, run={"rounds": 2})
    encoded = patch.object(worker, "encode", wraps=worker.encode)
    with Edge(tmp_path, config) as edge, encoded as encode:
        summary = trained_by_four(edge)
        (frozen,) = {call.kwargs["frozen"] for call in encode.call_args_list}
        assert frozen == edge.task.untrained(1) != frozenset()
    assert summary["model_sha256"] == simulated(config, tmp_path / "simulated")


def test_a_program_that_is_never_built_costs_its_node_each_round_and_no_other(tmp_path, caplog):
    programs, asked = LeanRun.programs, []

    def build(run, info, request):
        if info.description.partition == 1 and request.kind is ProgramKind.STEP:
            asked.append(request)
            raise RuntimeError("no kernel fits")
        return programs(run, info, request)

    config = config_of(run={"rounds": 2})
    with Edge(tmp_path, config) as edge, patch.object(LeanRun, "programs", build):
        edge.serve_here()
        nodes = [Node(edge, number) for number in range(4)]
        for node in nodes:
            node.start()
        edge.ended_here()
        for node in nodes:
            node.end()
        rows = edge.rows("clients")
    reason = "the server cannot build this program: RuntimeError: no kernel fits"
    failed = [(row["round"], row["partition"], row["reason"]) for row in rows if row["failure"]]
    assert failed == [(number, 1, reason) for number in (1, 2)]
    assert {row["failure"] for row in rows if row["failure"]} == {FailureKind.CLIENT_ERROR}
    assert len(asked) == len(set(asked))
    said = [it.getMessage() for it in caplog.records if "is not built again" in it.getMessage()]
    assert len(said) == len(asked)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("conditions", "failure", "status"),
    [
        ("battery:30", FailureKind.BATTERY_LOW, "away"),
        ("plugged", FailureKind.BUSY, "declined"),
    ],
)
def test_a_node_that_may_not_train_is_left_out_and_the_round_completes(
    tmp_path, caplog, conditions, failure, status
):
    caplog.set_level("INFO", "mest_fed.server")
    with Edge(tmp_path, config_of(run={"rounds": 2})) as edge:
        edge.serve_here()
        told = iter([Readings(plugged=False, battery=20.0)])
        full = Readings(plugged=True, battery=80.0)
        how = {"conditions": Conditions.read(conditions), "told": lambda: next(told, full)}
        nodes = [Node(edge, number, **(how if number == 1 else {})) for number in range(4)]
        for node in nodes:
            node.start()
        edge.ended_here()
        for node in nodes:
            node.end()
        rows, rounds = edge.rows("clients"), edge.rows("rounds")
    failed = [(row["round"], row["partition"], row["failure"]) for row in rows if row["failure"]]
    assert failed == [(1, 1, failure)]
    assert [row["tasks"] for row in rounds if row["round"]] == [{"ok": 3, status: 1}, {"ok": 4}]
    (said,) = [it for it in caplog.records if "node1" in it.getMessage()]
    assert (said.levelname, " declined: the " in said.getMessage()) == ("INFO", True)


@pytest.mark.soak
def test_processes_with_certificates_and_limits_end_with_those_weights(tmp_path, digest):
    with Edge(tmp_path, config_of()) as edge:
        tls, enrolment = tmp_path / "tls", free_port()
        edge.command("certs", "new", str(tls), "--host", "127.0.0.1")
        edge.serve("--enrol", f"127.0.0.1:{enrolment}", link=("--certificates", str(tls)))
        nodes = []
        for number in range(4):
            token = edge.command("certs", "token", str(tls)).split()[-1]
            link = ["--enrol", f"127.0.0.1:{enrolment}", "--token", token]
            link += ["--authority", str(tls / "authority.pem")]
            device = edge.task.devices[number]
            # The last two are held by the system, and plan by what that leaves them.
            limits = ["--memory-limit", "120MB"] if number in (2, 3) else []
            assert number not in (2, 3) or edge.task.plan(40_000_000, device).micro_batch == 32
            nodes.append(edge.node(number, *limits, link=link, budget=not limits))
        assert edge.end() == 0, edge.logs()
        key = tmp_path / "state0" / "node.key"
        assert key.stat().st_mode & 0o777 == 0o600
        for node in nodes:
            node.terminate()
        assert [edge.end(node) for node in nodes] == [143] * 4
        assert "Traceback" not in "".join(edge.logs().values())
        for number in (2, 3):
            assert "memory held by" in edge.log(f"node{number}")
        assert {row["status"] for row in edge.rows("clients")} == {"ok"}
        assert edge.summary["model_sha256"] == digest


@pytest.mark.soak
class TestMemory:
    """A node whose memory runs short plans anew."""

    def test_a_node_goes_on_with_a_smaller_plan_after_a_memory_error(self, tmp_path):
        with Edge(tmp_path, config_of(run={"rounds": 2})) as edge:
            edge.serve_here()
            nodes = [Node(edge, number) for number in range(4)]
            train, failed = NodeWorker.train, []

            def no_room(worker, *arguments):
                if worker.run.partition == 1 and not failed:
                    failed.append(worker.run.predicted_peak)
                    raise MemoryError
                return train(worker, *arguments)

            with patch.object(NodeWorker, "train", no_room):
                for node in nodes:
                    node.start()
                edge.ended_here()
            for node in nodes:
                node.end()
            rows = edge.rows("clients")
            assert nodes[1].runner.room.asked <= 0.75 * failed[0]
        kinds = [(row["round"], row["partition"], row["failure"]) for row in rows if row["failure"]]
        assert kinds == [(1, 1, FailureKind.OUT_OF_MEMORY)]

    def test_a_node_whose_limit_shrinks_plans_anew_stays_out_below_the_least_and_comes_back(
        self, tmp_path, caplog, monkeypatch
    ):
        caplog.set_level("INFO", "mest_fed.node")
        left = [None]
        monkeypatch.setattr(Room, "left", lambda _: left[0])
        config = config_of(
            run={"rounds": 1000},
            fleet={"devices": 1, "mix": "rpi-4:1", "budgets": "rpi-4:2.5MB"},
            server={"min_nodes": 1, "clients_per_round": 1, "evaluate_clients_every": 0},
        )
        with Edge(tmp_path, config) as edge:
            edge.serve_here()
            node = Node(edge, 0, look_seconds=0.05)
            node.start()
            _until(lambda: "round 1: train" in caplog.text)
            left[0] = 1_300_000
            _until(lambda: "batches by 1," in caplog.text)
            left[0] = 100_000
            _until(lambda: "out of rounds until there is more" in caplog.text)
            _until(lambda: edge.link.nodes() == [])
            lines = len(caplog.records)
            time.sleep(0.5)
            said = [it for it in caplog.records[lines:] if it.name == "mest_fed.node"]
            assert said == []
            left[0] = 5_000_000
            _until(lambda: "takes part again: batches by 8" in caplog.text)
            _until(lambda: len(edge.link.nodes()) == 1)
            before = caplog.text.count("train in")
            _until(lambda: caplog.text.count("train in") > before)
            node.end()


def test_a_round_over_its_budget_counts_nothing_and_the_next_plan_is_smaller(tmp_path):
    config = config_of(
        run={"rounds": 3},
        fleet={"devices": 1, "mix": "rpi-4:1", "budgets": "rpi-4:3MB"},
        server={"min_nodes": 1, "clients_per_round": 1, "evaluate_clients_every": 0},
    )
    with Edge(tmp_path, config) as edge:
        edge.serve_here()
        node = Node(edge, 0)
        node.runner.room.alone = True  # it is, but for the server
        peaks = [3_400_000]
        with patch.object(Room, "added", lambda *_: peaks.pop() if peaks else 0):
            node.start()
            edge.ended_here()
            node.end()
        rows = edge.rows("clients")
    assert [row["failure"] for row in rows] == [FailureKind.OVER_BUDGET, None, None]
    assert "3.4 MB (measured) of 3 MB" in rows[0]["reason"]
    assert rows[0]["bytes_up"] == 0
    assert node.runner.room.asked == 2_600_000


def test_a_node_whose_battery_runs_short_trains_by_a_plan_of_less_work(tmp_path, caplog):
    caplog.set_level("INFO", "mest_fed.node")

    def told():
        trained = caplog.text.count(": train in")
        return Readings(plugged=trained >= 6, battery=80.0 if trained < 3 else 59.0)

    config = config_of(
        run={"rounds": 10},
        model={"name": "mlp", "options": {"hidden": [512, 512]}},
        sparsity={"density": 0.4},
        fleet={"devices": 1, "mix": "rpi-4:1", "budgets": "rpi-4:40MB"},
        server={"min_nodes": 1, "clients_per_round": 1, "evaluate_clients_every": 0},
    )
    with Edge(tmp_path, config) as edge:
        edge.serve_here()
        node = Node(edge, 0, conditions=Conditions.read("battery:20, saving:60"), told=told)
        node.start()
        edge.ended_here()
        node.end()
        rows = edge.rows("clients")
    densities = [round(row["density"], 2) for row in rows if row["status"] == "ok"]
    assert [each for each, _ in groupby(densities)] == [0.4, 0.1, 0.4]
    assert "40 MB to train in now, to spare the battery: " in caplog.text


def _until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
