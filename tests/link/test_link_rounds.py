"""Nodes and a server over real sockets: instructions, objects, uploads that break off and go on."""

import os
import threading
import time

import pytest
from link_parts import QUICK, RUN, Relay, node, serve, train

from mest_fed.errors import WireError
from mest_fed.link.messages import Instruction, InstructionKind, ObjectRef
from mest_fed.link.server.objects import Blob
from mest_fed.schema import FailureKind


@pytest.fixture(scope="module")
def server(authority):
    with serve(authority.server()) as server:
        yield server


def test_a_node_registers_and_works_on_two_instructions(server, authority):
    weights = os.urandom(5000)
    with node(server.port, "pi-7", authority.node("pi-7"), examples=40, partition=4) as link:
        registration = link.register()
        (info,) = server.nodes()
        assert (info.id, info.description.examples) == (registration.node_id, 40)
        assert info.identity.name == "pi-7"
        assert registration.run_json == RUN
        scalars = {"rate": 0.5, "steps": -3, "last": True, "scheme": "block"}
        server.submit(info.id, train("one", scalars=scalars), {"weights": weights})
        server.submit(info.id, Instruction("two", InstructionKind.EVALUATE, 1))

        first = link.wait()
        assert (first.id, first.kind, first.scalars) == ("one", InstructionKind.TRAIN, scalars)
        assert first.deadline_seconds == 0
        assert link.fetch(first.objects["weights"]) == weights
        assert link.report(first, {"update": b"12345"}, {"loss": 0.5}, peak_bytes=7, seconds=1.5)
        second = link.wait()
        assert (second.id, second.kind) == ("two", InstructionKind.EVALUATE)
        assert link.fail(second, FailureKind.OVER_BUDGET, "it took\n9 MB", peak_bytes=9)
        assert link.wait() is None

    trained, evaluated = server.poll()
    assert (trained.node_id, trained.instruction.id) == (info.id, "one")
    assert (trained.failure, trained.objects) == (None, {"update": b"12345"})
    assert (trained.metrics, trained.peak_bytes, trained.seconds) == ({"loss": 0.5}, 7, 1.5)
    assert 0 < trained.elapsed < 5
    assert (evaluated.failure, evaluated.reason) == (FailureKind.OVER_BUDGET, "it took 9 MB")
    assert server.nodes() == []


def test_a_node_is_told_its_name_and_of_another_that_claims_its_share(server, authority):
    first = node(server.port, "pi-1", authority.node("pi-1"), partition=4)
    second = node(server.port, "pi-2", authority.node("pi-2"), partition=4)
    other = node(server.port, "pi-3", authority.node("pi-3"), partition=5)
    with first as one, second as two, other as three:
        told = [each.register() for each in (one, two, three)]
    assert [each.name for each in told] == ["pi-1", "pi-2", "pi-3"]
    assert [bool(each.notice) for each in told] == [False, True, False]
    assert "the node pi-1 claims partition 4, too" in told[1].notice


def test_a_large_upload_arrives_in_small_chunks_and_leaves_no_bytes_behind(server, authority):
    update = os.urandom(3_000_000)
    with node(server.port, "pi-7", authority.node("pi-7")) as link:
        link.register()
        server.submit(server.nodes()[0].id, train())
        assert link.report(link.wait(), {"update": update, "same": update}, {})
    (outcome,) = server.poll()
    assert outcome.objects == {"update": update, "same": update}
    assert server._book.room.taken == 0
    assert server._book.objects.bytes == 0


def test_an_upload_that_was_cut_goes_on_where_it_stood(server, authority):
    update = os.urandom(1_500_000)
    with Relay(server.port) as relay, node(relay.port, "pi-7", authority.node("pi-7")) as link:
        link.register()
        server.submit(server.nodes()[0].id, train())
        instruction = link.wait()

        def received():
            caller = server.nodes()[0].identity, link.registration.session
            return server._book.received(*caller, instruction.id, ObjectRef.of(update).sha256)

        cutter = threading.Thread(target=_cut_at, args=(relay, received, 1_000_000))
        cutter.start()
        assert link.report(instruction, {"update": update}, {})
        cutter.join()
        assert (relay.cuts, relay.connections) == (1, 2)
        # What was on its way is sent twice: 2 MB at most. Had it begun again, 2.5 MB at least.
        assert relay.up < 2_300_000
    (outcome,) = server.poll()
    assert outcome.objects["update"] == update


def test_a_download_that_was_cut_goes_on_where_it_stood(server, authority):
    weights = os.urandom(2_000_000)
    with Relay(server.port) as relay, node(relay.port, "pi-7", authority.node("pi-7")) as link:
        link.register()
        server.submit(server.nodes()[0].id, train(), {"weights": weights})
        instruction = link.wait()
        cutter = threading.Thread(target=_cut_at, args=(relay, lambda: relay.down, 600_000))
        cutter.start()
        assert link.fetch(instruction.objects["weights"]) == weights
        cutter.join()
        assert (relay.cuts, relay.connections) == (1, 2)
        assert relay.down < 1.6 * len(weights)
        assert link.fail(instruction, FailureKind.BUSY)
    server.poll()


def _cut_at(relay, passed, size):
    end = time.monotonic() + 5
    while passed() < size and time.monotonic() < end:
        time.sleep(0.0005)
    relay.cut()


def test_a_node_fetches_nothing_but_what_it_is_due(server, authority):
    with node(server.port, "pi-7", authority.node("pi-7")) as link:
        link.register()
        server.submit(server.nodes()[0].id, train(), {"weights": b"secret"})
        with pytest.raises(Exception, match="not due"):  # not given yet
            link.fetch(ObjectRef.of(b"secret"))
        instruction = link.wait()
        with pytest.raises(Exception, match="not due"):
            link.fetch(ObjectRef.of(b"another's"))
        assert link.fetch(instruction.objects["weights"]) == b"secret"
        with pytest.raises(WireError, match="at most"):
            link.fetch(ObjectRef(bytes(32), 1 << 40))
    server.poll()


def test_fifty_nodes_register_and_do_a_round():
    weights, names = Blob(os.urandom(20_000)), [f"node-{i}" for i in range(50)]

    def work(name):
        with node(server.port, name) as link:
            link.register()
            registered.wait()
            while (instruction := link.wait()) is None:
                pass
            data = link.fetch(instruction.objects["weights"])
            assert link.report(instruction, {"update": data + name.encode()}, {"loss": 1.0})

    registered = threading.Barrier(51, timeout=20)
    with serve(limits=QUICK) as server:
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        registered.wait()
        infos = server.nodes()
        for each in infos:
            server.submit(each.id, train(f"for-{each.id}"), {"weights": weights})
        outcomes = []
        while len(outcomes) < 50:
            found = server.poll(timeout=10)
            assert found
            outcomes += found
        for thread in threads:
            thread.join()
        name_of = {each.id: each.description.name for each in infos}
        expected = {each.id: bytes(weights.data) + name_of[each.id].encode() for each in infos}
        assert {each.node_id: bytes(each.objects["update"]) for each in outcomes} == expected
        assert server._book.room.taken == 0
