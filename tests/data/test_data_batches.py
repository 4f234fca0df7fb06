"""Minibatches: order, sizes, normalisation, augmentation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.data import ArrayData, Batches, crop_flip
from mest_fed.data.minibatches import Examples, scale_fault
from mest_fed.errors import InputError
from mest_fed.rng import numpy_generator, torch_generator


def images(count, channels=3, side=6):
    pixels = torch.randint(
        0, 256, (count, channels, side, side), dtype=torch.uint8, generator=torch_generator(0, "x")
    )
    mean, std = (0.5, 0.25, 0.1)[:channels], (0.2, 0.3, 0.4)[:channels]
    return ArrayData(pixels, torch.arange(count) % 10, 10, mean, std)


def sizes(batches):
    return [len(batch.targets) for batch in batches]


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [
        (10, 5, [5, 5]),
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),  # the lone ninth joins
        (5, 4, [5]),
        (3, 8, [3]),
        (1, 8, [1]),
        (3, 1, [1, 1, 1]),
        (3, 2, [3]),
        (0, 4, []),
    ],
)
def test_sizes(count, batch_size, expected):
    batches = Batches(images(12), np.arange(count), batch_size)
    assert sizes(batches) == expected
    assert len(batches) == len(expected)


@given(count=st.integers(0, 60), batch_size=st.integers(2, 20))
def test_every_example_once_and_none_alone(count, batch_size):
    batches = list(Batches(images(60), np.arange(count), batch_size, generator=numpy_generator(1)))
    seen = np.concatenate([batch.examples for batch in batches]) if batches else np.zeros(0)
    assert sorted(seen) == list(range(count))
    assert all(2 <= size <= batch_size + 1 for size in sizes(batches)) or count == 1


def test_values_labels_and_positions():
    data = images(8)
    indices = np.array([5, 0, 7])
    (batch,) = Batches(data, indices, 4)
    assert batch.inputs.dtype == torch.float32
    assert batch.targets.tolist() == [5, 0, 7]
    assert batch.examples.tolist() == [0, 1, 2]
    assert batch.examples.dtype == np.int64
    pixel = data.inputs[7, 1, 2, 3].item()
    assert batch.inputs[2, 1, 2, 3].item() == pytest.approx((pixel / 255 - 0.25) / 0.3, abs=1e-5)


def test_the_data_are_not_touched():
    data = images(8)
    before = data.inputs.clone()
    for batch in Batches(
        data, np.arange(8), 4, generator=numpy_generator(0), augmentation="crop-flip"
    ):
        batch.inputs.zero_()
    assert torch.equal(data.inputs, before)


def test_order_is_drawn_from_the_generator_and_anew_each_epoch():
    def epochs(seed):
        batches = Batches(images(40), np.arange(40), 7, generator=numpy_generator(seed))
        return [np.concatenate([batch.examples for batch in batches]).tolist() for _ in range(2)]

    assert epochs(0) == epochs(0)
    first, second = epochs(0)
    assert first != second
    assert first != epochs(1)[0]


def test_global_generators_are_left_alone():
    state = torch.random.get_rng_state()
    generator = numpy_generator(0)
    list(Batches(images(9), np.arange(9), 4, generator=generator, augmentation="crop-flip"))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_kept_examples_only():
    batches = Batches(
        images(20), np.arange(10, 20), 2, generator=numpy_generator(0), kept=np.array([1, 4, 9])
    )
    (batch,) = batches
    assert sorted(batch.examples) == [1, 4, 9]
    assert batch.targets.tolist() == [(10 + example) % 10 for example in batch.examples]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "training.batch_size = 0"),
        ({"batch_size": 2, "augmentation": "mixup"}, "allowed: none, crop-flip"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError, match=words):
        Batches(images(4), np.arange(4), generator=numpy_generator(0), **options)


def test_augmentation_without_a_generator_is_a_mistake():
    with pytest.raises(ValueError, match="generator"):
        Batches(images(4), np.arange(4), 2, augmentation="crop-flip")


def test_each_crop_is_a_shift_of_its_image_into_zeros():
    side, pad = 6, 4
    originals = images(300, channels=2, side=side).inputs.clamp(min=1)
    crops = torch.from_numpy(crop_flip(originals.numpy(), numpy_generator(3)))
    assert crops.shape == originals.shape
    assert crops.dtype == torch.uint8
    seen = set()
    for original, crop in zip(originals, crops, strict=True):
        padded = torch.zeros(2, side + 2 * pad, side + 2 * pad, dtype=torch.uint8)
        padded[:, pad:-pad, pad:-pad] = original
        matches = _matches(padded, crop, side, pad)
        assert matches
        seen.update(matches)
    assert {top for top, _, _ in seen} == set(range(9))
    assert {left for _, left, _ in seen} == set(range(9))
    assert {flip for _, _, flip in seen} == {False, True}


def _matches(padded, crop, side, pad):
    found = []
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = padded[:, top : top + side, left : left + side]
            found += [(top, left, False)] * torch.equal(window, crop)
            found += [(top, left, True)] * torch.equal(window.flip(2), crop)
    return found


def test_shifts_and_flips_are_evenly_drawn():
    # One lit pixel in the middle of 9x9 stays inside under every shift and tells it.
    count = 8100
    lit = torch.zeros(count, 1, 9, 9, dtype=torch.uint8)
    lit[:, 0, 4, 4] = 255
    crops = torch.from_numpy(crop_flip(lit.numpy(), numpy_generator(0)))
    assert (crops.flatten(1) > 0).sum(1).eq(1).all()
    rows = crops.flatten(1).argmax(1) // 9
    counts = rows.bincount(minlength=9)
    assert ((counts - count / 9).abs() < 150).all()  # about five deviations
    half = torch.zeros(count, 1, 9, 9, dtype=torch.uint8)
    half[..., 5:] = 255  # right of the middle: a flip moves it to the left
    mirrored = torch.from_numpy(crop_flip(half.numpy(), numpy_generator(0)))
    left_heavy = mirrored[..., :4].float().mean((1, 2, 3)) > mirrored[..., 5:].float().mean(
        (1, 2, 3)
    )
    assert 0.4 < left_heavy.float().mean() < 0.6


STANDARD = np.random.default_rng(0).normal(0.3, 0.38, (200, 1, 8, 8)).clip(0, 1)


@pytest.mark.parametrize(
    ("inputs", "far"),
    [
        (STANDARD.astype(np.float32), False),
        ((255 * STANDARD).astype(np.uint8), False),
        ((255 * STANDARD).astype(np.float32), True),
        ((16 * STANDARD).astype(np.uint8), True),
        (np.full((3, 1, 8, 8), 9.0, np.float32), True),
        (STANDARD[:0].astype(np.float32), False),
    ],
)
def test_examples_of_another_scale_than_the_runs_are_found(inputs, far):
    targets = np.zeros(len(inputs), np.int64)
    known = Examples(inputs, targets, (0.3,), (0.38,))
    fault = scale_fault(known)
    assert (fault is not None) == far, fault
    if far:
        assert f"inputs are {inputs.dtype} from " in fault
        assert "expected: about 0 and 1" in fault
    # A run that normalises by nothing does not tell its scale.
    assert scale_fault(Examples(inputs, targets, (0.0,), (1.0,))) is None
    assert scale_fault(Examples(inputs, targets)) is None


def test_floats_from_0_to_1_are_found_where_the_run_has_standardised_ones():
    images = np.random.default_rng(0).random((40, 1, 8, 8), np.float32)
    targets = np.zeros(40, np.int64)

    def fault(inputs, mean=0.002, std=0.998):
        return scale_fault(Examples(inputs.astype(np.float32), targets, (mean,), (std,)))

    assert "inputs are float32 from" in fault(images * (images > 0.3))
    assert fault((images - images.mean()) / images.std()) is None
    assert fault(images, mean=float(images.mean()), std=float(images.std())) is None
    assert fault(images[:, :, :2, :2] + 0.01) is None  # too few to tell
