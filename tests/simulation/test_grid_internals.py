"""The contract with each Flower that pyproject.toml allows: a test fails when an internal moves."""

import logging
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from mest_fed.errors import InputError
from mest_fed.server import flower_internals as internals


@pytest.fixture
def instruction() -> Message:
    internals.claim_identity(77)
    return Message(RecordDict(), 1000, MessageType.TRAIN)


def test_internals_are_written_for_this_flower() -> None:
    assert version("flwr").rpartition(".")[0] in ("1.41", "1.42")


def test_messages_belong_to_the_claimed_run_and_come_from_the_superlink(
    instruction: Message,
) -> None:
    assert instruction.metadata.run_id == 77
    assert instruction.metadata.src_node_id == internals.SUPERLINK_NODE_ID == 1


def test_empty_run_has_its_id() -> None:
    assert internals.empty_run(5).run_id == 5


def test_message_id_reaches_the_reply(instruction: Message) -> None:
    internals.set_message_id(instruction, "m-1")
    reply = Message(RecordDict(), reply_to=instruction)
    assert reply.metadata.reply_to_message_id == instruction.metadata.message_id == "m-1"


def test_error_reply_has_code_reason_and_source(instruction: Message) -> None:
    reply = internals.error_reply(instruction, internals.WORKER_DIED, "gone")
    assert (reply.error.code, reply.error.reason) == (8, "gone")
    assert reply.metadata.src_node_id == 1000


def test_rebuilt_message_has_metadata_of_its_own(instruction: Message) -> None:
    content = RecordDict({"config": ConfigRecord({"a": 1})})
    rebuilt = internals.rebuild_message(instruction.metadata, content)
    assert rebuilt.content["config"]["a"] == 1
    rebuilt.metadata.ttl = 1.0
    assert instruction.metadata.ttl != 1.0


def test_state_survives_bytes_bit_for_bit() -> None:
    values = np.array([[0.1, -np.inf], [np.nan, 3e-39]], dtype=np.float32)
    state = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(values), "n": Array(np.array(7))}),
            "config": ConfigRecord({"b": b"\x00\xff", "s": "ü", "l": [1, 2], "t": True}),
            "metrics": MetricRecord({"loss": 0.1, "many": [1.5, 2.5]}),
        }
    )
    data = internals.context_state_to_bytes(state)
    again = internals.context_state_from_bytes(data)
    assert again == state
    assert again["arrays"]["w"].numpy().tobytes() == values.tobytes()
    assert internals.context_state_to_bytes(again) == data


def test_bytes_that_are_no_state_are_an_input_error() -> None:
    with pytest.raises(InputError, match="5 bytes are not a client's state"):
        internals.context_state_from_bytes(b"\xff\xff\xff\xff\xff")


def test_flowers_log_is_written_to_the_stream_of_its_console_handler() -> None:
    assert internals.FLOWER_CONSOLE in logging.getLogger("flwr").handlers
    assert isinstance(internals.FLOWER_CONSOLE, logging.StreamHandler)
