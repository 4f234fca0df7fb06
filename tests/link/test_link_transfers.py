"""Downloads from a server that does not do as it should."""

import pytest

from mest_fed.errors import WireError
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.messages import ObjectRef, Registration
from mest_fed.link.node.transfers import Transfers
from mest_fed.link.protocol import Refusal

REGISTRATION = Registration(bytes(16), 1, 1024, 30.0, 25.0, 1000, "{}")


class Server:
    """Answers each Fetch with the next of some lists of chunks."""

    def __init__(self, *answers):
        self.answers, self.offsets = list(answers), []

    def read(self, name, message, *, size):
        self.offsets.append((message.offset, size))
        yield from (pb.Chunk(data=data) for data in self.answers.pop(0))


def fetch(server, ref):
    def insist(call, *, progress):
        while True:
            try:
                return call()
            except Refusal as refusal:
                if refusal.code != "UNAVAILABLE":
                    raise

    return Transfers(server, lambda: REGISTRATION, insist).fetch(ref)


def test_a_download_goes_on_where_it_ended_too_soon():
    server = Server([b"abc", b"de"], [], [b"fg"])
    assert fetch(server, ObjectRef.of(b"abcdefg")) == b"abcdefg"
    assert server.offsets == [(0, 7), (5, 2), (5, 2)]


def test_what_has_another_digest_is_not_taken():
    with pytest.raises(WireError, match="digest"):
        fetch(Server([b"abcdefx"]), ObjectRef.of(b"abcdefg"))


def test_what_is_too_long_is_not_read_to_its_end():
    endless = iter(lambda: b"abc", None)
    with pytest.raises(WireError, match="longer than its 7 bytes"):
        fetch(Server(endless), ObjectRef.of(b"abcdefg"))
