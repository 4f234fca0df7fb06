"""A token becomes a certificate, once; wrong tokens get nothing and slow their sender down."""

import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from link_parts import SOON, Authority, key_pem, node, serve

from mest_fed.errors import InputError, RefusedError
from mest_fed.link.node.transport import NodeTls, enrol


@pytest.fixture
def tokens():
    return {"right", "other"}


@pytest.fixture
def server(authority, tokens):
    def sign(token, csr_pem, name):
        if token not in tokens:
            return None
        try:
            certificate = authority.sign_request(csr_pem, name)
        except ValueError:
            raise InputError("csr_pem is no request for a certificate") from None
        tokens.remove(token)
        return certificate, authority.pem

    with serve(authority.server(), enrolment_address="127.0.0.1:0", enrol=sign) as server:
        yield server


def ask(server, authority, token, name="pi-9", csr=None):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    csr = csr or request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    address = f"127.0.0.1:{server.enrolment_port}"
    made = enrol(address, token, csr, name, authority=authority.pem, patience=SOON)
    return NodeTls(made[0], key_pem(key), made[1])


def test_a_node_enrols_and_takes_part(server, authority):
    tls = ask(server, authority, "right")
    with node(server.port, "pi-9", tls) as link:
        link.register()
        assert [each.identity.name for each in server.nodes()] == ["pi-9"]
    with pytest.raises(RefusedError, match="wrong, used, or old"):
        ask(server, authority, "right")


def test_wrong_tokens_are_counted_and_slowed_down(server, authority, caplog):
    caplog.set_level("INFO", "mest_fed.link")
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        with pytest.raises(RefusedError, match="does not take this token"):
            ask(server, authority, "wrong")
        seconds.append(time.monotonic() - begun)
    assert seconds[0] < 0.4
    assert 0.5 <= seconds[1] < 0.9
    assert 1.0 <= seconds[2] < 1.5
    assert server._enrolment.wrong_tokens == 3
    said = [line for line in caplog.messages if "Enrol refused" in line]
    assert len(said) == 3
    why = ": Enrol refused: UNAUTHENTICATED: the token of 'pi-9' is wrong"
    assert all(why in line for line in said)


def test_what_is_no_request_is_refused(server, authority, tokens):
    for csr, name in ((b"nonsense", "pi-9"), (b"x" * 9000, "pi-9"), (b"x", "../pi")):
        with pytest.raises(InputError, match=r"csr_pem is no|a request has|is no name"):
            ask(server, authority, "other", name=name, csr=csr)
    assert "other" in tokens


def test_a_token_is_not_sent_to_another_server(server):
    address = f"127.0.0.1:{server.enrolment_port}"
    with pytest.raises(InputError, match=r"the certificate of the server at .* is refused"):
        enrol(address, "right", b"x", "pi-9", authority=Authority().pem, patience=SOON)


def test_enrolment_needs_certificates():
    with pytest.raises(InputError, match="enrolment needs certificates"):
        serve(enrolment_address="127.0.0.1:0", enrol=lambda *_: None)
