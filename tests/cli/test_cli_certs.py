"""``mest-fed certs``: what it writes and says, and what it refuses."""

import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from flwr.cli.supernode.register import try_load_public_key
from rich.console import Console

from mest_fed import cli
from mest_fed.cli.certificate_folder import add_node, hosts_of, make_authority
from mest_fed.cli.superlink import Link
from mest_fed.link import certificates
from mest_fed.link.certificates import new_request
from mest_fed.link.node.command import parser
from mest_fed.link.refused import Admission, fingerprint_of
from mest_fed.link.server import opening
from mest_fed.link.server.nodes import Identity
from mest_fed.link.tokens import redeem_token

FILES = {"authority.pem", "authority.key", "server.pem", "server.key"}
NODE_FILES = {"authority.pem", "node.pem", "node.key", "supernode", "supernode.pub"}
KEYS = {"authority.key", "server.key", "node.key", "supernode"}


@pytest.fixture
def does(monkeypatch, capsys, tmp_path):
    """Return a function that runs a command; it returns what it prints to both streams."""
    monkeypatch.chdir(tmp_path)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mest-fed", "certs", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert caught.value.code == 0, err
        return out, err

    return run


@pytest.fixture
def tls(tmp_path):
    """Make a folder with a device."""
    make_authority(tmp_path / "tls", ["192.168.1.10", "hub.local"], force=False)
    add_node(tmp_path / "tls", "pi-1", force=False)
    return tmp_path / "tls"


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def in_days(monkeypatch, days):
    """Let the certificates be made so many days from now."""
    then = datetime.now(UTC) + timedelta(days=days)
    monkeypatch.setattr(certificates, "_now", lambda: then)


def test_new_writes_an_authority_and_a_server(does, tmp_path):
    out, err = does("new", "tls", "--host", "192.168.1.10", "--host", "hub.local")
    assert err == ""
    folder = tmp_path / "tls"
    assert {path.name for path in folder.iterdir()} == FILES
    authority, server = (certificate(folder / name) for name in ("authority.pem", "server.pem"))
    server.verify_directly_issued_by(authority)
    hosts = ["192.168.1.10", "hub.local", "localhost", "127.0.0.1", "::1"]
    assert hosts_of(server) == hosts
    assert (authority.not_valid_after_utc - datetime.now(UTC)).days in (3652, 3653)
    assert server.not_valid_after_utc - server.not_valid_before_utc <= timedelta(days=826)
    assert server.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=825)
    assert f"--ssl-keyfile {folder / 'server.key'} --enable-supernode-auth --database" in out
    assert f'root-certificates = "{folder / "authority.pem"}"' in out


@pytest.mark.parametrize(("kept_off", "lines"), [("", 1), ("127.0.0.1", 0)])
def test_a_proxy_that_catches_loopback(does, monkeypatch, kept_off, lines):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://proxy:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, kept_off)
    err = does("new", "tls", "--host", "a")[1]
    assert err.count("\n") == err.count("export NO_PROXY=localhost,127.0.0.1,::1\n") == lines


def test_node_writes_what_a_device_needs(does, tls):
    out, err = does("node", "tls", "pi-2")
    assert err == ""
    node = tls / "nodes" / "pi-2"
    assert {path.name for path in node.iterdir()} == NODE_FILES
    certificate(node / "node.pem").verify_directly_issued_by(certificate(node / "authority.pem"))
    assert f"flwr supernode register {node / 'supernode.pub'} home\n" in out
    assert "mest-fed client --superlink 192.168.1.10:8000 --root-certificates authority.pem" in out
    # Flower's own reader, and the device's, take the pair.
    assert try_load_public_key(node / "supernode.pub").startswith(b"-----BEGIN PUBLIC KEY")
    link = Link.read("127.0.0.1:8000", False, node / "authority.pem", node / "supernode")
    assert isinstance(link.private_key().curve, ec.SECP384R1)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_openssh_reads_the_pair(tls):
    node = tls / "nodes" / "pi-1"
    read = subprocess.run(
        ["ssh-keygen", "-y", "-f", node / "supernode"], capture_output=True, text=True, check=True
    )
    assert read.stdout.split()[:2] == (node / "supernode.pub").read_text().split()[:2]


