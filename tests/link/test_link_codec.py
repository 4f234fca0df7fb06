"""Messages and their protobuf; the generated code; what the node side imports."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.errors import InputError
from mest_fed.link import codec
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.messages import (
    REPORTABLE,
    Instruction,
    InstructionKind,
    NodeDescription,
    ObjectRef,
    ProgramKind,
    ProgramRequest,
    Registration,
    Report,
)
from mest_fed.link.protocol import (
    LARGEST_REPLY,
    LONGEST_REASON,
    MESSAGE_ROOM,
    SESSION_BYTES,
    Refusal,
    as_reason,
)
from mest_fed.link.server.limits import Allowance, Limits
from mest_fed.schema import FailureKind

ROOT = Path(__file__).parents[2]
SESSION = bytes(SESSION_BYTES)

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True)
wholes = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 1e9)
finite = st.floats(allow_nan=False, allow_infinity=False)
refs = st.builds(ObjectRef, sha256=st.binary(min_size=32, max_size=32), size=wholes)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | st.text(max_size=99)
ids = st.text("abc-/ 0", min_size=1, max_size=64)


def some(values):
    return st.dictionaries(names, values, max_size=4)


@given(
    st.builds(Instruction, ids, st.sampled_from(InstructionKind), wholes, seconds, some(scalars))
)
def test_instructions_come_back(instruction):
    message = _passed(codec.write_instruction(instruction))
    found = codec.read_instruction(message)
    assert found == instruction
    assert {k: type(v) for k, v in found.scalars.items()} == {
        k: type(v) for k, v in instruction.scalars.items()
    }


metrics = some(finite | st.lists(finite, max_size=5))
failures = st.builds(
    Report,
    ids,
    metrics=metrics,
    failure=st.sampled_from(REPORTABLE),
    reason=st.text(max_size=300).map(as_reason),
    peak_bytes=wholes,
    seconds=seconds,
)


@given(failures | st.builds(Report, ids, some(refs), metrics, peak_bytes=wholes, seconds=seconds))
def test_reports_come_back(report):
    message = _passed(codec.write_report(report, SESSION))
    assert codec.read_report(message) == report
    assert codec.session_of(message) == SESSION


profiles = st.one_of(
    st.fixed_dictionaries({"profile_name": names}),
    st.fixed_dictionaries({"profile_toml": st.text(min_size=1, max_size=50)}),
    st.just({}),
)


@given(names, profiles, st.lists(names, max_size=4), wholes, st.integers(0, 2**40))
def test_descriptions_come_back(name, profile, capabilities, size, examples):
    description = NodeDescription(
        name, **profile, budget_bytes=size, examples=examples, capabilities=tuple(capabilities)
    )
    message = _passed(codec.write_registration_request(description, 1))
    assert codec.read_description(message) == description


@given(st.sampled_from(ProgramKind), st.integers(1, 2**20), some(wholes), st.booleans())
def test_requests_for_programs_come_back(kind, examples, counts, mutates):
    request = ProgramRequest(kind, examples, tuple(sorted(counts.items())), mutates)
    message = _passed(codec.write_program_request(request, SESSION))
    assert codec.read_program_request(message) == request


def test_registrations_come_back():
    registration = Registration(
        SESSION, 5, 1024, 30.0, 25.0, 1 << 40, '{"a": "\N{SNOWMAN}"}', "kitchen"
    )
    assert codec.read_registration(_passed(codec.write_registration(registration))) == registration
    with pytest.raises(Refusal, match="chunk_bytes"):
        codec.read_registration(pb.RegisterReply(session=SESSION, chunk_bytes=1 << 30))


def _passed(message):
    return type(message).FromString(message.SerializeToString())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: NodeDescription(""), "no name"),
        (lambda: NodeDescription("a\nb"), "no name"),
        (lambda: NodeDescription("../a"), "no name"),
        (lambda: NodeDescription("a" * 65), "no name"),
        (lambda: NodeDescription("a", "rpi-4", "[memory]"), "either"),
        (lambda: NodeDescription("a", profile_toml="x" * 16385), "16384"),
        (lambda: NodeDescription("a", capabilities=("neon",) * 65), "64"),
        (lambda: NodeDescription("a", examples=2**40 + 1), "examples"),
        (lambda: NodeDescription("a", budget_bytes=-1), "budget_bytes"),
        (lambda: Instruction("", InstructionKind.TRAIN), "id"),
        (lambda: Instruction("a", InstructionKind.TRAIN, deadline_seconds=math.nan), "deadline"),
        (lambda: Instruction("a", InstructionKind.TRAIN, scalars={"x": math.inf}), "finite"),
        (lambda: Instruction("a", InstructionKind.TRAIN, scalars={"x": 2**63}), "64 bits"),
        (lambda: Instruction("a", InstructionKind.TRAIN, scalars={"x": "x" * 2**21}), "1048576"),
        (lambda: Report("a", metrics={"loss": math.nan}), "loss is not finite"),
        (lambda: Report("a", metrics={"loss": [1.0, math.inf]}), "loss is not finite"),
        (lambda: Report("a", metrics={"x": [0.0] * 4097}), "4096"),
        (lambda: Report("a", metrics={str(i): 0.0 for i in range(257)}), "256"),
        (lambda: Report("a", failure=FailureKind.DEADLINE), "may report"),
        (lambda: Report("a", {"u": ObjectRef.of(b"")}, failure=FailureKind.BUSY), "no objects"),
        (lambda: Report("a", failure=FailureKind.BUSY, reason="a\nb"), "one line"),
        (lambda: Report("a", failure=FailureKind.BUSY, reason="a" * 301), "300"),
        (lambda: Report("a", seconds=-1.0), "seconds"),
        (lambda: ObjectRef(b"short", 1), "32 bytes"),
        (lambda: ObjectRef(bytes(32), 2**63), "whole number"),
        (lambda: ProgramRequest(ProgramKind.STEP, 0), "examples"),
        (lambda: ProgramRequest(ProgramKind.STEP, 1, (("a b", 1),)), "no name"),
        (lambda: codec.read_instruction(pb.Instruction(id="a")), "UNSPECIFIED"),
        (lambda: codec.read_instruction(pb.Instruction(id="a", kind=99)), "99"),
        (lambda: codec.session_of(pb.WaitRequest(session=b"1")), "16 bytes"),
    ],
)
def test_what_is_over_a_limit_is_refused(make, says):
    with pytest.raises(Refusal, match=says) as refused:
        make()
    assert refused.value.code == "INVALID_ARGUMENT"


def test_the_largest_messages_are_taken():
    objects = {f"{i:064}": ObjectRef(bytes(32), 2**63 - 1) for i in range(16)}
    numbers = {f"{i:064}": [0.1] * 16 for i in range(256)}
    report = Report("x" * 64, objects, numbers, peak_bytes=2**63 - 1, seconds=1.0)
    counts = tuple((f"{i:064}", 2**63 - 1) for i in range(512))
    program = ProgramRequest(ProgramKind.STEP, 2**20, counts, mutates=True)
    capabilities = tuple(f"{i:064}" for i in range(64))
    described = NodeDescription("a" * 64, profile_toml="x" * 16384, capabilities=capabilities)
    for message in (
        codec.write_report(report, SESSION),
        codec.write_program_request(program, SESSION),
        codec.write_registration_request(described, 1),
    ):
        assert 16_384 < message.ByteSize() < MESSAGE_ROOM
    scalars = {f"{i:064}": "x" * 1024 for i in range(1024)}
    largest = Instruction("a", InstructionKind.TRAIN, scalars=scalars, objects=objects)
    assert 2**20 < codec.write_instruction(largest).ByteSize() < LARGEST_REPLY


def test_a_reason_is_one_line():
    assert as_reason("a\n  b\x00\x1b[31m") == "a b [31m"
    assert len(as_reason("x" * 999)) == LONGEST_REASON


def test_the_protocols_names_are_those_of_the_enumerations():
    for enum, kinds, prefix in (
        (pb.Kind, InstructionKind, "KIND_"),
        (pb.ProgramKind, ProgramKind, "PROGRAM_KIND_"),
        (pb.FailureKind, REPORTABLE, "FAILURE_KIND_"),
    ):
        known = {prefix + each.name for each in kinds}
        assert set(enum.keys()) == known | {prefix + "UNSPECIFIED"}


def test_limits_that_cannot_be_are_one_line():
    for key, value in {"nodes": 0, "chunk_bytes": 1 << 21, "wait_seconds": 90.0}.items():
        with pytest.raises(InputError, match=f"{key} = "):
            Limits(**{key: value})


def test_an_allowance_fills_up_again():
    now = [0.0]
    allowance = Allowance(2.0, 3, lambda: now[0])
    for _ in range(3):
        allowance.spend("calls")
    with pytest.raises(Refusal):
        allowance.spend("calls")
    now[0] = 0.5
    allowance.spend("calls")
    now[0] = 100.0
    for _ in range(3):
        allowance.spend("calls")
    with pytest.raises(Refusal):
        allowance.spend("calls")


def test_the_generated_code_is_that_of_the_protocol(tmp_path):
    pytest.importorskip("grpc_tools")
    source = "mest_fed/link/mest_link.proto"
    made = ("-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    subprocess.run([sys.executable, *made, source], cwd=ROOT, check=True)
    for name in ("mest_link_pb2.py", "mest_link_pb2.pyi"):
        committed = ROOT / "mest_fed" / "link" / name
        assert (tmp_path / "mest_fed" / "link" / name).read_text() == committed.read_text(), (
            "run `make proto`"
        )


def test_a_node_imports_neither_torch_nor_flower():
    found = subprocess.run(
        [sys.executable, "-c", "import sys, mest_fed.link.node.transport; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "mest_fed.link.mest_link_pb2" in found
    assert not {"torch", "flwr", "ray", "pydantic", "mest_fed.link.server.edge_server"} & set(found)
