"""Segments that are run again some images at a time: cut anywhere, the gradient is the same."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saving_cases import MODELS, backward, data, train

from mest_fed.memory import MemoryOptions
from mest_fed.memory.activations import micro_chunks as cutting
from mest_fed.memory.activations.micro_chunks import micro_chunks, only_the_ends


def shape(count, elements=64):
    return torch.Size((count, elements))


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 300), st.integers(1, 4000))
def test_cuts_cover_all_images_once(count, elements, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "CHUNK_BYTES", size)
        cuts = list(micro_chunks(shape(count, elements)))
        with only_the_ends():
            ends = list(micro_chunks(shape(count, elements))) if count else []
    assert [image for first, last in cuts for image in range(first, last)] == list(range(count))
    lengths = [last - first for first, last in cuts]
    assert all(length * 4 * elements <= size or length == 1 for length in lengths)
    assert all(before >= after for before, after in pairwise(lengths))
    assert len(set(lengths[:-1])) <= 1  # so the ends stand for all
    assert ends == [cuts[0], cuts[-1]] if len(cuts) > 1 else ends == cuts


def test_cuts_by_hand(monkeypatch):
    monkeypatch.setattr(cutting, "CHUNK_BYTES", 3 * 4 * 64)
    assert list(micro_chunks(shape(8))) == [(0, 3), (3, 6), (6, 8)]
    assert list(micro_chunks(shape(3))) == [(0, 3)]
    with only_the_ends():
        assert list(micro_chunks(shape(8))) == [(0, 3), (6, 8)]
    assert len(list(micro_chunks(shape(8)))) == 3


def count_pieces(monkeypatch, size):
    """Cut into micro_chunks of so many bytes; return a list that notes the cuts of each walk."""
    seen, whole = [], micro_chunks

    def noting(shape):
        cuts = list(whole(shape))
        seen.append(len(cuts))
        return iter(cuts)

    monkeypatch.setattr(cutting, "CHUNK_BYTES", size)
    for name in ("recompute", "batch_norm_block", "batch_norm_stem"):
        monkeypatch.setattr(f"mest_fed.memory.activations.{name}.micro_chunks", noting)
    return seen


@pytest.mark.soak
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", [1, 7, 8])
@pytest.mark.parametrize("case", [m for m in MODELS if not m.startswith("own")])
def test_gradients_do_not_depend_on_the_cuts(monkeypatch, case, count, dtype):
    expected = train(case, "none", "fp32", dtype=dtype, count=count)
    # Three images of the first stage's four channels; CNN2 is cut by its input's one.
    seen = count_pieces(monkeypatch, 3 * 4 * 64 * (1 if case.startswith("cnn2") else 4))
    outcome = train(case, "segments", "mask", dtype=dtype, count=count)
    assert max(seen) == {1: 1, 7: 3, 8: 3}[count]
    rel = 1e-10 if dtype == torch.float64 else 1e-6
    assert outcome.away_from(expected) <= rel
    for name, buffer in expected.buffers.items():
        torch.testing.assert_close(outcome.buffers[name], buffer, rtol=rel, atol=rel, msg=name)


@pytest.mark.parametrize("saved", ["fp16", "int8"])
@pytest.mark.parametrize("case", ["batch-block", "group-block"])
def test_packed_images_are_unpacked_a_chunk_at_a_time(monkeypatch, case, saved):
    whole = train(case, "segments", saved)
    seen = count_pieces(monkeypatch, 3 * 4 * 4 * 64)
    assert train(case, "segments", saved).away_from(whole) <= 1e-10
    assert max(seen) == 3


def test_dropout_draws_what_it_draws_without_savings(monkeypatch):
    """A few images at a time it would draw other numbers."""
    expected = train("own-None", "none", "fp32")
    seen = count_pieces(monkeypatch, 3 * 4 * 72)
    assert train("own-None", "segments", "fp32").away_from(expected) <= 1e-10
    assert max(seen) > 1  # what does not draw is cut


@pytest.mark.parametrize("case", ["batch-block", "group-block", "own-None"])
def test_the_gradient_of_the_images_is_there_where_someone_wants_it(monkeypatch, case):
    outcomes = []
    for memory in (MemoryOptions(), MemoryOptions("norms"), MemoryOptions("segments")):
        images, labels = data(8)
        images.requires_grad_()
        backward(MODELS[case]().double(), memory, (images, labels))
        outcomes.append(images.grad)
        monkeypatch.setattr(cutting, "CHUNK_BYTES", 3 * 4 * 4 * 64)
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(outcomes[2], outcomes[0], rtol=1e-10, atol=1e-10)