def test_private_keys_are_the_owners_alone(tls):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tls.rglob("*")}
    assert {name: modes[name] for name in KEYS} == dict.fromkeys(KEYS, 0o600)
    private = {path.name for path in tls.rglob("*") if b"PRIVATE KEY" in _bytes(path)}
    assert private == KEYS


def _bytes(path):
    return path.read_bytes() if path.is_file() else b""


def test_show_lists_all(does, tls):
    does("token", "tls", "--hours", "2")
    out, err = does("show", "tls")
    assert err == ""
    heading, *rows = (line.split("\t") for line in out.splitlines())
    assert heading == ["what", "for", "valid until", "SHA-256 fingerprint"]
    assert [row[0] for row in rows] == ["authority", "server", "node", "token"]
    assert rows[1][1] == "192.168.1.10, hub.local, localhost, 127.0.0.1, ::1"
    assert rows[2][1] == "pi-1"
    assert re.fullmatch(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}", rows[1][3])
    assert rows[1][2] == f"{certificate(tls / 'server.pem').not_valid_after_utc:%Y-%m-%d}"


def test_show_warns_of_what_ends_within_30_days(does, tls, monkeypatch):
    in_days(monkeypatch, -825 + 31)
    does("node", "tls", "far")
    in_days(monkeypatch, -825 + 29)
    does("node", "tls", "near")
    in_days(monkeypatch, -825 - 2)
    does("node", "tls", "past")
    monkeypatch.undo()
    monkeypatch.chdir(tls.parent)
    out, err = does("show", "tls")
    near, past = err.splitlines()
    assert re.match(r"warning: tls/nodes/near/node\.pem expires in 2[89] days \(\d", near)
    assert near.endswith("; mest-fed certs renew tls")
    assert past.startswith("warning: tls/nodes/past/node.pem has expired (")
    out, err = does("renew", "tls")
    assert [line for line in out.splitlines() if line.startswith("renewed: ")] == [
        "renewed: tls/nodes/near/node.pem",
        "renewed: tls/nodes/past/node.pem",
    ]
    assert err == ""


def test_renew_keeps_keys(does, tls):
    out, _ = does("renew", "tls")
    assert out == "nothing is due; --force renews all the same\n"
    paths = [tls / "server.pem", tls / "nodes" / "pi-1" / "node.pem"]
    before = [certificate(path) for path in paths]
    assert does("renew", "tls", "--force")[0].count("renewed: ") == 2
    for old, path in zip(before, paths, strict=True):
        new = certificate(path)
        new.verify_directly_issued_by(certificate(tls / "authority.pem"))
        assert new.serial_number != old.serial_number
        key = load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
        assert new.public_key() == old.public_key() == key.public_key()
        assert (new.subject, hosts_of(new)) == (old.subject, hosts_of(old))


def test_a_server_with_another_address(does, tls):
    out, _ = does("renew", "tls", "--host", "10.0.0.7")
    assert out.startswith("renewed: tls/server.pem\nstart the server anew")
    assert "onto" not in out  # devices need nothing
    assert hosts_of(certificate(tls / "server.pem"))[:2] == ["10.0.0.7", "localhost"]


def test_after_a_new_authority_renew_signs_all_anew(does, tls):
    does("new", "tls", "--host", "hub.local", "--force")
    warning = "warning: tls/nodes/pi-1/node.pem was signed by another authority; mest-fed certs"
    assert does("show", "tls")[1].startswith(warning)
    out, err = does("renew", "tls")
    assert "renewed: tls/nodes/pi-1/authority.pem\nrenewed: tls/nodes/pi-1/node.pem\n" in out
    assert err == ""
    node = tls / "nodes" / "pi-1"
    assert (node / "authority.pem").read_bytes() == (tls / "authority.pem").read_bytes()


