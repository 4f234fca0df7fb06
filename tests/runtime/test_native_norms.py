"""Normalisations of the native runtime against torch in float64."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from native_cases import SOME, compute, gradients, near, randn, wide
from torch.nn import functional as F

SHAPES = st.sampled_from([(1, 4, 2), (3, 8, 5, 5), (2, 4, 16, 16), (9, 12), (4, 8, 1, 3)])
EPSILON = 1e-5


@SOME
@given(SHAPES, st.sampled_from([1, 2, 4]), st.booleans(), st.booleans(), st.booleans())
def test_group_norm(shape, groups, relu, with_residual, in_place):
    x, dy, gamma, beta = (
        randn(*s, seed=i) for i, s in enumerate([shape, shape, shape[1:2], shape[1:2]])
    )
    residual = randn(*shape, seed=9) if with_residual else None
    leaves = wide(*(it for it in (x, gamma, beta, residual) if it is not None))
    exact = F.group_norm(leaves[0], groups, leaves[1], leaves[2], EPSILON)
    _check(
        "group_norm",
        (x, gamma, beta, residual, dy),
        exact,
        leaves,
        in_place=in_place,
        relu=relu,
        groups=groups,
    )


@SOME
@given(
    st.sampled_from([(3, 4, 2), (3, 8, 5, 5), (9, 12)]), st.booleans(), st.booleans(), st.booleans()
)
def test_batch_norm(shape, relu, with_residual, in_place):
    x, dy, gamma, beta = (
        randn(*s, seed=i) for i, s in enumerate([shape, shape, shape[1:2], shape[1:2]])
    )
    residual = randn(*shape, seed=9) if with_residual else None
    leaves = wide(*(it for it in (x, gamma, beta, residual) if it is not None))
    mean, variance = randn(shape[1], seed=10), randn(shape[1], seed=11).exp()
    mean64, variance64 = mean.double(), variance.double()
    exact = F.batch_norm(leaves[0], mean64, variance64, *leaves[1:3], True, 0.1, EPSILON)
    running = {"running_mean": mean, "running_variance": variance}
    got = _check(
        "batch_norm",
        (x, gamma, beta, residual, dy),
        exact,
        leaves,
        in_place=in_place,
        relu=relu,
        running=running,
    )
    near(got["running_mean"], mean64)
    near(got["running_variance"], variance64)


def _check(name, tensors, exact, leaves, *, in_place, relu, running=None, **groups):
    x, gamma, beta, residual, dy = tensors
    if residual is not None:
        exact = exact + leaves[3]
    exact = exact.relu() if relu else exact
    count = (x.shape[0], groups["groups"]) if groups else (x.shape[1],)
    how = {**groups, "epsilon": EPSILON, "relu": relu}
    if running:
        how["momentum"] = 0.1
    inputs = {"x": x, "gamma": gamma, "beta": beta, "residual": residual, **(running or {})}
    over = {"y": "x" if residual is None else "residual"} if in_place else {}
    outputs = {"y": tuple(x.shape), "mean": count, "scale": count}
    got = compute(name, inputs, outputs, over, **how)
    near(got["y"], exact)
    if relu:  # where rounding decides the sign, torch's gradient may be another
        clear = exact.detach().abs() > 1e-4
        dy = torch.where(clear | (exact.detach() == 0), dy, 0)
    found = gradients(exact, dy, *leaves)
    back = {it: got[it] for it in ("mean", "scale")} | {"x": x, "gamma": gamma, "dy": dy}
    back["y"] = got["y"] if relu else None
    wanted = {"dx": tuple(x.shape), "dgamma": (x.shape[1],), "dbeta": (x.shape[1],)}
    if residual is not None:
        wanted["dresidual"] = tuple(x.shape)
    for over in [{}, {"dx": "dy"}, {"dresidual": "dy"}][: 2 + (residual is not None)]:
        made = compute(f"{name}_gradient", back, wanted, over, **groups, relu=relu)
        for key, expected in zip(wanted, found, strict=True):
            near(made[key], expected, 1e-4)
    return got


@SOME
@given(st.sampled_from([((5,), 1), ((3, 7), 1), ((2, 3, 4), 2), ((300, 40), 1)]), st.booleans())
def test_layer_norm(case, in_place):
    shape, axes = case
    shape = (2, *shape)
    last, lead = shape[-axes:], shape[:-axes]
    x, dy, gamma, beta = (randn(*s, seed=i) for i, s in enumerate([shape, shape, last, last]))
    leaves = wide(x, gamma, beta)
    exact = F.layer_norm(leaves[0], last, leaves[1], leaves[2], EPSILON)
    outputs = {"y": shape, "mean": lead, "scale": lead}
    inputs = {"x": x, "gamma": gamma, "beta": beta}
    over = {"y": "x"} if in_place else {}
    got = compute("layer_norm", inputs, outputs, over, axes=axes, epsilon=EPSILON)
    near(got["y"], exact)
    back = {"x": x, "mean": got["mean"], "scale": got["scale"], "gamma": gamma, "dy": dy}
    wanted = {"dx": shape, "dgamma": last, "dbeta": last}
    over = {"dx": "dy"} if in_place else {}
    made = compute("layer_norm_gradient", back, wanted, over, axes=axes)
    for key, expected in zip(wanted, gradients(exact, dy, *leaves), strict=True):
        near(made[key], expected, 1e-4)
