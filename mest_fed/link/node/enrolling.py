"""How a node gets its certificate."""

import grpc

from mest_fed.errors import RefusedError
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.addresses import check_address
from mest_fed.link.codec import ENROLMENT
from mest_fed.link.protocol import as_reason


def enrol(
    address: str, token: str, csr_pem: bytes, name: str, *, authority: bytes, seconds: float = 60.0
) -> tuple[bytes, bytes]:
    """Get a certificate for a node.

    Parameters
    ----------
    address : str
        ``host:port`` of the server's enrolment.
    token, csr_pem, name : str, bytes, str
        What the operator gave; a request for a certificate as PEM; the node's name.
    authority : bytes
        Who signed the server's certificate: PEM.
    seconds : float
        That it may take.

    Returns
    -------
    tuple of bytes
        The node's certificate, and the authority's: PEM.

    Raises
    ------
    RefusedError
        If there is no such server, or it does not take the token.
    """
    method = ENROLMENT["Enrol"]
    request = pb.EnrolRequest(token=token, csr_pem=csr_pem, name=name)
    credentials = grpc.ssl_channel_credentials(authority)
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(check_address(address, insecure=False), credentials, options) as open_:
        call = open_.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        try:
            reply = call(request, timeout=seconds)
        except grpc.RpcError as error:
            text = as_reason(error.details() or "") or "the server does not take this token"
            raise RefusedError(f"{error.code().name}: {text}") from None
    return reply.certificate_pem, reply.authority_pem
