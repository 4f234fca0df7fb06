"""The book of nodes by itself, with a clock that the test turns."""

import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_parts import train

from mest_fed.errors import InputError
from mest_fed.link.messages import Instruction, NodeDescription, ObjectRef, Report
from mest_fed.link.protocol import Refusal
from mest_fed.link.server.limits import Limits
from mest_fed.link.server.nodes import Identity
from mest_fed.link.server.sessions import Book
from mest_fed.schema import FailureKind

LIMITS = Limits(
    nodes=3,
    queue=2,
    upload_bytes=100,
    node_bytes=150,
    total_bytes=250,
    heartbeat_seconds=10.0,
    wait_seconds=5.0,
    gone_seconds=100.0,
    calls_per_second=1000.0,
    call_burst=10_000,
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Caller:
    """A node: its identity with its session."""

    def __init__(self, book, name):
        self.book = book
        self.identity = Identity(hashlib.sha256(name.encode()).digest(), name)
        self.id = self.identity.node_id
        self.register()

    def register(self):
        self.session = self.book.register(self.identity, NodeDescription(self.identity.name))

    def due(self, last_seen=""):
        return self.book.due(self.identity, self.session, last_seen)

    def upload(self, instruction, data, announced=None):
        ref = announced or ObjectRef.of(data)
        upload = self.book.begin_upload(self.identity, self.session, instruction, ref, offset=0)
        self.book.append(self.id, instruction, upload, data, at=0)
        return ref

    def report(self, instruction, **how):
        self.book.report(self.identity, self.session, Report(instruction, **how))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(clock):
    return Book(LIMITS, clock=clock)


def code_of(call, *given, **named):
    with pytest.raises(Refusal) as refused:
        call(*given, **named)
    return refused.value.code


def test_instructions_are_due_in_order_until_they_end(book):
    one = Caller(book, "one")
    for name in ("a", "b"):
        book.submit(one.id, train(name), {})
    assert one.due().id == "a"
    assert one.due().id == "a"  # it crashed meanwhile
    assert one.due("a") is None
    assert code_of(one.report, "b") == "FAILED_PRECONDITION"  # it was not given
    one.report("a")
    assert one.due("a").id == "b"
    assert [each.instruction.id for each in book.take_outcomes()] == ["a"]


def test_what_has_no_room_in_the_queue_ends_at_once(book):
    one = Caller(book, "one")
    for name in ("a", "b", "c"):
        book.submit(one.id, train(name), {})
    book.submit(7, train("d"), {})
    found = [(each.instruction.id, each.failure) for each in book.take_outcomes()]
    assert found == [("c", FailureKind.BUSY), ("d", FailureKind.AWAY)]
    with pytest.raises(InputError, match="id = 'a'"):
        book.submit(one.id, train("a"), {})


def test_a_deadline_ends_an_instruction_given_or_not(book, clock):
    one = Caller(book, "one")
    book.submit(one.id, train("a", deadline_seconds=5.0), {})
    book.submit(one.id, train("b", deadline_seconds=4.0), {})
    book.submit(7, train("c"), {})
    clock.now = 3.0
    assert one.due().deadline_seconds == 2.0
    clock.now = 5.0
    assert code_of(one.report, "a") == "FAILED_PRECONDITION"
    assert one.due() is None
    late = book.take_outcomes()[1:]
    assert {(it.instruction.id, it.failure, it.elapsed) for it in late} == {
        ("a", FailureKind.DEADLINE, 5.0),
        ("b", FailureKind.DEADLINE, 5.0),
    }
    assert late[0].reason == "the reply missed the deadline"


def test_an_instruction_without_a_deadline_waits(book, clock):
    one = Caller(book, "one")
    book.submit(one.id, train("a"), {})
    clock.now = 29.0
    book.expire()
    assert one.due().deadline_seconds == 0.0
    assert book.take_outcomes() == []


def test_each_silence_amid_work_is_a_line(book, clock, caplog):
    caplog.set_level("INFO", "mest_fed.link")
    one, idle = Caller(book, "one"), Caller(book, "idle")
    book.submit(one.id, train("a"), {})
    silent = 3 * LIMITS.heartbeat_seconds + 1
    for begun in (0.0, 50.0):
        clock.now = begun
        book.check(one.identity, one.session)
        for later in (silent, silent + 1):
            clock.now = begun + later
            book.expire()
    lines = [line for line in caplog.messages if "is silent for" in line]
    assert len(lines) == 2
    assert lines[0].startswith("one is silent for ")
    assert idle.identity.name not in "".join(lines)


def test_sessions_are_their_certificates_own(book):
    one, two = Caller(book, "one"), Caller(book, "two")
    assert code_of(book.check, one.identity, two.session) == "PERMISSION_DENIED"
    assert code_of(book.check, one.identity, bytes(16)) == "NOT_FOUND"
    old = one.session
    one.register()
    assert code_of(book.check, one.identity, old) == "ABORTED"
    assert code_of(book.check, two.identity, old) == "NOT_FOUND"  # not that it was one
    assert book.check(one.identity, one.session).id == one.id


def test_a_certificate_that_is_no_longer_admitted_loses_its_node(clock):
    admitted = {"one"}
    book = Book(LIMITS, lambda it: it.name in admitted, clock)
    one = Caller(book, "one")
    book.submit(one.id, train(), {})
    admitted.clear()
    assert code_of(book.check, one.identity, one.session) == "PERMISSION_DENIED"
    assert book.nodes() == []
    (outcome,) = book.take_outcomes()
    assert (outcome.failure, "admitted" in outcome.reason) == (FailureKind.WENT_AWAY, True)


def test_there_are_so_many_nodes(book, clock):
    for name in "abc":
        Caller(book, name)
    assert code_of(Caller, book, "d") == "RESOURCE_EXHAUSTED"
    clock.now = 101.0
    book.expire()
    Caller(book, "d")
    assert len(book.nodes()) == 1


def test_what_is_in_flight_is_bounded_and_comes_back(book):
    one, two = Caller(book, "one"), Caller(book, "two")
    for each in (one, two):
        for name in ("a", "b"):
            book.submit(each.id, train(name), {})
        each.due()
        ref = each.upload("a", bytes([each is one]) * 100)
        each.report("a", objects={"u": ref})
        each.due()
    assert book.room.taken == 200  # nobody has polled
    assert code_of(one.upload, "b", b"3" * 60) == "RESOURCE_EXHAUSTED"  # 150 of a node
    one.upload("b", b"3" * 50)
    assert code_of(two.upload, "b", b"4" * 1) == "RESOURCE_EXHAUSTED"  # 250 of all
    assert code_of(two.upload, "b", b"4" * 101) == "INVALID_ARGUMENT"  # 100 of a report
    assert sum(len(each.objects["u"]) for each in book.take_outcomes()) == 200
    assert book.room.taken == 50
    two.upload("b", b"4")


def test_a_node_that_made_something_else_the_second_time_has_room(book):
    one = Caller(book, "one")
    book.submit(one.id, train("a"), {})
    one.due()
    one.upload("a", b"1" * 60, announced=ObjectRef.of(b"1" * 90))
    one.register()
    one.due()
    ref = one.upload("a", b"2" * 80)
    one.report("a", objects={"u": ref})
    assert book.take_outcomes()[0].objects == {"u": b"2" * 80}
    assert book.room.taken == 0


@pytest.mark.parametrize("refs", [ObjectRef.of(b"never"), ObjectRef(bytes(32), 0)])
def test_a_report_of_what_was_not_uploaded_is_refused_and_may_be_made_again(book, refs):
    one = Caller(book, "one")
    book.submit(one.id, train("a"), {})
    one.due()
    ref = one.upload("a", b"1" * 60)
    assert code_of(one.report, "a", objects={"u": ref, "v": refs}) == "DATA_LOSS"
    one.report("a", objects={"u": ref, "empty": ObjectRef.of(b"")})
    assert book.take_outcomes()[0].objects == {"u": b"1" * 60, "empty": b""}


def test_uploads_are_what_was_announced(book):
    one = Caller(book, "one")
    book.submit(one.id, train("a"), {})
    one.due()
    wrong = ObjectRef(ObjectRef.of(b"1" * 60).sha256, 60)
    assert code_of(one.upload, "a", b"2" * 60, announced=wrong) == "DATA_LOSS"
    assert code_of(one.upload, "a", b"1" * 61, announced=wrong) == "INVALID_ARGUMENT"
    assert book.room.taken == 0
    begin = book.begin_upload
    upload = begin(one.identity, one.session, "a", wrong, offset=0)
    book.append(one.id, "a", upload, b"1" * 20, at=0)
    assert book.received(one.identity, one.session, "a", wrong.sha256) == 20
    again = begin(one.identity, one.session, "a", wrong, offset=20)
    book.append(one.id, "a", again, b"1" * 20, at=20)
    # The stream that was given up still had something to say.
    assert code_of(book.append, one.id, "a", upload, b"1" * 20, at=20) == "OUT_OF_RANGE"
    for offset in (0, 39, 41):
        assert (
            code_of(begin, one.identity, one.session, "a", wrong, offset=offset) == "OUT_OF_RANGE"
        )
    longer = ObjectRef(wrong.sha256, 61)
    assert code_of(begin, one.identity, one.session, "a", longer, offset=40) == "INVALID_ARGUMENT"


def test_objects_are_kept_once_and_as_long_as_they_are_due(book):
    one, two = Caller(book, "one"), Caller(book, "two")
    for each in (one, two):
        book.submit(each.id, train("a"), {"w": b"1234", "same": b"1234"})
        assert code_of(_blob, each, b"1234") == "FAILED_PRECONDITION"
        each.due()
        assert bytes(_blob(each, b"1234").data) == b"1234"
    assert book.objects.bytes == 4
    one.report("a")
    assert book.objects.bytes == 4
    two.book.leave(two.identity, two.session)
    assert book.objects.bytes == 0


def _blob(caller, data):
    return caller.book.blob(caller.identity, caller.session, ObjectRef.of(data).sha256)


actions = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "submit",
                "due",
                "upload",
                "half",
                "report",
                "fail",
                "register",
                "leave",
                "withdraw",
                "pass",
                "poll",
                "late",
            ]
        ),
        st.integers(0, 1),
        st.integers(0, 4),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(actions)
