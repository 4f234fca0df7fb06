"""Clients of one process share the decoding of equal downloads, and nothing else."""

import numpy as np
import pytest
from client_parts import context_of, instruction, small_config, start_of, task_of
from flwr.app import Array, ArrayRecord

from mest_fed.client.downloads import Downloads, downloads_of
from mest_fed.client.isolation import ALONE
from mest_fed.client.local_round import ClientState
from mest_fed.errors import WireError
from mest_fed.server.flower_internals import context_state_to_bytes
from mest_fed.sparsity.state import SparseState
from mest_fed.wire import UnknownMaskError

CONFIG = small_config()
SHARED = 2**25


@pytest.fixture(scope="module")
def start():
    return start_of(CONFIG)


def downloads(most_bytes=SHARED):
    return Downloads(task_of(CONFIG).spec, most_bytes)


def content_of(state, known=None):
    """Return a message's content in arrays of its own, as after a journey."""
    content = instruction(CONFIG, state, known=known).content
    arrays = content["arrays"]
    content["arrays"] = ArrayRecord(
        {n: Array(a.dtype, a.shape, a.stype, bytes(bytearray(a.data))) for n, a in arrays.items()}
    )
    return content


def tensors(state):
    return {**state.masks, **state.values, **state.dense}


def assert_equal(first, second):
    assert tensors(first).keys() == tensors(second).keys()
    for name, array in tensors(first).items():
        assert array.dtype == tensors(second)[name].dtype
        np.testing.assert_array_equal(array, tensors(second)[name])


def bits(context):
    return context_state_to_bytes(context.state)


def test_the_second_client_gets_what_it_would_have_decoded(start):
    shared, single = downloads(), downloads(0)
    for known in (None, start.masks):  # masks in full, then by name
        for partition in (0, 1):
            contexts = [context_of(CONFIG, partition) for _ in (shared, single)]
            if known is not None:
                for context in contexts:
                    ClientState(context).masks = known
            content = content_of(start, known)
            pairs = zip((shared, single), contexts, strict=True)
            states = [it.receive(content, ClientState(context)) for it, context in pairs]
            assert_equal(*states)
            assert_equal(states[0], start)
            assert bits(contexts[0]) == bits(contexts[1])
    assert single.bytes == 0
    assert shared.bytes > 0


def test_each_client_has_arrays_of_its_own(start):
    shared = downloads()
    for _ in range(3):
        context = context_of(CONFIG)
        got = shared.receive(content_of(start), ClientState(context))
        assert_equal(got, start)
        for array in tensors(got).values():
            array[...] = 7
        context.state["mest.masks"].clear()


def test_another_byte_is_decoded_anew(start):
    shared = downloads()
    shared.receive(content_of(start), ClientState(context_of(CONFIG)))
    for name in start.values:
        values = {n: array.copy() for n, array in start.values.items()}
        values[name][0, 0] += 1
        other = SparseState(start.masks, values, start.dense)
        assert_equal(shared.receive(content_of(other), ClientState(context_of(CONFIG))), other)


def test_a_message_that_lies_is_refused_beside_an_honest_one(start):
    shared = downloads()
    shared.receive(content_of(start), ClientState(context_of(CONFIG)))
    lies = content_of(start)
    honest = lies["arrays"]["values"]
    lies["arrays"]["values"] = Array("float16", honest.shape, honest.stype, honest.data)
    context = context_of(CONFIG)
    with pytest.raises(WireError, match="another type or shape than its record says"):
        shared.receive(lies, ClientState(context))
    assert not context.state
    with pytest.raises(WireError, match="are needed"):
        shared.receive(type(lies)(), ClientState(context))


def test_a_client_without_the_masks_does_not_get_them_from_another(start):
    shared, holder = downloads(), context_of(CONFIG)
    ClientState(holder).masks = start.masks
    shared.receive(content_of(start, start.masks), ClientState(holder))
    with pytest.raises(UnknownMaskError):
        shared.receive(content_of(start, start.masks), ClientState(context_of(CONFIG)))


def test_no_more_is_kept_than_allowed(start):
    content = content_of(start)
    one = downloads()
    one.receive(content, ClientState(context_of(CONFIG)))
    few = downloads(2 * one.bytes)
    for step in range(4):
        dense = {name: array + step for name, array in start.dense.items()}
        state = SparseState(start.masks, start.values, dense)
        assert_equal(few.receive(content_of(state), ClientState(context_of(CONFIG))), state)
        assert few.bytes == min(step + 1, 2) * one.bytes


def test_a_process_that_plays_one_device_keeps_none(start, monkeypatch):
    monkeypatch.setenv(ALONE, "1")
    downloads_of.cache_clear()
    alone = downloads_of(task_of(CONFIG))
    assert_equal(alone.receive(content_of(start), ClientState(context_of(CONFIG))), start)
    assert alone.bytes == 0
    downloads_of.cache_clear()
