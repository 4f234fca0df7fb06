"""Nodes that die, servers that start anew, deadlines that pass: over real sockets."""

import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
from link_parts import QUICK, Relay, node, serve, train

from mest_fed.link.node.session import InstructionOverError
from mest_fed.schema import FailureKind

DYING_NODE = """
    import os, signal, sys
    from mest_fed.link.node.transport import NodeDescription, NodeLink, NodeTls
    port, folder = sys.argv[1:]
    tls = NodeTls(*(open(os.path.join(folder, it), "rb").read() for it in ("cert", "key", "ca")))
    link = NodeLink(f"127.0.0.1:{port}", NodeDescription("pi-1"), tls=tls)
    link.register()
    instruction = link.wait()
    weights = link.fetch(instruction.objects["weights"])
    print(instruction.id, len(weights), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_node_that_was_killed_gets_its_instruction_again(authority, tmp_path):
    tls = authority.node("pi-1")
    for name, data in {"cert": tls.certificate, "key": tls.key, "ca": tls.authority}.items():
        (tmp_path / name).write_bytes(data)
    with serve(authority.server()) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(DYING_NODE), str(server.port), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        while not server.nodes():
            assert process.poll() is None
            time.sleep(0.01)
        server.submit(server.nodes()[0].id, train(deadline_seconds=60.0), {"weights": b"1234"})
        output, _ = process.communicate(timeout=20)
        assert process.returncode == -signal.SIGKILL
        assert output == "task-1 4\n"
        with node(server.port, "pi-1", tls) as again:
            again.register()
            instruction = again.wait()
            assert instruction.id == "task-1"
            assert instruction.deadline_seconds < 60
            assert again.fetch(instruction.objects["weights"]) == b"1234"
            assert again.report(instruction, {}, {"loss": 1.0})
        (outcome,) = server.poll()
        assert outcome.failure is None


def test_an_instruction_is_not_delivered_twice_to_a_node_that_has_it():
    with serve() as server, node(server.port) as link:
        link.register()
        server.submit(link.registration.node_id, train())
        assert link.wait().id == "task-1"
        assert link.wait() is None


def test_a_node_finds_a_server_that_was_started_anew(authority):
    tls, certificates = authority.node("pi-1"), authority.server()
    first = serve(certificates)
    with node(first.port, "pi-1", tls) as link:
        session = link.register().session
        first.submit(link.registration.node_id, train("lost"))
        lost = link.wait()
        port = first.port
        first.close()
        with serve(certificates, port=port) as second:
            assert not link.report(lost, {"update": b"1"}, {})  # nobody knows it any more
            assert [each.id for each in second.nodes()] == [link.registration.node_id]
            assert link.registration.session != session
            second.submit(link.registration.node_id, train("new"))
            instruction = link.wait()
            assert instruction.id == "new"
            assert link.report(instruction, {"update": b"1"}, {})
            assert second.poll()[0].objects == {"update": b"1"}


def test_a_node_that_works_while_the_server_starts_anew_registers_by_its_heartbeat():
    first = serve()
    with node(first.port) as link:
        link.register()
        first.submit(link.registration.node_id, train("lost"))
        link.wait()
        port = first.port
        first.close()
        with serve(port=port) as second:
            _until(lambda: link.over and second.nodes())


def test_a_wait_goes_on_over_a_cut_connection():
    with serve() as server, Relay(server.port) as relay, node(relay.port) as link:
        link.register()
        relay.cut()
        server.submit(link.registration.node_id, train())
        assert link.wait().id == "task-1"


def test_a_late_report_is_refused():
    with serve() as server, node(server.port) as link:
        link.register()
        server.submit(link.registration.node_id, train(deadline_seconds=0.3), {"w": b"1"})
        instruction = link.wait()
        assert 0 < instruction.deadline_seconds <= 0.3
        (outcome,) = server.poll(timeout=2.0)
        assert outcome.failure is FailureKind.DEADLINE
        assert 0.3 <= outcome.elapsed < 1.0
        with pytest.raises(InstructionOverError):
            link.fetch(instruction.objects["w"])
        assert not link.report(instruction, {"update": b"1" * 5000}, {})
        assert not link.fail(instruction, FailureKind.BUSY)
        assert server.poll() == []
        assert server._book.room.taken == 0


def test_a_node_learns_by_its_heartbeat_that_its_work_is_not_wanted():
    with serve() as server, node(server.port) as link:
        link.register()
        server.submit(link.registration.node_id, train())
        link.wait()
        time.sleep(0.5)
        assert not link.over
        server.withdraw(link.registration.node_id, "task-1")
        _until(lambda: link.over)
        assert [each.failure for each in server.poll()] == [FailureKind.SURPLUS]


def test_a_node_that_fell_silent_is_not_there_and_one_that_works_is():
    with (
        serve() as server,
        node(server.port, "silent") as silent,
        node(server.port, "busy") as busy,
    ):
        silent.register()
        busy.register()
        silent._session.stop()  # no more heartbeats
        _until(lambda: len(server.nodes()) == 1)
        assert [each.description.name for each in server.nodes()] == ["busy"]
        server.submit(silent.registration.node_id, train())
        assert [each.failure for each in server.poll()] == [FailureKind.AWAY]


def test_a_node_that_is_silent_for_long_is_forgotten_with_its_instruction():
    limits = replace(QUICK, gone_seconds=1.5)
    with serve(limits=limits) as server, node(server.port) as link:
        link.register()
        server.submit(link.registration.node_id, train(), {"w": b"1"})
        link.wait()
        link.close(leave=False)
        (outcome,) = server.poll(timeout=5.0)
        assert outcome.failure is FailureKind.WENT_AWAY
        assert server._book.objects.bytes == 0
        with node(server.port) as again:
            again.register()
            assert again.wait() is None


def _until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
