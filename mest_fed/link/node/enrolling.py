"""How a node gets its certificate."""

from typing import Any

from mest_fed.errors import InputError, RefusedError
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.node.channel import Channel, Patience
from mest_fed.link.node.tls import NodeTls
from mest_fed.link.protocol import Refusal

#: What the server answers without words: it does not say why.
_WORDLESS = {"UNAUTHENTICATED": "the server does not take this token: it is wrong, used, or old"}


def enrol(
    address: str,
    token: str,
    csr_pem: bytes,
    name: str,
    *,
    authority: bytes,
    patience: Patience | None = None,
) -> tuple[bytes, bytes]:
    """Get a certificate for a node. A server that is not there is asked again.

    Parameters
    ----------
    address : str
        ``host:port`` of the server's enrolment.
    token, csr_pem, name : str, bytes, str
        What the operator gave; a request for a certificate as PEM; the node's name.
    authority : bytes
        Who signed the server's certificate: PEM.
    patience : Patience, optional
        How long the server is asked; by default for ever, and a call may take a minute.

    Returns
    -------
    tuple of bytes
        The node's certificate, and the authority's: PEM.

    Raises
    ------
    RefusedError
        If there is no server for so long, or it does not take the token.
    InputError
        If the address cannot be used, or what is there is no enrolment of that authority's.
    """
    request = pb.EnrolRequest(token=token, csr_pem=csr_pem, name=name)
    patience = patience or Patience(call_seconds=60.0)
    tls = NodeTls(b"", b"", authority)
    channel = Channel(address, name, tls=tls, patience=patience, key="--enrol", alone=csr_pem)

    def once() -> Any:
        try:
            return channel.unary("Enrol", request)
        except Refusal as refusal:
            if refusal.code == "UNAVAILABLE":
                channel.refuse_tls_fault("--enrol: ")
            raise

    try:
        reply = channel.insist(once)
    except Refusal as refusal:
        text = _WORDLESS.get(refusal.code) or str(refusal)
        wrong = refusal.code == "INVALID_ARGUMENT"
        raise (InputError if wrong else RefusedError)(f"--enrol: {text}") from None
    finally:
        channel.close()
    return reply.certificate_pem, reply.authority_pem
