"""What the authority signs, and what it refuses."""

import base64
import socket
import ssl
import threading
import warnings
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.cli.certificate_folder import add_node, hosts_of, make_authority
from mest_fed.errors import InputError, WireError
from mest_fed.link import certificates
from mest_fed.link.certificates import (
    LARGEST_REQUEST,
    Authority,
    check_in_time,
    new_request,
    read_certificate,
    sign_request,
)

AUTHORITY = Authority.new()


def request_of(key, *extensions, name="someone"):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def signed(csr, name="pi-1"):
    return x509.load_pem_x509_certificate(sign_request(AUTHORITY, csr, name))


def extension_of(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind).value


def test_a_request_is_signed_for_a_client_alone():
    key, csr = new_request("pi-1")
    certificate = signed(csr)
    certificate.verify_directly_issued_by(AUTHORITY.certificate)
    assert certificate.public_key() == load_pem_private_key(key, None).public_key()
    usage = list(extension_of(certificate, x509.ExtendedKeyUsage))
    assert usage == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extension_of(certificate, x509.BasicConstraints).ca
    days = (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)
    assert 824 < days <= 825


def test_what_a_request_says_of_itself_is_ignored():
    more = (
        x509.SubjectAlternativeName([x509.DNSName("hub.local")]),
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    )
    certificate = signed(request_of(ec.generate_private_key(ec.SECP256R1()), *more, name="root"))
    assert certificate.subject.rfc4514_string() == "CN=pi-1"
    assert not extension_of(certificate, x509.BasicConstraints).ca
    with pytest.raises(x509.ExtensionNotFound):
        extension_of(certificate, x509.SubjectAlternativeName)
    assert [*extension_of(certificate, x509.ExtendedKeyUsage)] == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_key_on_ed25519():
    key = ed25519.Ed25519PrivateKey.generate()
    assert signed(request_of(key)).public_key() == key.public_key()


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["RSA", "P-384", "secp256k1"],
)
def test_other_keys_are_refused(key):
    with pytest.raises(WireError, match=r"^the key is neither P-256 nor Ed25519$"):
        signed(request_of(key))


def test_a_request_for_the_key_of_another_is_refused():
    # The public key is exchanged for another of the same length: its signature no longer fits.
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    request = x509.load_pem_x509_csr(request_of(keys[0]))
    points = [certificates._public_der(key.public_key()) for key in keys]
    der = request.public_bytes(Encoding.DER).replace(*points)
    forged = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    with pytest.raises(WireError, match="not signed by its own key"):
        signed(forged)


def test_a_request_that_is_too_long():
    csr = new_request("pi-1")[1]
    signed(csr + b"\n" * (LARGEST_REQUEST - len(csr)))
    with pytest.raises(WireError, match="allowed: up to 8192"):
        signed(csr + b"\n" * (LARGEST_REQUEST - len(csr) + 1))


KEY, CSR = new_request("pi-1")
CERTIFICATE = sign_request(AUTHORITY, CSR, "pi-1")


def damaged(pem):
    """Yield a PEM file with one byte of what it holds changed: each byte, in several ways."""
    first, *lines, last = pem.splitlines()
    der = base64.b64decode(b"".join(lines))
    for at in range(len(der)):
        for change in (1, 2, 3, 4, 9, 16, 32, 85, 128, 255):
            changed = der[:at] + bytes([der[at] ^ change]) + der[at + 1 :]
            yield b"\n".join((first, base64.encodebytes(changed).strip(), last, b""))


@given(
    st.binary(max_size=300)
    | st.tuples(st.integers(0, len(CSR) - 1), st.integers(1, 255)).map(
        lambda at: CSR[: at[0]] + bytes([CSR[at[0]] ^ at[1]]) + CSR[at[0] + 1 :]
    )
)
def test_what_is_damaged_is_refused_or_says_the_same(csr):
    with suppress(WireError):
        certificate = signed(csr)
        # A line break or the label of the PEM was hit, but nothing that is signed.
        assert certificate.public_key() == x509.load_pem_x509_csr(CSR).public_key()


