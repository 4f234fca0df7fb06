from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_TRAIN: _ClassVar[Kind]
    KIND_EVALUATE: _ClassVar[Kind]
    KIND_FORGET: _ClassVar[Kind]
    KIND_QUERY: _ClassVar[Kind]

class ProgramKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROGRAM_KIND_UNSPECIFIED: _ClassVar[ProgramKind]
    PROGRAM_KIND_STEP: _ClassVar[ProgramKind]
    PROGRAM_KIND_FORWARD: _ClassVar[ProgramKind]

class FailureKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_KIND_UNSPECIFIED: _ClassVar[FailureKind]
    FAILURE_KIND_OVER_BUDGET: _ClassVar[FailureKind]
    FAILURE_KIND_OUT_OF_MEMORY: _ClassVar[FailureKind]
    FAILURE_KIND_NOT_FINITE: _ClassVar[FailureKind]
    FAILURE_KIND_CLIENT_ERROR: _ClassVar[FailureKind]
    FAILURE_KIND_WORKER_DIED: _ClassVar[FailureKind]
    FAILURE_KIND_BATTERY_LOW: _ClassVar[FailureKind]
    FAILURE_KIND_WENT_AWAY: _ClassVar[FailureKind]
    FAILURE_KIND_BUSY: _ClassVar[FailureKind]
KIND_UNSPECIFIED: Kind
KIND_TRAIN: Kind
KIND_EVALUATE: Kind
KIND_FORGET: Kind
KIND_QUERY: Kind
PROGRAM_KIND_UNSPECIFIED: ProgramKind
PROGRAM_KIND_STEP: ProgramKind
PROGRAM_KIND_FORWARD: ProgramKind
FAILURE_KIND_UNSPECIFIED: FailureKind
FAILURE_KIND_OVER_BUDGET: FailureKind
FAILURE_KIND_OUT_OF_MEMORY: FailureKind
FAILURE_KIND_NOT_FINITE: FailureKind
FAILURE_KIND_CLIENT_ERROR: FailureKind
FAILURE_KIND_WORKER_DIED: FailureKind
FAILURE_KIND_BATTERY_LOW: FailureKind
FAILURE_KIND_WENT_AWAY: FailureKind
FAILURE_KIND_BUSY: FailureKind

class EnrolRequest(_message.Message):
    __slots__ = ("token", "csr_pem", "name")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    token: str
    csr_pem: bytes
    name: str
    def __init__(self, token: _Optional[str] = ..., csr_pem: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("certificate_pem", "authority_pem")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_PEM_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    authority_pem: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ..., authority_pem: _Optional[bytes] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("version", "name", "profile_name", "profile_toml", "budget_bytes", "memory_limit_bytes", "examples", "partition", "capabilities", "data_kind", "saving")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROFILE_NAME_FIELD_NUMBER: _ClassVar[int]
    PROFILE_TOML_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    DATA_KIND_FIELD_NUMBER: _ClassVar[int]
    SAVING_FIELD_NUMBER: _ClassVar[int]
    version: int
    name: str
    profile_name: str
    profile_toml: str
    budget_bytes: int
    memory_limit_bytes: int
    examples: int
    partition: int
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    data_kind: str
    saving: bool
    def __init__(self, version: _Optional[int] = ..., name: _Optional[str] = ..., profile_name: _Optional[str] = ..., profile_toml: _Optional[str] = ..., budget_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., examples: _Optional[int] = ..., partition: _Optional[int] = ..., capabilities: _Optional[_Iterable[str]] = ..., data_kind: _Optional[str] = ..., saving: bool = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("session", "node_id", "chunk_bytes", "heartbeat_seconds", "wait_seconds", "max_upload_bytes", "run_json", "name", "notice")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUN_JSON_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    node_id: int
    chunk_bytes: int
    heartbeat_seconds: float
    wait_seconds: float
    max_upload_bytes: int
    run_json: str
    name: str
    notice: str
    def __init__(self, session: _Optional[bytes] = ..., node_id: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., heartbeat_seconds: _Optional[float] = ..., wait_seconds: _Optional[float] = ..., max_upload_bytes: _Optional[int] = ..., run_json: _Optional[str] = ..., name: _Optional[str] = ..., notice: _Optional[str] = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("session", "last_seen")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    last_seen: str
    def __init__(self, session: _Optional[bytes] = ..., last_seen: _Optional[str] = ...) -> None: ...

class Work(_message.Message):
    __slots__ = ("instruction",)
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    instruction: Instruction
    def __init__(self, instruction: _Optional[_Union[Instruction, _Mapping]] = ...) -> None: ...

class Instruction(_message.Message):
    __slots__ = ("id", "kind", "round", "deadline_seconds", "scalars", "objects")
    class ScalarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Scalar
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Scalar, _Mapping]] = ...) -> None: ...
    class ObjectsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ObjectRef
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ObjectRef, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: Kind
    round: int
    deadline_seconds: float
    scalars: _containers.MessageMap[str, Scalar]
    objects: _containers.MessageMap[str, ObjectRef]
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[Kind, str]] = ..., round: _Optional[int] = ..., deadline_seconds: _Optional[float] = ..., scalars: _Optional[_Mapping[str, Scalar]] = ..., objects: _Optional[_Mapping[str, ObjectRef]] = ...) -> None: ...

