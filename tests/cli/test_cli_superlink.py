"""Whether a SuperLink takes a device: each cause is one line, on a server that answers as told."""

import re
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tls_files import write_key, write_tls

from mest_fed.cli import superlink
from mest_fed.cli.link_errors import ClockError, PassingError, UnreachableError
from mest_fed.cli.superlink import Link, ask, wait_for_superlink
from mest_fed.errors import InputError, RefusedError

#: What a SuperLink answers to the activation of a key that it knows.
KNOWN = (400, b'{"code": 2003, "detail": "."}')
UNKNOWN = (412, b'{"code": 2004, "detail": "."}')
#: To an activation that it makes: node 5.
ACTIVE = (200, b"\x08\x05")


class Server(ThreadingHTTPServer):
    """Answers each call with the next of its answers; the last one stays."""

    def __init__(self, answers, tls=None, ahead=0.0):
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers, self.ahead, self.calls = list(answers), ahead, []
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "server.pem", tls / "server.key")
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def address(self):
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """Say nothing of clients that hang up."""


class Answering(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        self.rfile.read(int(self.headers["content-length"]))
        server.calls.append((self.path, dict(self.headers)))
        status, body = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        self.send_response_only(status)
        now = datetime.now(UTC) + timedelta(seconds=server.ahead)
        self.send_header("date", format_datetime(now, usegmt=True))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve():
    started = []

    def start(*answers, **options):
        server = Server(answers, **options)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_tls(tmp_path_factory.mktemp("tls"))
    write_key(folder / "node.key")
    return folder


def link_of(server, files, key=True):
    key = files / "node.key" if key else None
    return Link.read(server.address, False, files / "ca.pem", key)


def refusal(link, kind=RefusedError):
    with pytest.raises(kind) as caught:
        ask(link)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_registered_key_is_taken_and_deactivated_again(serve, files):
    server = serve(KNOWN, ACTIVE, (200, b""), tls=files)
    ask(link_of(server, files))
    paths, (headers, *_) = zip(*server.calls, strict=True)
    assert [path.removeprefix("/v1/fleet/") for path in paths] == [
        "activate-node",
        "activate-node",
        "deactivate-node",
    ]
    assert datetime.fromisoformat(headers["flwr-timestamp"]).tzinfo is not None


def test_without_a_key_one_is_registered_and_taken_back(serve):
    server = serve((200, b"\x08\x05"), (200, b""))
    ask(Link.read(server.address, True, None, None))
    assert [path for path, _ in server.calls] == [
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
    ]


def test_a_key_that_is_not_registered(serve, files):
    line = refusal(link_of(serve(UNKNOWN, tls=files), files))
    assert line.startswith(f"the SuperLink does not know the key in {files / 'node.key'}")
    assert "flwr supernode register" in line


def test_a_key_whose_device_is_connected(serve, files):
    line = refusal(link_of(serve(KNOWN, UNKNOWN, tls=files), files), PassingError)
    assert line == (
        f"a device with the key in {files / 'node.key'} is connected: another one, or this one "
        "until it was cut off, which the SuperLink notices within 60 s"
    )


def test_a_key_is_needed(serve):
    server = serve((412, b'{"code": 2001, "detail": "."}'))
    assert "--auth-key FILE" in refusal(Link.read(server.address, True, None, None))


@pytest.mark.parametrize(
    ("ahead", "way"),
    [(-30, "ahead of"), (-7, "ahead of"), (-86400, "ahead of"), (310, "behind"), (400, "behind")],
)
def test_a_clock_that_is_off(serve, files, ahead, way):
    server = serve((401, b'{"detail": "."}'), tls=files, ahead=ahead)
    line = refusal(link_of(server, files), ClockError)
    number, said = re.fullmatch(
        r"this machine's clock is about (\d+) s (.+) the SuperLink's; allowed: up to 5 s ahead "
        "and 305 s behind",
        line,
    ).groups()
    assert said == way
    assert int(number) == pytest.approx(abs(ahead), abs=2)  # the server's date has whole seconds


@pytest.mark.parametrize("ahead", [0, 200])
def test_a_signature_that_is_refused(serve, files, ahead):
    line = refusal(link_of(serve((401, b'{"detail": "."}'), tls=files, ahead=ahead), files))
    assert line == "the SuperLink refuses this device's signature (HTTP status 401)"


@pytest.mark.parametrize("report", [(404, b"not here"), (200, b""), (500, b"{}"), (412, b"[1]")])
def test_another_server(serve, files, report):
    line = refusal(link_of(serve(report, tls=files), files))
    assert f"answers HTTP status {report[0]}, as no SuperLink of Flower 1.41 or 1.42 does" in line


def test_what_speaks_no_http():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet():
            with server.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=greet)
        thread.start()
        line = refusal(Link.read(f"127.0.0.1:{port}", True, None, None))
        thread.join()
    assert "answers, but not as a SuperLink does" in line


def test_a_server_with_tls_asked_without_it(serve, files):
    # The server may close the connection before it was read, or reset it.
    with pytest.raises(RefusedError, match="if it speaks TLS: --root-certificates FILE"):
        ask(Link.read(serve(KNOWN, tls=files).address, True, None, None))


def test_a_server_without_tls_asked_with_it(serve, files):
    line = refusal(link_of(serve(KNOWN), files), InputError)
    assert "does not speak TLS" in line
    assert "--insecure" in line


def test_another_authority(serve, files, tmp_path):
    other = write_tls(tmp_path / "other")
    link = Link.read(serve(KNOWN, tls=files).address, False, other / "ca.pem", None)
    line = refusal(link, InputError)
    assert f"cannot be verified by --root-certificates = '{other / 'ca.pem'}'" in line


