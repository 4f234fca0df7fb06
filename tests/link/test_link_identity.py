"""Who gets something of an edge link's server, and who gets nothing."""

import threading
import time

import grpc
import pytest
from link_parts import Authority, node, serve, train

from mest_fed.errors import InputError, RefusedError
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.codec import EDGE_LINK
from mest_fed.link.node.transport import NodeDescription, NodeLink, Patience
from mest_fed.link.server.edge_server import EdgeServer

BRIEFLY = Patience(first=0.05, longest=0.1, altogether=0.3, call_seconds=2.0)


@pytest.fixture(scope="module")
def server(authority):
    blocked = {"blocked"}
    with serve(authority.server(), admit=lambda it: it.name not in blocked) as server:
        server.blocked = blocked
        yield server


def test_a_certificate_of_another_authority_gets_nothing(server, authority):
    stranger = Authority().node("pi-1", believes=authority.pem)
    with node(server.port, "pi-1", stranger, patience=BRIEFLY) as link, pytest.raises(InputError):
        link.register()
    assert server.nodes() == []


def test_an_expired_certificate_gets_nothing(server, authority):
    with (
        node(server.port, "pi-1", authority.node("pi-1", days=-1), patience=BRIEFLY) as link,
        pytest.raises(InputError),
    ):
        link.register()
    assert server.nodes() == []