def test_whatever_happens_each_instruction_ends_once_and_nothing_is_left(actions):
    clock = Clock()
    book = Book(LIMITS, clock=clock)
    callers = [Caller(book, name) for name in ("one", "two")]
    submitted, ended = [], []
    for what, which, number in actions:
        one, name = callers[which], f"{which}-{number}"
        try:
            if what == "submit":
                deadline = 40.0 * (number % 2)
                made = Instruction(name, train().kind, len(submitted), deadline)
                book.submit(one.id, made, {"w": bytes([number]) * number})
                submitted.append((one.id, made.id, made.round))
            elif what == "due":
                one.due()
            elif what == "upload":
                one.upload(name, bytes([number + 1]) * 20 * (number + 1))
            elif what == "half":
                one.upload(name, b"5" * 10, announced=ObjectRef.of(b"5" * 70))
            elif what == "report":
                data = bytes([number + 1]) * 20 * (number + 1)
                one.report(name, objects={"u": ObjectRef.of(data)})
            elif what == "fail":
                one.report(name, failure=FailureKind.BUSY)
            elif what == "register":
                one.register()
            elif what == "leave":
                book.leave(one.identity, one.session)
            elif what == "withdraw":
                book.withdraw(one.id, name)
            elif what == "pass":
                clock.now += 10.0 * number
            elif what == "late":
                book.expire()
            else:
                ended += book.take_outcomes()
        except (Refusal, InputError):
            pass
        assert 0 <= book.room.taken <= LIMITS.total_bytes
    clock.now = math.inf
    book.expire()
    ended += book.take_outcomes()
    found = [(each.node_id, each.instruction.id, each.instruction.round) for each in ended]
    assert sorted(found) == sorted(submitted)
    assert (book.room.taken, book.objects.bytes, book.nodes()) == (0, 0, [])