def test_force_makes_a_devices_keys_anew(does, tls):
    before = (tls / "nodes" / "pi-1" / "supernode.pub").read_text()
    does("node", "tls", "pi-1", "--force")
    assert (tls / "nodes" / "pi-1" / "supernode.pub").read_text() != before
    assert list(tls.rglob(".*")) == []


def test_a_token_is_printed_alone(does, tls):
    out, err = does("token", "tls")
    assert re.match(r"valid until \d{4}-\d\d-\d\d \d\d:\d\d UTC, for one device, once", err)
    token = out.strip()
    assert token not in (tls / "tokens.json").read_text()
    assert redeem_token(tls, token)
    assert not redeem_token(tls, token)


@pytest.mark.parametrize(
    "host",
    [
        "http://a",
        "hub.local:8000",
        "a b",
        "-a",
        "a-.b",
        "a..b",
        "300.1.1.1",
        "192.168.1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "fe80::1%eth0",
        "[::1]",
        "*.local",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "münchen.local",
    ],
)
def test_hosts_that_are_none(fails, host):
    assert f"--host = {host!r} is not allowed; allowed: a host name or an" in fails(
        "certs", "new", "tls", "--host", "good", "--host", host
    )


@pytest.mark.parametrize("command", [("node", "pi-1"), ("renew",), ("show",), ("token",)])
@pytest.mark.parametrize("kind", ["none", "empty", "file"])
def test_a_folder_that_is_none(fails, tmp_path, command, kind):
    if kind == "empty":
        (tmp_path / "tls").mkdir()
    if kind == "file":
        (tmp_path / "tls").touch()
    name, *more = command
    line = fails("certs", name, "tls", *more)
    assert line.startswith("error: tls holds no authority.pem; allowed: a folder that `mest-fed")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("new", "tls"), "--host is missing; allowed: the name or IP address"),
        (("new", "tls", "--host", "a"), "tls/authority.pem is there already; allowed: --force"),
        (("new", "tls/server.pem", "--host", "a"), "cannot be"),
        (("node", "tls", "pi-1"), "tls/nodes/pi-1/node.pem is there already; allowed: --force"),
        (("node", "tls", "../pi"), "the device's name = '../pi' is not allowed"),
        (("token", "tls", "--hours", "0"), "--hours = 0.0 is not allowed"),
        (("token", "tls", "--hours", "nan"), "--hours = nan is not allowed"),
        (("token", "tls", "--hours", "1e9"), "--hours = 1000000000.0 is not allowed"),
        (("renew", "tls", "--host", "a b"), "--host = 'a b' is not allowed"),
    ],
)
def test_wrong_input(fails, tls, arguments, expected):
    assert expected in fails("certs", *arguments)


ENCRYPTED = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "tls/authority.key cannot be read: No such file"),
        (b"", "tls/authority.key is not a private key in PEM"),
        (ENCRYPTED, "without a passphrase"),
        ("server.key", "tls/authority.key is not the key of tls/authority.pem"),
    ],
    ids=["missing", "empty", "encrypted", "another"],
)
def test_keys_of_the_authority_that_are_none(fails, tls, content, expected):
    key = tls / "authority.key"
    key.unlink()
    if content is not None:
        key.write_bytes((tls / content).read_bytes() if isinstance(content, str) else content)
    for command in (("node", "tls", "pi-2"), ("renew", "tls"), ("token", "tls")):
        assert expected in fails("certs", *command)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_may_not_be_read(fails, tls):
    (tls / "authority.key").chmod(0)
    assert "authority.key cannot be read: Permission denied" in fails("certs", "renew", "tls")


def test_an_authority_that_has_expired(does, fails, monkeypatch, tmp_path):
    in_days(monkeypatch, -4000)
    does("new", "tls", "--host", "a")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    for command in (("node", "tls", "pi-1"), ("renew", "tls"), ("token", "tls")):
        line = fails("certs", *command)
        assert re.search(r"tls/authority\.pem expired on \d{4}-\d\d-\d\d; allowed: a new", line)
    assert "warning: tls/authority.pem has expired" in does("show", "tls")[1]


