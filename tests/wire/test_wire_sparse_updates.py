"""Updates as differences of dense weights, and the largest of them alone."""

import dataclasses

import numpy as np
import pytest
from wire_states import assert_same, random_state, random_values, spec_for, with_what_is_owed

from mest_fed.config import from_table
from mest_fed.errors import InputError, WireError
from mest_fed.sparsity.state import SparseState
from mest_fed.wire import Payload, decode, encode
from mest_fed.wire.topk import largest
from mest_fed.wire.values import open_codecs, value_codec

SPEC = dataclasses.replace(spec_for("block"), statistics=frozenset({"bn.running_var"}))
DENSE = dataclasses.replace(spec_for("dense"), statistics=frozenset({"bn.running_var"}))
SPECS = {"sparse": SPEC, "dense": DENSE}


@pytest.fixture(autouse=True)
def _its_own_share():
    yield
    open_codecs("topk")


def sent(state, spec, name, reference=None, residual=None):
    open_codecs(name)
    payload, residual = encode(state, spec, values=name, reference=reference, residual=residual)
    return payload, decode(payload, spec, reference=reference), residual


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("name", ["topk", "topk:0.1", "topk:1"])
def test_the_largest_changes_travel_and_the_others_are_owed(kind, name):
    spec = SPECS[kind]
    start, state = random_state(spec, seed=1), random_state(spec, seed=1)
    drawn = random_state(spec, seed=2, masks=start.masks)
    state = SparseState(start.masks, drawn.values, drawn.dense)
    payload, got, residual = sent(state, spec, name, start)
    weights = [*start.values, "stem.weight", "scale"]
    change = {it: _flat(state)[it] - _flat(start)[it] for it in weights}
    arrived = {it: _flat(got)[it] - _flat(start)[it] for it in weights}
    inside = sum(layout.active_weights(start.masks[it]) for it, layout in spec.layouts.items()) + 55
    count = int(np.ceil(value_codec(name).share * inside))
    assert payload.arrays["values"].shape == payload.arrays["positions"].shape == (count,)
    came = np.concatenate([arrived[it] != 0 for it in weights])
    size = np.abs(np.concatenate([change[it] for it in weights]))
    assert came.sum() == np.count_nonzero(np.sort(size)[::-1][:count])
    assert size[came].min() >= size[~came].max(initial=0)
    np.testing.assert_array_equal(got.dense["bn.running_var"], state.dense["bn.running_var"])
    assert_same(with_what_is_owed(got, residual), state, 2**-20, start)


def _flat(state):
    return {name: array.reshape(-1) for name, array in (state.values | state.dense).items()}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("name", ["topk:0.2", "int8"])
def test_a_change_that_is_meant_again_and_again_arrives(kind, name):
    spec = SPECS[kind]
    start = random_state(spec, seed=1)
    meant = SparseState(start.masks, random_values(spec, start.masks, 5), start.dense)
    meant.dense["scale"] = np.float32(start.dense["scale"] + 3).reshape(())
    total, residual, rounds = 0.0, None, 40
    for _ in range(rounds):
        _, got, residual = sent(meant, spec, name, start, residual)
        total = total + got.dense["scale"].astype(np.float64)
    assert total / rounds == pytest.approx(meant.dense["scale"], abs=0.2)


def test_weights_of_a_dense_model_travel_in_8_bits():
    start, state = random_state(DENSE, seed=1), random_state(DENSE, seed=2)
    payload, got, residual = sent(state, DENSE, "int8", start)
    sizes = {name: (array.dtype.str, array.size) for name, array in payload.arrays.items()}
    assert sizes == {"values": ("|i1", 55), "scales": ("<f4", 2), "dense": ("<f2", 3)}
    assert_same(got, state, 0.51 / 127, start)
    assert set(residual.values) == {"stem.weight", "scale"}
    with pytest.raises(WireError, match="no reference"):
        decode(payload, DENSE)
    with pytest.raises(WireError, match="another reference"):
        decode(payload, DENSE, reference=state)


def test_dense_weights_beside_sparse_layers_are_in_half_precision_with_int8():
    payload, _, residual = sent(random_state(SPEC), SPEC, "int8", random_state(SPEC))
    assert payload.arrays["dense"].size == 58
    assert residual.values.keys() == SPEC.layouts.keys()


@pytest.mark.parametrize(
    ("positions", "values"),
    [
        ([1, 1], [1, 1]),  # twice
        ([3, 2], [1, 1]),  # not sorted
        ([0, 55], [1, 1]),  # out of range
        ([0, 2**32 - 1], [1, 1]),
        ([0, 1], [1, np.nan]),
        ([0, 1], [np.inf, 1]),
    ],
)
def test_positions_and_values_that_no_sender_writes(positions, values):
    state = random_state(DENSE)
    payload, _, _ = sent(state, DENSE, "topk:0.03", state)
    bad = {"positions": np.array(positions, "<u4"), "values": np.array(values, "<f4")}
    assert {name: payload.arrays[name].shape for name in bad} == dict.fromkeys(bad, (2,))
    with pytest.raises(WireError, match=r"positions|finite"):
        decode(Payload(payload.arrays | bad, payload.header), DENSE, reference=state)


@pytest.mark.parametrize("change", ["longer", "shorter", "missing", "another type"])
@pytest.mark.parametrize("field", ["values", "positions"])
def test_arrays_of_another_length_or_type(field, change):
    state = random_state(SPEC)
    payload, _, _ = sent(state, SPEC, "topk:0.1", state)
    array = payload.arrays[field]
    bad = {
        "longer": np.concatenate([array, array[-1:] + 1]),
        "shorter": array[:-1],
        "missing": None,
        "another type": array.astype("<f2"),
    }[change]
    arrays = payload.arrays | {field: bad}
    if bad is None:
        del arrays[field]
    with pytest.raises(WireError):
        decode(Payload(arrays, payload.header), SPEC, reference=state)


def test_the_share_is_the_run_s_and_not_the_sender_s():
    state = random_state(SPEC)
    payload, _ = encode(state, SPEC, values="topk:0.5", reference=state)
    open_codecs("topk:0.1")
    with pytest.raises(WireError, match="array values"):
        decode(payload, SPEC, reference=state)


@pytest.mark.parametrize("count", [0, 1, 7, 150_000, 200_000])
@pytest.mark.parametrize("levels", [1, 5, 10**6])
def test_the_largest_are_those_of_a_stable_sort(count, levels):
    values = np.random.default_rng(levels).integers(-levels, levels + 1, 200_000).astype("f4")
    wanted = np.sort(np.argsort(-np.abs(values), kind="stable")[:count])
    np.testing.assert_array_equal(largest(values, count), wanted)


@pytest.mark.parametrize("share", ["0", "2", "x", "", "-0.1"])
def test_a_share_that_is_none(share):
    with pytest.raises(InputError, match=r"topk:.* is not allowed.*\(0, 1\]"):
        value_codec(f"topk:{share}")
    with pytest.raises(InputError, match=r"wire.upload = 'topk:.*allowed: .*topk:SHARE"):
        from_table({"wire": {"upload": f"topk:{share}"}}, "test")


@pytest.mark.parametrize("name", ["topk", "topk:0.5"])
def test_downloads_are_no_differences(name):
    with pytest.raises(InputError, match="sends differences"):
        from_table({"wire": {"download": name}}, "test")
