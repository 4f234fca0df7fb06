"""Messages of the edge link as protobuf: what to send of plain objects, and what came in as such.

Which calls there are, with what messages, is read from the protocol's own descriptor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.messages import (
    Instruction,
    InstructionKind,
    Metric,
    NodeDescription,
    ObjectRef,
    ProgramKind,
    ProgramRequest,
    Refs,
    Registration,
    Report,
    Scalar,
)
from mest_fed.link.protocol import SESSION_BYTES, malformed
from mest_fed.schema import FailureKind

Kind = TypeVar("Kind", InstructionKind, ProgramKind, FailureKind)
Found = TypeVar("Found", bound=Message)


@dataclass(frozen=True)
class Method:
    """A call of the protocol.

    Parameters
    ----------
    name, path : str
        ``Call`` and ``/package.Service/Call``.
    request, reply : type
        Messages.
    streams_in, streams_out : bool
        Whether there are many of them.
    """

    name: str
    path: str
    request: type[Message]
    reply: type[Message]
    streams_in: bool
    streams_out: bool


def methods_of(service: str) -> dict[str, Method]:
    """Return the calls of a service of the protocol by name."""
    found = pb.DESCRIPTOR.services_by_name[service]
    return {
        each.name: Method(
            each.name,
            f"/{found.full_name}/{each.name}",
            GetMessageClass(each.input_type),
            GetMessageClass(each.output_type),
            each.client_streaming,
            each.server_streaming,
        )
        for each in found.methods
    }


ENROLMENT, EDGE_LINK = methods_of("Enrolment"), methods_of("EdgeLink")


def parse(kind: type[Found], data: bytes) -> Found:
    """Read a message.

    Raises
    ------
    Refusal
        If these bytes are none.
    """
    try:
        message: Found = kind.FromString(data)
    except DecodeError:
        raise malformed(f"these {len(data)} bytes are no {kind.DESCRIPTOR.name}") from None
    return message


def session_of(message: Any) -> bytes:
    """Return the session that a message names."""
    session: bytes = message.session
    if len(session) != SESSION_BYTES:
        raise malformed(f"a session has {SESSION_BYTES} bytes, not {len(session)}")
    return session


def write_registration_request(node: NodeDescription, version: int) -> pb.RegisterRequest:
    """Return what a node says of itself, as protobuf."""
    fields = {key: value for key, value in asdict(node).items() if value or value == 0}
    return pb.RegisterRequest(version=version, **fields)


def read_description(message: pb.RegisterRequest) -> NodeDescription:
    """Return what a node says of itself."""
    return NodeDescription(
        name=message.name,
        profile_name=message.profile_name,
        profile_toml=message.profile_toml,
        budget_bytes=message.budget_bytes,
        memory_limit_bytes=message.memory_limit_bytes,
        examples=message.examples,
        partition=message.partition if message.HasField("partition") else None,
        capabilities=tuple(message.capabilities),
        data_kind=message.data_kind,
        saving=message.saving,
    )


def write_registration(registration: Registration) -> pb.RegisterReply:
    """Return what a server tells a node, as protobuf."""
    return pb.RegisterReply(**asdict(registration))


def read_registration(message: pb.RegisterReply) -> Registration:
    """Return what a server tells a node."""
    return Registration(
        session=session_of(message),
        node_id=message.node_id,
        chunk_bytes=message.chunk_bytes,
        heartbeat_seconds=message.heartbeat_seconds,
        wait_seconds=message.wait_seconds,
        max_upload_bytes=message.max_upload_bytes,
        run_json=message.run_json,
        name=message.name,
        notice=message.notice,
    )


def write_instruction(instruction: Instruction) -> pb.Instruction:
    """Return an instruction as protobuf."""
    message = pb.Instruction(
        id=instruction.id,
        kind=_number(instruction.kind, pb.Kind, "KIND_"),
        round=instruction.round,
        deadline_seconds=instruction.deadline_seconds,
    )
    _write_refs(message.objects, instruction.objects)
    for name, value in instruction.scalars.items():
        scalar = message.scalars[name]
        if isinstance(value, bool):
            scalar.truth = value
        elif isinstance(value, int):
            scalar.integer = value
        elif isinstance(value, float):
            scalar.number = value
        else:
            scalar.text = value
    return message


def read_instruction(message: pb.Instruction) -> Instruction:
    """Return an instruction."""
    return Instruction(
        id=message.id,
        kind=_kind(message.kind, InstructionKind, pb.Kind, "KIND_"),
        round=message.round,
        deadline_seconds=message.deadline_seconds,
        scalars={name: _scalar(name, message.scalars[name]) for name in message.scalars},
        objects=read_refs(message.objects),
    )


def write_program_request(request: ProgramRequest, session: bytes) -> pb.ProgramRequest:
    """Return a request for a program as protobuf."""
    return pb.ProgramRequest(
        session=session,
        kind=_number(request.kind, pb.ProgramKind, "PROGRAM_KIND_"),
        examples=request.examples,
        counts=dict(request.counts),
        mutates=request.mutates,
        reads=request.reads,
    )


def read_program_request(message: pb.ProgramRequest) -> ProgramRequest:
    """Return a request for a program."""
    return ProgramRequest(
        kind=_kind(message.kind, ProgramKind, pb.ProgramKind, "PROGRAM_KIND_"),
        examples=message.examples,
        counts=tuple(sorted(message.counts.items())),
        mutates=message.mutates,
        reads=message.reads,
    )


def write_program_reply(objects: Refs) -> pb.ProgramReply:
    """Return what a program consists of, as protobuf."""
    message = pb.ProgramReply()
    _write_refs(message.objects, objects)
    return message


def write_report(report: Report, session: bytes) -> pb.ReportRequest:
    """Return a report as protobuf."""
    message = pb.ReportRequest(
        session=session,
        instruction=report.instruction,
        peak_bytes=report.peak_bytes,
        seconds=report.seconds,
    )
    _write_refs(message.objects, report.objects)
    for name, value in report.metrics.items():
        if isinstance(value, int | float):
            message.metrics[name].number = value
        else:
            message.metrics[name].numbers.values.extend(value)
            message.metrics[name].numbers.SetInParent()
    if report.failure is not None:
        message.failure.kind = _number(report.failure, pb.FailureKind, "FAILURE_KIND_")
        message.failure.reason = report.reason
    return message


def read_report(message: pb.ReportRequest) -> Report:
    """Return a report."""
    failed = message.HasField("failure")
    kind, reason = message.failure.kind, message.failure.reason
    return Report(
        instruction=message.instruction,
        objects=read_refs(message.objects),
        metrics={name: _metric(name, message.metrics[name]) for name in message.metrics},
        failure=_kind(kind, FailureKind, pb.FailureKind, "FAILURE_KIND_") if failed else None,
        reason=reason if failed else "",
        peak_bytes=message.peak_bytes,
        seconds=message.seconds,
    )


def read_refs(refs: Mapping[str, pb.ObjectRef]) -> Refs:
    """Return what names objects."""
    return {name: ObjectRef(refs[name].sha256, refs[name].bytes) for name in refs}


def _write_refs(into: Any, refs: Refs) -> None:
    for name, ref in refs.items():
        into[name].sha256, into[name].bytes = ref.sha256, ref.size


def _scalar(name: str, message: pb.Scalar) -> Scalar:
    which = message.WhichOneof("value")
    if which is None:
        raise malformed(f"scalar {name} has no value")
    value: Scalar = getattr(message, which)
    return value


def _metric(name: str, message: pb.Metric) -> Metric:
    which = message.WhichOneof("value")
    if which is None:
        raise malformed(f"metric {name} has no value")
    value: float | Sequence[float]
    value = message.number if which == "number" else list(message.numbers.values)
    return value


def _number(kind: InstructionKind | ProgramKind | FailureKind, enum: Any, prefix: str) -> Any:
    """Return the number of a kind: kinds have the same names on both sides."""
    return enum.Value(prefix + kind.name)


def _kind(number: int, kinds: type[Kind], enum: Any, prefix: str) -> Kind:
    name = enum.Name(number) if number in enum.values() else f"{prefix}{number}"
    found = kinds.__members__.get(name.removeprefix(prefix))
    if found is None:
        raise malformed(f"{name} is unknown")
    return found