@pytest.mark.parametrize("name", ["authority.pem", "server.pem", "nodes/pi-1/node.pem"])
def test_a_file_that_is_no_certificate(fails, tls, name):
    (tls / name).write_text("nonsense")
    assert f"tls/{name} is not a certificate in PEM" in fails("certs", "show", "tls")


def test_new_and_node_say_what_comes_next_for_lean_nodes_and_for_flowers(does):
    new, _ = does("new", "tls", "--host", "192.168.1.10")
    node, _ = does("node", "tls", "pi-1")
    link, enrolment = "192.168.1.10:9443", "192.168.1.10:9444"
    enrols, copied = map(lean_options, (new, node))
    assert (enrols.link, enrols.enrol, enrols.token) == (link, enrolment, "TOKEN")
    assert enrols.authority == "authority.pem"
    assert (copied.link, copied.certificates, copied.enrol) == (link, ".", None)
    assert "mest-fed server --certificates tls --enrol 0.0.0.0:9444" in new
    assert "mest-fed certs token tls\n" in new
    assert "flower-superlink --host" in new
    assert "flwr supernode register" in node


def lean_options(text):
    (line,) = (each for each in text.splitlines() if each.startswith("mest-fed node "))
    return parser().parse_args(shlex.split(line)[2:])


@pytest.mark.parametrize("name", ["pi-1", "raspberrypi"])
def test_a_name_that_another_certificate_has_is_said(does, tls, caplog, name):
    caplog.set_level("INFO", "mest_fed.link")
    enrol = opening._enroller(tls, b"")
    for _ in range(2):
        token = does("token", "tls")[0].strip()
        enrol(token, new_request(name)[1], name)
    found = 3 if name == "pi-1" else 2
    line = f"{name} is the name of {found} certificates now: mest-fed certs refuse refuses all"
    assert caplog.messages[-1] == line


def test_a_device_that_enrolled_is_shown_and_can_be_refused(does, fails, tls, caplog):
    caplog.set_level("INFO", "mest_fed.link")
    enrol, admits = opening._enroller(tls, b""), Admission(tls)
    token = does("token", "tls")[0].strip()
    made, _ = enrol(token, new_request("shed")[1], "shed")
    digest = bytes.fromhex(fingerprint_of(made))
    rows = [line.split("\t") for line in does("show", "tls")[0].splitlines()]
    assert ["enrolled", "shed"] in [row[:2] for row in rows]
    assert re.search(r"^shed has enrolled \(.*tls/enrolled/shed-\w{8}\.pem\)$", caplog.messages[-1])
    assert admits(Identity(digest, "shed"))
    assert "renewed: tls/enrolled" not in does("renew", "tls", "--force")[0]
    assert does("refuse", "tls", "shed")[0] == "refused: shed (1 certificate)\n"
    assert not admits(Identity(digest, "shed"))
    assert admits(Identity(hashlib.sha256(b"another").digest(), "shed"))
    assert "refused\tshed" in does("show", "tls")[0]
    does("refuse", "tls", "pi-1")
    assert "nodes/pi-1" not in does("renew", "tls", "--force")[0]  # else it took part again
    assert not admits(Identity(digest, "shed"))
    does("refuse", "tls", "shed", "--undo")
    assert admits(Identity(digest, "shed"))
    assert "--undo = 'shed' is not allowed; allowed: a device that is refused: pi-1" in fails(
        "certs", "refuse", "tls", "shed", "--undo"
    )
    assert "NAME = 'attic' is not allowed; allowed: a device of tls: pi-1, shed" in fails(
        "certs", "refuse", "tls", "attic"
    )


def test_certificates_are_read_well_on_80_columns(does, tls, monkeypatch):
    monkeypatch.setattr(
        "mest_fed.cli.certs.Console", lambda: Console(width=80, force_terminal=True)
    )
    out, _ = does("show", "tls")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert any(
        re.search(r"server +192\.168\.1\.10 +\d{4}-\d\d-\d\d +[0-9A-F]{2}:", it) for it in lines
    )


def test_each_device_is_told_another_partition(does, tls):
    for number in (1, 2):
        assert f"--partition {number} --device" in does("node", "tls", f"pi-{number + 1}")[0]
