"""Bytes that are no messages, messages that are too much, idle connections: it lives on."""

import contextlib
import logging
import os
import random
import socket
import ssl
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from link_parts import QUICK, node, serve, train

from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.codec import EDGE_LINK
from mest_fed.link.messages import ObjectRef

LIMITS = replace(
    QUICK,
    wait_seconds=0.02,
    stall_seconds=0.3,
    handshake_seconds=1.0,
    upload_bytes=100_000,
    node_bytes=150_000,
    calls_per_second=1e5,
    call_burst=10**6,
    programs_per_second=1e5,
)
#: What a client meets that does not know how to behave.
ANSWERS = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "ALREADY_EXISTS",
    "OUT_OF_RANGE",
    "DATA_LOSS",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
}
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def server(authority):
    with serve(authority.server(), limits=LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def link(server, authority):
    with node(server.port, "pi-1", authority.node("pi-1")) as link:
        link.register()
        yield link


@pytest.fixture(autouse=True)
def no_traceback(caplog):
    """Nothing that a client does leaves a traceback, or an error of another's logger."""
    with caplog.at_level(logging.INFO):
        yield
    for record in caplog.records:
        assert record.exc_info is None, record
        assert record.levelno < logging.ERROR, record
        assert "\n" not in record.getMessage()


@pytest.fixture(autouse=True)
def it_lives_on(server, authority):
    yield
    with node(server.port, "after", authority.node("after")) as link:
        link.register()
        server.submit(link.registration.node_id, train("after"), {"weights": b"1" * 5000})
        instruction = None
        while instruction is None:
            instruction = link.wait()
        assert link.report(instruction, {"u": link.fetch(instruction.objects["weights"])}, {})
    assert server.poll()[-1].objects == {"u": b"1" * 5000}


def status_of(link, name, data):
    """Send bytes, or a list of them, as a call; return its status."""
    method, channel = EDGE_LINK[name], link._channel._connected()
    kind = {(0, 0): "unary_unary", (0, 1): "unary_stream", (1, 0): "stream_unary"}
    call = getattr(channel, kind[method.streams_in, method.streams_out])(method.path)
    try:
        answer = call(iter(data) if method.streams_in else data, timeout=3)
        if method.streams_out:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


UNARY = sorted(name for name, method in EDGE_LINK.items() if not method.streams_in)


@FUZZ
@given(st.sampled_from(UNARY), st.binary(max_size=400))
def test_any_bytes_get_a_status(link, name, data):
    assert status_of(link, name, data) in ANSWERS


@FUZZ
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_parts_get_a_status(link, parts):
    assert status_of(link, "Upload", parts) in ANSWERS


texts, numbers = st.text(max_size=80), st.integers(0, 2**64 - 1)
refs = st.builds(pb.ObjectRef, sha256=st.binary(max_size=40), bytes=numbers)
metrics = st.one_of(
    st.builds(pb.Metric, number=st.floats()),
    st.builds(pb.Metric, numbers=st.builds(pb.Numbers, values=st.lists(st.floats(), max_size=9))),
)
failures = st.builds(pb.Failure, kind=st.integers(-3, 300), reason=texts)


def some(key, value):
    return st.dictionaries(key, value, max_size=5)


@FUZZ
@given(st.data())
def test_any_fields_of_a_known_session_get_a_status(server, link, data):
    session = link.registration.session
    if not any(each.open for each in server.nodes()):
        server.submit(link.registration.node_id, train("open"), {"weights": b"w"})
    status_of(link, "Wait", pb.WaitRequest(session=session).SerializeToString())
    message = data.draw(
        st.one_of(
            st.builds(
                pb.ReportRequest,
                session=st.just(session),
                instruction=st.sampled_from(["open", "x", ""]),
                objects=some(texts, refs),
                metrics=some(texts, metrics),
                failure=st.none() | failures,
                peak_bytes=numbers,
                seconds=st.floats(),
            ),
            st.builds(
                pb.FetchRequest,
                session=st.just(session),
                sha256=st.just(ObjectRef.of(b"w").sha256) | st.binary(max_size=40),
                offset=numbers,
            ),
            st.builds(
                pb.ProgramRequest,
                session=st.just(session),
                kind=st.integers(-2, 9),
                examples=st.integers(0, 2**32 - 1),
                counts=some(texts, numbers),
            ),
            st.builds(pb.WaitRequest, session=st.just(session), last_seen=texts),
            st.builds(pb.HeartbeatRequest, session=st.just(session), instruction=texts),
            st.builds(
                pb.UploadStateRequest,
                session=st.just(session),
                instruction=st.sampled_from(["open", ""]),
                sha256=st.binary(max_size=40),
            ),
        )
    )
    name = type(message).__name__.removesuffix("Request")
    assert status_of(link, name, message.SerializeToString()) in ANSWERS
    for outcome in server.poll():
        for value in outcome.metrics.values():
            assert np.isfinite(value).all()
        assert outcome.reason.isprintable()
        assert set(map(bytes, outcome.objects.values())) <= {b""}  # nothing was uploaded


@FUZZ
@given(
    st.lists(
        st.builds(
            pb.Part,
            sha256=st.just(ObjectRef.of(b"1" * 2000).sha256) | st.binary(max_size=33),
            bytes=st.sampled_from([2000, 0, 1500, 10**6, 2**63, 2**64 - 1]),
            offset=st.sampled_from([0, 1024, 2000, 2**63]),
            data=st.sampled_from([b"1" * 1024, b"1" * 976, b"1" * 1025, b"", b"2" * 1024]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_uploads_get_a_status_and_bounded_memory(server, link, parts):
    if not any(each.open for each in server.nodes()):
        server.submit(link.registration.node_id, train("open"))
    session = link.registration.session
    status_of(link, "Wait", pb.WaitRequest(session=session).SerializeToString())
    parts[0].session, parts[0].instruction = session, "open"
    data = [each.SerializeToString() for each in parts]
    assert status_of(link, "Upload", data) in ANSWERS
    assert 0 <= server._book.room.taken <= LIMITS.upload_bytes


def test_a_large_message_is_refused(server, link):
    assert status_of(link, "Report", b"\x1a" * 1_000_000) == "RESOURCE_EXHAUSTED"
    part = pb.Part(session=link.registration.session, data=bytes(5000)).SerializeToString()
    assert status_of(link, "Upload", [part]) in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
    toml = pb.RegisterRequest(version=1, name="pi-1", profile_toml="x" * 20_000)
    assert status_of(link, "Register", toml.SerializeToString()) == "INVALID_ARGUMENT"


def test_parts_are_neither_too_small_nor_too_large(server, link):
    server.submit(link.registration.node_id, train("parts"))
    while (instruction := link.wait()) is None or instruction.id != "parts":
        if instruction is not None:
            link.report(instruction, {}, {})
    ref = ObjectRef.of(b"1" * 2500)
    first = pb.Part(
        session=link.registration.session, instruction="parts", sha256=ref.sha256, bytes=2500
    )

    def answer_to(*sizes, offset=0):
        first.offset, first.data = offset, b"1" * sizes[0]
        parts = [first, *(pb.Part(data=b"1" * size) for size in sizes[1:])]
        return status_of(link, "Upload", [each.SerializeToString() for each in parts])

    assert answer_to(1023, 1024, 453) == "INVALID_ARGUMENT"
    assert answer_to(1025, 1024, 451) == "INVALID_ARGUMENT"
    assert answer_to(1024, offset=1) == "OUT_OF_RANGE"
    assert answer_to(1024, 1000, 476) == "INVALID_ARGUMENT"
    assert answer_to(1024, 452, offset=1024) == "OK"
    assert link.report(instruction, {"u": b"1" * 2500}, {})
    server.poll()


def test_an_upload_that_stands_still_is_ended_and_the_number_of_transfers_is_bounded(server, link):
    server.submit(link.registration.node_id, train("still"))
    while (instruction := link.wait()) is None or instruction.id != "still":
        if instruction is not None:
            link.report(instruction, {}, {})
    method, channel = EDGE_LINK["Upload"], link._channel._connected()

    def stalling(number):
        data = bytes([number]) * 1024
        part = pb.Part(session=link.registration.session, instruction="still", bytes=4096)
        part.sha256, part.data = ObjectRef.of(data * 4).sha256, data
        yield part.SerializeToString()
        time.sleep(0.7)

    begun, ended = time.monotonic(), []
    calls = [channel.stream_unary(method.path).future(stalling(it)) for it in range(6)]
    for call in calls:
        call.add_done_callback(lambda _: ended.append(time.monotonic() - begun))
    assert {call.code().name for call in calls} == {"RESOURCE_EXHAUSTED"}
    while len(ended) < len(calls):
        time.sleep(0.01)
    at_once = sum(each < LIMITS.stall_seconds for each in ended)
    assert at_once == len(calls) - LIMITS.streams
    link.report(instruction, {}, {})


def test_calls_are_counted(authority):
    limits = replace(QUICK, calls_per_second=1.0, call_burst=10)
    with (
        serve(authority.server(), limits=limits) as server,
        node(server.port, "fast", authority.node("fast")) as fast,
        node(server.port, "slow", authority.node("slow")) as slow,
    ):
        fast.register()
        slow.register()
        message = pb.HeartbeatRequest(session=fast.registration.session).SerializeToString()
        codes = [status_of(fast, "Heartbeat", message) for _ in range(15)]
        assert codes[:8] == ["OK"] * 8
        assert codes[-1] == "RESOURCE_EXHAUSTED"
        message = pb.HeartbeatRequest(session=slow.registration.session).SerializeToString()
        assert status_of(slow, "Heartbeat", message) == "OK"


def test_connections_that_send_a_byte_now_and_then_hold_nobody_up_and_are_closed(server, authority):
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            for _ in range(40)
        ]
        hello = _client_hello()
        begun = time.monotonic()
        with node(server.port, "pi-2", authority.node("pi-2")) as link:
            link.register()
            assert time.monotonic() - begun < 0.8
        assert not any(map(_is_closed, slow[:3]))
        for position in range(16):  # a byte of what would be a handshake, from every other one
            for each in slow[::2]:
                with contextlib.suppress(OSError):
                    each.send(hello[position : position + 1])
            time.sleep(0.1)
        assert all(map(_is_closed, slow))


def test_a_connection_without_calls_is_closed(server, authority, tmp_path):
    tls = authority.node("idle")
    (tmp_path / "pem").write_bytes(tls.certificate + tls.key)
    context = ssl.create_default_context(cadata=tls.authority.decode())
    context.load_cert_chain(tmp_path / "pem")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", server.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as idle,
    ):
        idle.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
        idle.settimeout(2.5)
        begun = time.monotonic()
        while idle.recv(4096):
            pass
        assert 0.3 < time.monotonic() - begun < 2.4


def test_garbage_on_the_port_holds_nobody_up(server):
    draw = random.Random(1)
    for length in (1, 100, 70_000):
        with (
            socket.create_connection(("127.0.0.1", server.port)) as garbage,
            contextlib.suppress(OSError),
        ):
            garbage.sendall(draw.randbytes(length))


def _client_hello():
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            ssl.MemoryBIO(), sent, server_hostname="127.0.0.1"
        ).do_handshake()
    return sent.read()


def _is_closed(each):
    each.settimeout(0.02)
    try:
        while each.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.soak
@settings(FUZZ, max_examples=3000)
@given(st.sampled_from(UNARY), st.binary(max_size=2000))
def test_many_more_bytes_get_a_status(link, name, data):
    assert status_of(link, name, data) in ANSWERS


def test_descriptors_do_not_pile_up(server, authority):
    begun = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with node(server.port, "pi-3", authority.node("pi-3")) as link:
            link.register()
    time.sleep(0.1)
    assert len(os.listdir("/proc/self/fd")) < begun + 10
