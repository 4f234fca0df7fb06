"""Chunks that are subtrees, and memory_files between processes."""

import os
import time

import pytest
from flwr.app import Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.server.flower_internals import claim_identity
from mest_fed.simulation.engine.chunks import (
    MOST_JOBS,
    Chunk,
    Cutter,
    InFlightChunk,
    InFlightChunks,
)
from mest_fed.simulation.engine.client_runner import Job
from mest_fed.simulation.engine.shared_memory import SharedMemory, Span
from mest_fed.simulation.engine.worker_pool import WorkerHandle

claim_identity(1)
MESSAGE = Message(RecordDict(), 1000, "train")
CONTEXT = Context(1, 1000, {}, RecordDict(), {})


def cut_all(costs, room, workers, *, seconds, aligned):
    """Return all chunks in the order in which they go."""
    jobs = iter([Job(MESSAGE, CONTEXT, cost=cost) for cost in costs])
    cutter = Cutter(jobs, {"train": seconds}, aligned=aligned)
    chunks = []
    while (chunk := cutter.next(room, workers)) is not None:
        chunks.append(chunk)
    assert cutter.taken == len(costs)
    return chunks


@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=300),
    st.integers(1, 200),
    st.integers(1, 4),
    st.sampled_from([1e-5, 1e-3, 0.01, 1.0]),
    st.booleans(),
)
def test_chunks_hold_each_job_once_and_are_subtrees(costs, room, workers, seconds, aligned):
    chunks = cut_all(costs, room, workers, seconds=seconds, aligned=aligned)
    positions = [c.first + place for c in chunks for place in range(len(c.jobs))]
    assert sorted(positions) == list(range(len(costs)))
    placed = {c.first + place: job.cost for c in chunks for place, job in enumerate(c.jobs)}
    assert [placed[position] for position in range(len(costs))] == costs
    for chunk in chunks:
        size = len(chunk.jobs)
        assert size <= MOST_JOBS
        if aligned:
            assert size & (size - 1) == 0
            assert chunk.first % size == 0


def test_the_longest_go_first_and_those_that_run_again_before_all():
    chunks = cut_all([1.0, 5.0, 3.0], 10, 1, seconds=1.0, aligned=False)
    assert [chunk.first for chunk in chunks] == [1, 2, 0]
    jobs = iter([Job(MESSAGE, CONTEXT, cost=cost) for cost in (1.0, 2.0, 3.0)])
    cutter = Cutter(jobs, {"train": 1e-9}, aligned=False)
    whole = cutter.next(2, 1)
    assert len(whole.jobs) == 2
    whole.runs += 1
    for single in whole.singles():
        cutter.put_back(single)
    again = [cutter.next(1, 1) for _ in range(3)]
    assert [(chunk.first, chunk.runs) for chunk in again] == [(0, 1), (1, 1), (2, 0)]


def test_no_more_jobs_are_taken_than_there_is_room_for():
    taken = []
    jobs = (taken.append(number) or Job(MESSAGE, CONTEXT) for number in range(10))
    cutter = Cutter(jobs, {}, aligned=True)
    assert cutter.next(0, 2) is None
    assert cutter.next(-3, 2) is None
    assert taken == []
    cutter.next(4, 2)
    assert taken == [0, 1, 2, 3]


@pytest.fixture
def ends():
    made = SharedMemory.create()
    if made is None:
        pytest.skip("this system has no files without a name")
    reader, address = made
    writer = SharedMemory.find(address)
    yield reader, writer, address
    reader.close()
    writer.close()


def test_what_is_written_at_one_end_is_read_at_the_other_also_after_growing(ends):
    reader, writer, _ = ends
    for sizes in ([3, 0, 70], [1], [3 << 20, 5], [2]):
        data = [os.urandom(size) for size in sizes]
        spans = writer.write([memoryview(part) for part in data])
        assert [span.size for span in spans] == sizes
        assert all(span.start % 64 == 0 for span in spans)
        assert [bytes(reader.view(span)) for span in spans] == data
    assert writer.write([]) == []


def test_a_lane_that_cannot_grow_says_so_and_stays(ends, monkeypatch):
    reader, writer, _ = ends
    (small,) = writer.write([memoryview(b"abc")])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert writer.write([memoryview(bytes(64 << 20))]) is None
    assert bytes(reader.view(small)) == b"abc"


def test_a_lane_is_found_only_by_its_token(ends, tmp_path):
    _, _, address = ends
    assert SharedMemory.find(address._replace(token=b"x" * 32)) is None
    assert SharedMemory.find(address._replace(path=str(tmp_path / "nothing"))) is None
    (tmp_path / "empty").touch()
    assert SharedMemory.find(address._replace(path=str(tmp_path / "empty"))) is None


def test_a_span_is_as_large_as_it_says(ends):
    reader, writer, _ = ends
    (span,) = writer.write([memoryview(b"abcdef")])
    assert bytes(reader.view(Span(span.start + 2, 3))) == b"cde"


@pytest.mark.parametrize(("pace", "due"), [({}, 3 * 2.0), ({"train": 0.5}, 2.0 + 3 * 100 * 0.5)])
def test_a_chunk_is_due_by_the_pace_or_by_the_patience_for_each_client(pace, due):
    in_flight = InFlightChunks(pace, patience=2.0)
    worker = WorkerHandle(actor=None, memory_files=[], loading=None)
    chunk = Chunk(0.0, 0, [Job(MESSAGE, CONTEXT, cost=100.0)] * 3)
    begun = time.monotonic()
    in_flight.add("reference", InFlightChunk(chunk, worker, None))
    assert in_flight.next_due() - begun == pytest.approx(due, abs=0.5)