def test_a_certificate_for_another_host(serve, tmp_path):
    tls = write_tls(tmp_path, name="127.0.0.2")
    line = refusal(
        Link.read(serve(KNOWN, tls=tls).address, False, tls / "ca.pem", None), InputError
    )
    assert "127.0.0.1" in line
    assert "host name" in line


def test_a_certificate_that_has_expired(serve, tmp_path):
    tls = write_tls(tmp_path, days=-1)
    line = refusal(
        Link.read(serve(KNOWN, tls=tls).address, False, tls / "ca.pem", None), InputError
    )
    assert "certificate has expired" in line


@pytest.mark.parametrize("content", [b"", b"not a certificate", b"\xff\xfe", "key", "cut"], ids=str)
def test_a_file_that_is_no_certificate(files, tmp_path, content):
    file = tmp_path / "ca.pem"
    if content == "key":
        content = (files / "server.key").read_bytes()
    elif content == "cut":
        content = (files / "ca.pem").read_bytes()[:200]
    file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"--root-certificates = .*a PEM file of certificates \(.+"
    ):
        Link.read("127.0.0.1:8000", False, file, None)


@pytest.mark.parametrize("content", [None, b"", b"no key", "pem", "folder"], ids=str)
def test_a_file_that_is_no_key(files, tmp_path, content):
    file = tmp_path / "key"
    if content == "folder":
        file.mkdir()
    elif content == "pem":
        file.write_bytes((files / "server.key").read_bytes())
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"--auth-key = .*ssh-keygen -t ecdsa -b 384") as caught:
        Link.read("127.0.0.1:8000", False, files / "ca.pem", file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1", ":8000", "a:0", "a b:8000", "::1:8000", "a?b:1"])
def test_what_is_no_address(address):
    allowed = r"HOST:PORT with a port from 1 to 65535, such as 192\.168\.1\.10:8000"
    with pytest.raises(InputError, match=rf"--superlink = .*{allowed}"):
        Link.read(address, True, None, None)


def test_nothing_listens_there(files):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    line = refusal(Link.read(address, True, None, None), UnreachableError)
    assert line == f"no SuperLink at {address}: Connection refused"


def test_a_name_that_does_not_resolve():
    line = refusal(Link.read("no-such-host.invalid:8000", True, None, None), UnreachableError)
    assert line.startswith("no SuperLink at no-such-host.invalid:8000: ")


def test_a_server_that_never_answers(monkeypatch):
    monkeypatch.setattr(superlink, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        refusal(Link.read(address, True, None, None), UnreachableError)


def test_a_server_that_comes_later_is_waited_for(serve, files, monkeypatch, capsys):
    monkeypatch.setattr(superlink, "FIRST_PAUSE", 0.01)
    server = serve((503, b""), (502, b""), KNOWN, ACTIVE, tls=files)
    wait_for_superlink(link_of(server, files), 60)
    assert len(server.calls) == 2 + 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{server.address} answers HTTP status 503; waiting for up to 60 s"


def test_a_clock_that_is_set_meanwhile_is_waited_for(serve, files, monkeypatch, capsys):
    monkeypatch.setattr(superlink, "FIRST_PAUSE", 0.01)
    server = serve((401, b""), (401, b""), KNOWN, ACTIVE, tls=files, ahead=9000)
    wait_for_superlink(link_of(server, files), 60)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"this machine's clock is about (8999|9000) s behind .*; waiting for up", line)


def test_a_certificate_that_is_not_valid_yet(serve, tmp_path):
    tls = write_tls(tmp_path, days=60, begin=30)
    server = serve(KNOWN, tls=tls)
    line = refusal(Link.read(server.address, False, tls / "ca.pem", None), ClockError)
    assert re.match(r"this machine's clock says \d{4}-\d\d-\d\d \d\d:\d\d UTC; the certi", line)


@pytest.fixture
def proxy(monkeypatch, serve):
    """Have the environment name a proxy that refuses all; return its address."""
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    address = serve((403, b"")).address
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://me:secret@{address}")
    return address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_is_asked_for_loopback(serve, proxy, host):
    server = serve(ACTIVE, (200, b""))
    ask(Link.read(f"{host}:{server.server_port}", True, None, None))
    assert len(server.calls) == 2


def test_a_proxy_is_named(proxy, monkeypatch):
    line = refusal(Link.read("127.0.0.2:9", True, None, None))
    assert line.startswith("127.0.0.2:9 answers HTTP status 403, as no SuperLink")
    assert line.endswith(
        f"; the call goes through the proxy {proxy}: NO_PROXY=127.0.0.2 keeps it off"
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.2")
    line = refusal(Link.read("127.0.0.2:9", True, None, None), UnreachableError)
    assert line == "no SuperLink at 127.0.0.2:9: Connection refused"


def test_a_proxy_that_is_not_there_is_named(proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "127.0.0.1:1")
    line = refusal(Link.read("127.0.0.2:9", True, None, None), UnreachableError)
    assert "through the proxy 127.0.0.1:1: NO_PROXY=127.0.0.2 keeps it off" in line


def test_a_refusal_is_not_waited_for(serve, files):
    server = serve(UNKNOWN, tls=files)
    with pytest.raises(RefusedError):
        wait_for_superlink(link_of(server, files), 60)
    assert len(server.calls) == 1


def test_the_wait_ends(monkeypatch):
    monkeypatch.setattr(superlink, "FIRST_PAUSE", 0.01)
    link = Link("127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        wait_for_superlink(link, 0.1)
    assert time.monotonic() - started < 20