def test_a_request_with_any_byte_changed_is_refused():
    for csr in damaged(CSR):
        with suppress(WireError):
            assert signed(csr).public_key() == x509.load_pem_x509_csr(CSR).public_key()


def test_a_certificate_or_key_with_any_byte_changed_is_refused_or_can_be_used(tmp_path):
    certificate, key = tmp_path / "node.pem", tmp_path / "authority.key"
    (tmp_path / "authority.pem").write_bytes(AUTHORITY.pem())
    for content in damaged(CERTIFICATE):
        certificate.write_bytes(content)
        with suppress(InputError), warnings.catch_warnings(action="ignore"):
            found = read_certificate(certificate)
            assert isinstance(hosts_of(found), list)
            assert found.subject.public_bytes()
    for content in damaged(KEY):
        key.write_bytes(content)
        with pytest.raises(InputError, match=r"authority\.key"):
            Authority.load(tmp_path)


@pytest.mark.parametrize("name", ["", "../pi", "a b", ".x", "-x", "a" * 64, "é", "a\n", "a/b"])
def test_names_that_are_not_allowed(name):
    for call in (new_request, lambda it: sign_request(AUTHORITY, CSR, it)):
        with pytest.raises(InputError, match="the device's name = "):
            call(name)


def test_the_end_is_not_after_the_authoritys(monkeypatch):
    before = datetime.now(UTC) - timedelta(days=3650)
    monkeypatch.setattr(certificates, "_now", lambda: before)
    old = Authority.new()
    monkeypatch.undo()
    certificate = x509.load_pem_x509_certificate(sign_request(old, CSR, "pi-1"))
    assert certificate.not_valid_after_utc == old.certificate.not_valid_after_utc


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder, ["hub.local"], force=True)
    add_node(folder, "pi-1", force=False)
    return folder


def context_of(folder, purpose, certificate, key):
    context = ssl.SSLContext(purpose)
    # The default from Python 3.13 on.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(folder / "authority.pem")
    context.load_cert_chain(folder / certificate, folder / key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def shake_hands(folder, server, client, name="127.0.0.1"):
    """Have a server and a client verify each other; return the client's name as the server sees."""
    serving = context_of(folder, ssl.PROTOCOL_TLS_SERVER, *server)
    calling = context_of(folder, ssl.PROTOCOL_TLS_CLIENT, *client)
    seen, failed = [], []
    ours, theirs = socket.socketpair()

    def serve():
        try:
            with serving.wrap_socket(theirs, server_side=True) as connection:
                seen.append(connection.getpeercert()["subject"][0][0][1])
                connection.sendall(b"hello")
        except (ssl.SSLError, OSError) as error:
            failed.append(error)
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with calling.wrap_socket(ours, server_hostname=name) as connection:
            assert connection.recv(5) == b"hello", failed
    finally:
        ours.close()
        thread.join()
    return seen


SERVER = "server.pem", "server.key"
NODE = "nodes/pi-1/node.pem", "nodes/pi-1/node.key"


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "localhost", "hub.local"])
def test_server_and_device_verify_each_other(folder, name):
    assert shake_hands(folder, SERVER, NODE, name) == ["pi-1"]


def test_another_host_is_not_the_server(folder):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"doesn't match|not valid for"):
        shake_hands(folder, SERVER, NODE, "other.local")


def test_a_device_cannot_be_a_server(folder):
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        shake_hands(folder, NODE, NODE)


def test_the_servers_certificate_is_no_devices(folder):
    with pytest.raises(
        (AssertionError, OSError), match=r"PURPOSE|purpose|unknown ca|bad cert|ALERT"
    ):
        shake_hands(folder, SERVER, SERVER)


@pytest.mark.parametrize(("days", "said"), [(4000, "expired on "), (-4000, "begins on ")])
def test_a_server_does_not_begin_with_a_certificate_of_another_time(
    tmp_path, monkeypatch, days, said
):
    path = tmp_path / "server.pem"
    path.write_bytes(Authority.new().pem())
    check_in_time(path)
    now = certificates._now() + timedelta(days=days)
    monkeypatch.setattr(certificates, "_now", lambda: now)
    with pytest.raises(InputError, match=f"server.pem {said}.*allowed: one that is valid"):
        check_in_time(path)
