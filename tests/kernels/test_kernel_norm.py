"""Normalisation, residual and ReLU in one operator against torch's layers in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import restride
from norm_cases import EPSILON, NormCase
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mest_fed.kernels import native, torch_threads
from mest_fed.kernels.native import OPERATORS

pytestmark = pytest.mark.skipif(not native.available(), reason="no compiled kernels")
KINDS = pytest.mark.parametrize("groups", [0, 1, 3, 6], ids=["batch", "layer", "3", "instance"])
BEHIND = pytest.mark.parametrize(
    ("relu", "residual"), [(False, False), (True, False), (False, True), (True, True)]
)


@st.composite
def shapes(draw):
    """Draw a shape and groups, with at least two values for each statistic."""
    images = draw(st.sampled_from((1, 2, 3, 4, 5, 33)))
    channels = draw(st.integers(1, 40))
    side = st.one_of(st.integers(1, 9), st.integers(1, 40))
    most = 40 if images * channels < 80 else 6
    shape = (images, channels, min(most, draw(side)), min(most, draw(side)))
    divisors = [groups for groups in range(1, channels + 1) if channels % groups == 0]
    groups = draw(st.sampled_from([0, *divisors]))
    plane = shape[2] * shape[3]
    if (images if groups == 0 else channels // groups) * plane == 1:
        shape = (*shape[:3], 2)
    return shape, groups


@st.composite
def cases(draw):
    """Draw a case of any strides."""
    shape, groups = draw(shapes())
    case = NormCase.draw(
        shape,
        groups,
        relu=draw(st.booleans()),
        residual=draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
        mean=draw(st.sampled_from((0.0, 0.0, 3.0, -1000.0))),
    )
    how = st.sampled_from(("", "", "strided", "transposed", "last"))
    case.x, case.upstream = restride(case.x, draw(how)), restride(case.upstream, draw(how))
    if case.residual is not None:
        case.residual = restride(case.residual, draw(how))
    return case


@settings(deadline=None, max_examples=150)
@given(cases(), st.sampled_from((1, 1, 2, 3)))
def test_results_and_gradients_are_those_in_float64(case, count):
    with torch_threads(count):
        case.check()


@KINDS
@BEHIND
@pytest.mark.parametrize("size", [(1, 2), (3, 5), (16, 16), (33, 32)])
def test_usual_sizes(size, groups, relu, residual):
    NormCase.draw((4, 6, *size), groups, relu=relu, residual=residual).check()


@pytest.mark.parametrize("width", range(1, 41))
def test_every_width(width):
    for channels in (1, 17, 35):
        NormCase.draw((2, channels, 1, width), seed=width).check()
        NormCase.draw((2, channels, 1, width + 1), 1, seed=width).check()


@KINDS
@BEHIND
def test_a_large_mean_beside_a_small_deviation(groups, relu, residual):
    case = NormCase.draw((5, 6, 9, 9), groups, relu=relu, residual=residual, mean=1000.0)
    case.check()
    z = NormCase.draw((5, 6, 9, 9), groups, relu=False, residual=False, mean=1000.0)
    z.gamma, z.beta = torch.ones(6), torch.zeros(6)
    spread = z.run()[0][0].var(unbiased=False)
    assert abs(float(spread) - 1) < 1e-3  # no cancellation


@KINDS
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1000.0])
def test_constant_channels(value, groups):
    case = NormCase.draw((3, 6, 5, 7), groups)
    case.x.fill_(value)
    case.check()
    _, (_, scale) = case.run()
    assert torch.allclose(scale, torch.full_like(scale, EPSILON**-0.5), rtol=1e-4)


@KINDS
def test_one_image_far_from_the_others(groups):
    case = NormCase.draw((33, 6, 4, 4), groups)
    case.x[0] += 100
    case.check()


@KINDS
@BEHIND
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_spreads_as_in_torch(bad, groups, relu, residual):
    case = NormCase.draw((2, 6, 3, 5), groups, relu=relu, residual=residual)
    case.x[1, 2, 1, 1] = bad
    kind = nn.GroupNorm(groups, 6) if groups else nn.BatchNorm2d(6)
    z = kind(case.x)
    z = z if case.residual is None else z + case.residual
    z = z.relu() if relu else z
    got = case.run()[0]
    assert torch.equal(got[0].isnan(), z.isnan())
    assert got[0].isnan().any()
    assert got[1].isnan().any()  # and back


@BEHIND
def test_a_residual_that_is_no_number_stays_there(relu, residual):
    case = NormCase.draw((2, 3, 4, 5), relu=relu, residual=True)
    case.residual[0, 1, 2, 3] = torch.nan
    assert case.run()[0][0].isnan().sum() == 1


def bits(case):
    results, statistics = case.run()
    return [tensor.contiguous().view(torch.int32) for tensor in (*results, *statistics)]


@settings(deadline=None, max_examples=40)
@given(cases())
def test_any_number_of_threads_gives_the_same_bits(case):
    with torch_threads(1):
        first = bits(case)
    for count in (2, 3, 4, 1):
        with torch_threads(count):
            for a, b in zip(first, bits(case), strict=True):
                assert torch.equal(a, b), count


def test_gradients_pass_where_the_result_is_above_zero():
    # With and without a residual of zeros: the sign kept, and the sign computed again.
    case = NormCase.draw((7, 20, 13, 11), mean=20.0)
    case.residual.zero_()
    kept = case.run()[0]
    case.residual = None
    again = case.run()[0]
    for a, b in zip(kept, again, strict=False):
        assert torch.equal(a, b)
    assert torch.equal(kept[4] != 0, kept[0] > 0)


GOOD = {
    "x": torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(1)),
    "gamma": torch.ones(6),
    "beta": torch.zeros(6),
    "residual": None,
    "groups": 0,
    "relu": True,
    "epsilon": 1e-5,
    "dz": torch.ones(2, 6, 4, 5),
    "z": torch.ones(2, 6, 4, 5),
    "mean": torch.zeros(6),
    "scale": torch.ones(6),
    "had_residual": True,
}
ARGUMENTS = {
    "norm": "x gamma beta residual groups relu epsilon",
    "norm_backward": "dz x z gamma beta mean scale groups relu had_residual",
}
GROUPED = {"groups": 3, "mean": torch.zeros(6), "residual": torch.ones(2, 6, 4, 5)}
BARE = {"relu": False, "z": None, "had_residual": False}


def arguments(name, changes):
    return tuple({**GOOD, **changes}[key] for key in ARGUMENTS[name].split())


def call(name, **changes):
    return getattr(OPERATORS, name)(*arguments(name, changes))


@pytest.mark.parametrize("changes", [{}, GROUPED, BARE], ids=["batch", "group", "bare"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_torch_accepts_the_operators(name, changes):
    torch.library.opcheck(getattr(OPERATORS, name).default, arguments(name, changes))


@pytest.mark.parametrize("changes", [{}, GROUPED, BARE], ids=["batch", "group", "bare"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_fake_tensors_have_the_shapes_of_real_ones(name, changes):
    changes = {**changes, "x": restride(GOOD["x"], "last")}
    real = call(name, **changes)
    with FakeTensorMode() as mode:
        fakes = {
            key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for key, value in {**GOOD, **changes}.items()
        }
        fake = call(name, **fakes)
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


OTHER = torch.ones(2, 6, 4, 4)
WRONG = [
    ("x", {"x": GOOD["x"].double()}),
    ("x", {"x": GOOD["x"].bfloat16()}),
    ("x", {"x": torch.ones(0, 6, 4, 5), "dz": torch.ones(0, 6, 4, 5)}),
    ("x", {"x": torch.ones(2, 6, 0, 5)}),
    ("gamma", {"gamma": torch.ones(5)}),
    ("gamma", {"gamma": torch.ones(6, 1)}),
    ("gamma", {"gamma": torch.ones(6).double()}),
    ("beta", {"beta": torch.ones(7)}),
    ("beta", {"beta": torch.ones(6).double()}),
    ("residual", {"residual": OTHER}),
    ("residual", {"residual": torch.ones(1, 6, 4, 5)}),
    ("residual", {"residual": torch.ones(2, 6, 4, 5).double()}),
    ("groups", {"groups": 4}),
    ("groups", {"groups": 7}),
    ("dz", {"dz": OTHER}),
    ("dz", {"dz": GOOD["dz"].double()}),
    ("z", {"z": OTHER}),
    ("z", {"z": GOOD["z"].double()}),
    ("mean", {"mean": torch.ones(5)}),
    ("mean", {"mean": torch.ones(6).double()}),
    ("mean", {"groups": 6}),
    ("scale", {"scale": torch.ones(7)}),
]


@pytest.mark.parametrize(
    ("name", "named", "changes"),
    [
        pytest.param(name, named, changes, id=f"{name}-{named}-{i}")
        for i, (named, changes) in enumerate(WRONG)
        for name, keys in ARGUMENTS.items()
        if named in keys.split()
    ],
)
def test_wrong_arguments_are_refused_by_name(name, named, changes):
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        call(name, **changes)


# Sizes are asked for before they are checked: what is allocated first must not be what fails.
BEFORE = {
    "groups below zero": ("groups", {"groups": -1}),
    "groups of 40 bits": ("groups", {"groups": 2**40}),
    "x of one dimension": ("x", {"x": torch.ones(6)}),
    "x of none": ("x", {"x": torch.ones(())}),
}


@pytest.mark.parametrize("what", BEFORE)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_sizes_that_cannot_be_are_refused_by_name(name, what):
    named, changes = BEFORE[what]
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        call(name, **changes)


def test_a_result_that_the_gradient_needs_is_asked_for():
    # The sign before the ReLU cannot be computed again where a residual was added.
    with pytest.raises(ValueError, match=r"\bz\b"):
        call("norm_backward", z=None)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name, keys in ARGUMENTS.items()
        for key in keys.split()
        if isinstance(GOOD[key], torch.Tensor)
    ],
)
def test_meta_tensors_beside_real_ones_are_refused(name, key):
    with pytest.raises(ValueError, match="several devices"):
        call(name, **{key: GOOD[key].to("meta")})