def test_a_node_without_a_certificate_gets_nothing(server, authority):
    credentials = grpc.ssl_channel_credentials(authority.pem)
    with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            _raw(channel, "Register", pb.RegisterRequest(version=1, name="pi-1"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_node_does_not_believe_another_server(server, authority):
    deceived = authority.node("pi-1", believes=Authority().pem)
    with node(server.port, "pi-1", deceived, patience=BRIEFLY) as link, pytest.raises(InputError):
        link.register()


def test_a_certificate_that_is_not_admitted_gets_nothing(server, authority):
    with (
        node(server.port, "pi-1", authority.node("blocked")) as link,
        pytest.raises(RefusedError, match="not admitted"),
    ):
        link.register()
    assert server.nodes() == []


def test_a_certificate_that_is_blocked_later_gets_no_more(server, authority):
    with node(server.port, "pi-1", authority.node("late")) as link:
        link.register()
        server.blocked.add("late")
        with pytest.raises(RefusedError, match="not admitted"):
            link.wait()
    assert server.nodes() == []


def test_another_ones_session_is_worth_nothing(server, authority):
    with (
        node(server.port, "mine", authority.node("mine")) as mine,
        node(server.port, "yours", authority.node("yours")) as yours,
    ):
        mine.register()
        stolen = yours.register().session
        identifier = mine.registration.node_id
        server.submit(yours.registration.node_id, train("for-yours"))
        for call, message in {
            "Wait": pb.WaitRequest(session=stolen),
            "Heartbeat": pb.HeartbeatRequest(session=stolen),
            "Report": pb.ReportRequest(session=stolen, instruction="for-yours"),
            "Leave": pb.LeaveRequest(session=stolen),
        }.items():
            with pytest.raises(Exception, match="another certificate") as refused:
                mine._channel.unary(call, message)
            assert refused.value.code == "PERMISSION_DENIED"
        # Nor does an instruction of another's become one's own.
        assert yours.wait().id == "for-yours"
        message = pb.ReportRequest(session=mine.registration.session, instruction="for-yours")
        with pytest.raises(Exception, match="not open for this node"):
            mine._channel.unary("Report", message)
        assert identifier != yours.registration.node_id
        assert server.poll() == []
    assert [each.reason for each in server.poll()] == ["the node left"]


def test_a_report_counts_once(server, authority):
    with node(server.port, "pi-1", authority.node("pi-1")) as link:
        link.register()
        server.submit(link.registration.node_id, train())
        early = pb.ReportRequest(session=link.registration.session, instruction="task-1")
        with pytest.raises(Exception, match="not open"):  # it was not given to the node yet
            link._channel.unary("Report", early)
        instruction = link.wait()
        assert link.report(instruction, {}, {"loss": 1.0})
        with pytest.raises(Exception, match="reported before") as refused:
            link._channel.unary("Report", early)
        assert refused.value.code == "ALREADY_EXISTS"
        assert len(server.poll()) == 1


def test_the_same_certificate_elsewhere_ends_the_first_session(server, authority, caplog):
    caplog.set_level("INFO", "mest_fed.link")
    tls = authority.node("pi-1")
    with node(server.port, "first", tls) as first, node(server.port, "second", tls) as second:
        first.register()
        told = []
        waits = threading.Thread(target=lambda: told.append(_refusal_of(first.wait)))
        waits.start()
        time.sleep(0.2)
        second.register()
        waits.join(timeout=0.7)  # sooner than its Wait ends
        assert told[0].startswith("another process took part with this certificate")
        assert "give each node its own" in told[0]
        assert "Wait refused: ABORTED: another process took part" in caplog.text  # the server's
        (info,) = server.nodes()
        assert info.description.name == "second"
        assert info.id == second.registration.node_id == first.registration.node_id


def test_node_ids_stay_over_restarts(authority):
    tls, found = authority.node("pi-1"), set()
    for _ in range(2):
        with serve(authority.server()) as server, node(server.port, "pi-1", tls) as link:
            found.add(link.register().node_id)
    assert len(found) == 1
    assert 0 <= found.pop() < 2**63


def test_another_version_is_refused(server, authority):
    with node(server.port, "pi-1", authority.node("pi-1")) as link:
        with pytest.raises(Exception, match="version 2; spoken: 1") as refused:
            link._channel.unary("Register", pb.RegisterRequest(version=2, name="pi-1"))
        assert refused.value.code == "UNIMPLEMENTED"


def test_there_is_no_reflection_and_no_enrolment_where_nodes_work(server, authority):
    tls = authority.node("pi-1")
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
    with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
        for path in (
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.health.v1.Health/Check",
            "/mest_fed.link.v1.Enrolment/Enrol",
        ):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(path)(b"", timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_health_service_answers_where_it_is_asked_for():
    with (
        serve(health=True) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
        assert answer == b"\x08\x01"  # status: SERVING


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.7", "example.org"])
def test_without_tls_it_stays_on_this_machine(host):
    address = f"{host}:9443"
    with pytest.raises(InputError, match="loopback"):
        serve_at(address)
    with pytest.raises(InputError, match="loopback"):
        serve_at(f"{host}:0")
    with pytest.raises(InputError, match="loopback"):
        NodeLink(address, NodeDescription("pi-1"), insecure=True)


@pytest.mark.parametrize(
    "address", ["", "9443", ":9443", "::1:9443", "host:", "host:70000", "host:x"]
)
def test_an_address_is_host_and_port(address):
    with pytest.raises(InputError, match="HOST:PORT"):
        serve_at(address)


def test_certificates_or_insecure_but_not_both(authority):
    description = NodeDescription("pi-1")
    for insecure in (True, False):
        tls = (authority.server(), authority.node("pi-1")) if insecure else (None, None)
        with pytest.raises(InputError, match="needs certificates"):
            serve_at("127.0.0.1:0", tls=tls[0], insecure=insecure)
        with pytest.raises(InputError, match="needs certificates"):
            NodeLink("127.0.0.1:1", description, tls=tls[1], insecure=insecure)


def test_a_port_in_use_is_one_line(server):
    with pytest.raises(InputError, match=r"cannot listen on 127\.0\.0\.1") as error:
        serve(port=server.port)
    assert "\n" not in str(error.value)


def serve_at(address, *, tls=None, insecure=True):
    return EdgeServer(address, describe=lambda _: "{}", tls=tls, insecure=insecure)


def _raw(channel, name, message):
    method = EDGE_LINK[name]
    call = channel.unary_unary(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.reply.FromString,
    )
    return call(message, timeout=3)


def _refusal_of(call):
    try:
        call()
    except RefusedError as error:
        return str(error)
    return "none"
