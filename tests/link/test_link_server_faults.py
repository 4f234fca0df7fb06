"""A server that is killed or stopped, and goes on: its run ends as it would have ended."""

import json
import signal

import pytest
from edge_processes import Edge, config_of, free_port, simulated

from mest_fed.simulation.simulate import open_run

pytestmark = [pytest.mark.soak, pytest.mark.net]

#: Error feedback and forgetting on the nodes go back with the server: in five rounds it shows.
CONFIG = {"run": {"rounds": 5}}
SLOW = """
    import time
    from mest_fed.link.node.rounds import NodeRounds
    train = NodeRounds.train_round
    def later(self, received, order, forgetting):
        found = train(self, received, order, forgetting)
        if order.round == 3 and {number} == 3:
            time.sleep(3)
        return found
    NodeRounds.train_round = later
"""


def test_a_server_that_is_killed_repeats_its_round_and_nothing_counts_twice(tmp_path):
    digest = simulated(config_of(**CONFIG), tmp_path / "simulated")
    with Edge(tmp_path, config_of(**CONFIG)) as edge:
        server = edge.serve()
        nodes = [edge.node(number, dies=SLOW.format(number=number)) for number in range(4)]
        for number in range(3):  # these have trained round 3, and the fourth has not
            edge.line(f"node{number}", "round 3: train")
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert len(edge.rows("rounds")) == 3  # 0 is before training
        edge.serve(resume=True, name="again")
        assert edge.end() == 0, edge.log("again")
        assert all(node.poll() is None for node in nodes)  # all came back by themselves
        rows = [(row["round"], row["partition"]) for row in edge.rows("clients")]
        assert len(rows) == len(set(rows))
        for number in range(3):
            line = edge.line(f"node{number}", "is repeated")
            assert line.endswith("round 3 is repeated: back from round 3 to 2")
            assert edge.log(f"node{number}").count("round 3: train in") == 2
    assert edge.summary["model_sha256"] == digest


def test_a_finished_run_goes_on_for_more_rounds_as_its_simulation_does(tmp_path):
    config = config_of(run={"rounds": 2})
    simulated(config, tmp_path / "simulated")
    open_run("tiny", None, tmp_path / "simulated", resume=True, more=2).run(0)
    summary = json.loads((tmp_path / "simulated" / "summary.json").read_text("utf-8"))
    with Edge(tmp_path, config) as edge:
        edge.port = free_port()
        edge.serve()
        for number in range(4):
            edge.node(number)
        assert edge.end() == 0, edge.log("server")
        edge.line("node0", "the run has ended")
        edge.serve("--rounds", "2", resume=True, name="more")
        assert edge.end() == 0, edge.log("more")
        assert [row["round"] for row in edge.rows("rounds")] == [0, 1, 2, 3, 4]
        assert edge.summary["model_sha256"] == summary["model_sha256"]
        assert "dropped" not in edge.log("node0")
        for name in ("server", "more"):
            log = edge.log(name)
            assert not any(each in log for each in ("\x1b[", "ROUND", "Final results", "(empty!)"))
        assert [edge.log("more").count(f"round {number}: ") for number in (1, 2, 3, 4)] == [
            0,
            0,
            1,
            1,
        ]


def test_ctrl_c_ends_the_server_with_a_line_that_says_how_to_go_on(tmp_path):
    with Edge(tmp_path, config_of(run={"rounds": 400})) as edge:
        edge.port = free_port()  # the same when it goes on
        server = edge.serve()
        nodes = [edge.node(number) for number in range(4)]
        edge.line("node0", "round 2: train")
        server.send_signal(signal.SIGINT)
        assert edge.end(server) == 130
        log = edge.log("server")
        line = next(line for line in log.splitlines() if line.startswith("go on with: "))
        assert "Traceback" not in log
        assert log.rstrip().endswith("interrupted")
        command = line.removeprefix("go on with: mest-fed ").split()
        edge.processes.append(edge._start("again", ["-m", "mest_fed", *command]))
        last = edge.line("again", "going on after round")
        number = int(last.rpartition(" ")[2])
        edge.line("node0", f"round {number + 2}: train in")
        for node in nodes:
            assert node.poll() is None


def test_sigterm_and_ctrl_c_end_a_node_without_a_traceback(tmp_path):
    with Edge(tmp_path, config_of(run={"rounds": 400})) as edge:
        edge.serve_here()
        nodes = [edge.node(number) for number in range(4)]
        edge.line("node3", "round 1: train")
        for number, kind, status in ((0, signal.SIGTERM, 143), (1, signal.SIGINT, 130)):
            nodes[number].send_signal(kind)
            assert edge.end(nodes[number], seconds=10) == status
            assert "Traceback" not in edge.log(f"node{number}")
        edge.link.close()
        nodes[2].terminate()  # while there is no server
        assert edge.end(nodes[2], seconds=10) == 143
        assert "Traceback" not in edge.log("node2")