class Scalar(_message.Message):
    __slots__ = ("truth", "integer", "number", "text")
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    truth: bool
    integer: int
    number: float
    text: str
    def __init__(self, truth: bool = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class ObjectRef(_message.Message):
    __slots__ = ("sha256", "bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    bytes: int
    def __init__(self, sha256: _Optional[bytes] = ..., bytes: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("session", "sha256", "offset")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    sha256: bytes
    offset: int
    def __init__(self, session: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ProgramRequest(_message.Message):
    __slots__ = ("session", "kind", "examples", "counts", "mutates", "reads")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    MUTATES_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    kind: ProgramKind
    examples: int
    counts: _containers.ScalarMap[str, int]
    mutates: bool
    reads: bool
    def __init__(self, session: _Optional[bytes] = ..., kind: _Optional[_Union[ProgramKind, str]] = ..., examples: _Optional[int] = ..., counts: _Optional[_Mapping[str, int]] = ..., mutates: bool = ..., reads: bool = ...) -> None: ...

class ProgramReply(_message.Message):
    __slots__ = ("objects",)
    class ObjectsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ObjectRef
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ObjectRef, _Mapping]] = ...) -> None: ...
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.MessageMap[str, ObjectRef]
    def __init__(self, objects: _Optional[_Mapping[str, ObjectRef]] = ...) -> None: ...

class UploadStateRequest(_message.Message):
    __slots__ = ("session", "instruction", "sha256")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    instruction: str
    sha256: bytes
    def __init__(self, session: _Optional[bytes] = ..., instruction: _Optional[str] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class UploadStateReply(_message.Message):
    __slots__ = ("received",)
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    received: int
    def __init__(self, received: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("session", "instruction", "sha256", "bytes", "offset", "data")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    instruction: str
    sha256: bytes
    bytes: int
    offset: int
    data: bytes
    def __init__(self, session: _Optional[bytes] = ..., instruction: _Optional[str] = ..., sha256: _Optional[bytes] = ..., bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("received",)
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    received: int
    def __init__(self, received: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("session", "instruction", "objects", "metrics", "failure", "peak_bytes", "seconds")
    class ObjectsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ObjectRef
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ObjectRef, _Mapping]] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Metric
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Metric, _Mapping]] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    instruction: str
    objects: _containers.MessageMap[str, ObjectRef]
    metrics: _containers.MessageMap[str, Metric]
    failure: Failure
    peak_bytes: int
    seconds: float
    def __init__(self, session: _Optional[bytes] = ..., instruction: _Optional[str] = ..., objects: _Optional[_Mapping[str, ObjectRef]] = ..., metrics: _Optional[_Mapping[str, Metric]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., peak_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("number", "numbers")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    number: float
    numbers: Numbers
    def __init__(self, number: _Optional[float] = ..., numbers: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("kind", "reason")
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    kind: FailureKind
    reason: str
    def __init__(self, kind: _Optional[_Union[FailureKind, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("session", "instruction")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    instruction: str
    def __init__(self, session: _Optional[bytes] = ..., instruction: _Optional[str] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("open",)
    OPEN_FIELD_NUMBER: _ClassVar[int]
    open: bool
    def __init__(self, open: bool = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
