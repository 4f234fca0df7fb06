"""Drawn products: sizes below, at and above the vector width, odd ones, and few active granules."""

import math

from hypothesis import strategies as st
from kernel_cases import Sizes

from mest_fed.kernels import Channels, ConvGeometry, Kernels, Strips


@st.composite
def cuts(draw, shape, channels):
    """Draw strips, or kernels that keep some taps; channels "too", "only", or not."""
    kinds = ["strips"] * 3 + ["kernels"] * (len(shape) == 4) + ["channels"] * (channels == "too")
    if channels == "only":
        kinds = ["channels"]
    kind = draw(st.sampled_from(kinds))
    if kind == "strips":
        return Strips(draw(st.sampled_from((1, 2, 3, 4, 5, 8, 16))))
    if kind == "channels":
        return Channels(draw(st.sampled_from(("out", "in"))))
    taps = range(math.prod(shape[2:]))
    width = draw(st.integers(1, min(4, len(taps))))
    some = st.lists(st.sampled_from(taps), min_size=width, max_size=width, unique=True)
    return Kernels(tuple(tuple(cells) for cells in draw(st.lists(some, min_size=1, max_size=8))))


BATCHES = st.sampled_from((1, 2, 3, 4, 5, 17, 33, 0))
TAPS = st.sampled_from((1, 2, 3, 3, 5))


@st.composite
def sizes(draw, channels=None):
    """Draw a convolution or a linear layer, at least as large as its kernel."""
    out_in = (draw(st.integers(1, 18)), draw(st.integers(1, 7)))
    batch = draw(BATCHES)
    if draw(st.integers(0, 4)) == 0:
        return Sizes(out_in, draw(cuts(out_in, channels)), (batch, out_in[1]))
    kernel = (draw(TAPS), draw(TAPS))
    if draw(st.booleans()):
        geometry = ConvGeometry((1, 1), (kernel[0] // 2, kernel[1] // 2))
    else:
        sides = (st.integers(1, 3), st.integers(0, 4), st.integers(1, 3))
        geometry = ConvGeometry(*(draw(st.tuples(side, side)) for side in sides))
    most = (4 if batch > 5 else 9, 40)
    sides = [
        max(draw(st.integers(1, side)), d * (k - 1) + 1 - 2 * p)
        for side, k, p, d in zip(most, kernel, geometry.padding, geometry.dilation, strict=True)
    ]
    shape = (*out_in, *kernel)
    return Sizes(shape, draw(cuts(shape, channels)), (batch, out_in[1], *sides), geometry)


@st.composite
def cases(draw, channels=None):
    """Draw a case: no slot, one, some, all; integers or not; with or without bias; any strides."""
    drawn = draw(sizes(channels))
    active = draw(st.sampled_from(("none", "one", "all", "some", "some", "some")))
    share = draw(st.floats(0, 1))
    some = int(share * drawn.num_granules)
    count = {"none": 0, "one": 1, "all": drawn.num_granules}.get(active, some)
    how = st.sampled_from(("", "strided", "transposed", "last"))
    return drawn.case(
        count,
        seed=draw(st.integers(0, 2**20)),
        bias=draw(st.booleans()),
        whole=draw(st.booleans()),
        strides=(draw(how), draw(how), draw(how)),
    )
