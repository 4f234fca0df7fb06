"""Attention with sparse projections against torch's, in all the ways in which it is called."""

import copy
import pickle

import pytest
import torch
from nn_cases import SCHEMES, draw, seeded
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn import (
    Reason,
    SparseAttention,
    SparseLayer,
    SparseLinear,
    layer_densities,
    mask_groups,
    sparsify,
    to_dense,
)
from mest_fed.nn.slots import gathered

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

KINDS = {
    "plain": {},
    "no bias": {"bias": False},
    "bias of keys": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
    "other sizes": {"kdim": 6, "vdim": 10},
    "dropout": {"dropout": 0.4},
}


def attentions(scheme="unstructured", **options):
    """Return an attention of 8 features and 2 heads, sparse, and torch's of the same weights."""
    model = nn.Sequential()
    model.add_module("attention", nn.MultiheadAttention(8, 2, **options))
    model.add_module("head", nn.Linear(8, 2))
    sparsify(seeded(model).double(), scheme, 0.4)
    return model.attention, to_dense(model).attention


def inputs(kind, of):
    """Return query, key and value of a batch of 3, and of 5 to 6 steps."""
    query = draw(3, 5, 8, dtype=torch.float64)
    if of == "self":
        return query, query, query
    key = draw(3, 6, kind.get("kdim", 8), seed=1, dtype=torch.float64)
    if of == "cross":
        return query, key, draw(3, 6, kind.get("vdim", 8), seed=2, dtype=torch.float64)
    return query, key, key


def masks(name, source):
    padding = torch.zeros(3, source, dtype=torch.bool)
    padding[0, -2:] = padding[2, -1:] = True
    heads = draw(6, 5, source, seed=3) > 0.5
    heads[..., 0] = False
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "added": {"attn_mask": draw(5, source, seed=3, dtype=torch.float64)},
        "both": {
            "attn_mask": draw(5, source, seed=3, dtype=torch.float64),
            "key_padding_mask": padding.double().mul(-1e9),
        },
        "each head": {"attn_mask": heads},
    }[name]


def same(ours, theirs, query, *rest, **options):
    """Compare outputs, weights and the gradients of all inputs and parameters."""
    results = []
    for attention in (ours, theirs):
        given = [it.clone().requires_grad_() for it in dict.fromkeys((query, *rest))]
        where = {id(it): i for i, it in enumerate(dict.fromkeys((query, *rest)))}
        attention.zero_grad()
        torch.manual_seed(0)
        y, weights = attention(*(given[where[id(it)]] for it in (query, *rest)), **options)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        results.append((y, weights, [it.grad for it in given]))
    torch.testing.assert_close(*results)
    gradients = {name: it.grad for name, it in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if name.endswith(".values"):
            layer = ours.get_submodule(name.removesuffix(".values"))
            dense = gradients.get(name.replace(".values", "_weight"))
            dense = gradients["out_proj.weight"] if dense is None else dense
            torch.testing.assert_close(parameter.grad, gathered(layer.layout, dense, layer.slots))
        else:
            torch.testing.assert_close(parameter.grad, gradients[name])


@pytest.mark.parametrize("mask", ["none", "padding", "added", "both", "each head"])
@pytest.mark.parametrize("of", ["self", "memory", "cross"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_weights_and_gradients_are_torchs(kind, of, mask):
    options = KINDS[kind]
    if "kdim" in options:
        of = "cross"
    query, key, value = inputs(options, of)
    more = masks(mask, key.shape[1])
    ours, theirs = attentions(batch_first=True, **options)
    for need in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        same(ours, theirs, query, key, value, **more, **need)
    ours, theirs = ours.eval(), theirs.eval()
    same(ours, theirs, query, key, value, **more)


def test_steps_may_come_first_and_a_batch_may_be_missing():
    ours, theirs = attentions()
    query, key, value = (it.transpose(0, 1).contiguous() for it in inputs({}, "cross"))
    same(ours, theirs, query, key, value)
    same(ours, theirs, query[:, 0], key[:, 0], value[:, 0], need_weights=False)
    same(ours, theirs, query[:, 0], key[:, 0], value[:, 0])


@pytest.mark.parametrize("need_weights", [False, True])
def test_the_causal_hint_is_torchs(need_weights):
    ours, theirs = attentions(batch_first=True)
    x = draw(3, 5, 8, dtype=torch.float64)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    same(ours, theirs, x, x, x, attn_mask=causal, is_causal=True, need_weights=need_weights)
    for attention in (ours, theirs):
        with pytest.raises(RuntimeError, match="Need attn_mask"):
            attention(x, x, x, is_causal=True)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("norm_first", [False, True])
def test_every_linear_layer_of_a_transformer_is_sparse(scheme, norm_first):
    options = {"batch_first": True, "norm_first": norm_first, "dropout": 0.0}
    layer = nn.TransformerEncoderLayer(8, 2, 16, **options)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    model = sparsify(seeded(nn.Sequential(encoder, nn.Linear(8, 3))).double(), scheme, 0.4)
    names = [f"0.layers.{i}.{n}" for i in range(2) for n in ("self_attn.in_proj", "linear1")]
    rows = {row.name: row for row in layer_densities(model)}
    assert all(rows[name].reason is None for name in names)
    assert {row.name for row in rows.values() if row.reason is not None} == {"1"}
    dense, x = to_dense(model), draw(3, 5, 8, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])
    for training in (True, False):
        model.train(training)
        dense.train(training)
        torch.testing.assert_close(model(x), dense(x))
        with torch.no_grad():  # torch's fast path reads the weights, unless it is switched off
            torch.testing.assert_close(model(x), dense(x))
            ours, theirs = (it[0](x, src_key_padding_mask=padding) for it in (model, dense))
            torch.testing.assert_close(ours[~padding], theirs[~padding])


def test_all_of_a_transformer_with_a_decoder_is_torchs():
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    model = nn.ModuleDict({"body": model, "head": nn.Linear(8, 2)})
    sparsify(seeded(model).double(), "block", 0.5)
    body, dense = model.body, to_dense(model).body
    assert isinstance(body.decoder.layers[0].multihead_attn, SparseAttention)
    source, target = draw(2, 5, 8, dtype=torch.float64), draw(2, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(body(source, target), dense(source, target))
    model.eval(), dense.eval()
    with torch.no_grad():
        torch.testing.assert_close(body(source, target), dense(source, target))


def test_a_part_of_it_may_stay_dense():
    for exclude in (["attention.in_proj"], ["attention.out_proj"]):
        model = nn.Sequential()
        model.add_module("attention", nn.MultiheadAttention(8, 2, batch_first=True))
        model.add_module("head", nn.Linear(8, 2))
        sparsify(seeded(model).double(), "block", 0.5, exclude=exclude)
        dense = exclude[0] in {row.name for row in layer_densities(model) if row.density == 1}
        assert dense
        assert type(model.attention) is SparseAttention
        query, key, value = inputs({}, "cross")
        same(model.attention, to_dense(model).attention, query, key, value)


def test_it_is_copied_pickled_and_goes_back():
    ours, theirs = attentions(batch_first=True)
    state = {name: tuple(it.shape) for name, it in theirs.state_dict().items()}
    assert list(state) == list(nn.MultiheadAttention(8, 2).state_dict())
    assert type(theirs.out_proj) is type(nn.MultiheadAttention(8, 2).out_proj)
    x = draw(3, 5, 8, dtype=torch.float64)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is SparseAttention
        torch.testing.assert_close(copied(x, x, x), ours(x, x, x))
    again, _ = attentions(batch_first=True)
    for values in again.parameters():
        values.data.zero_()
    again.load_state_dict(ours.state_dict())
    torch.testing.assert_close(again(x, x, x), ours(x, x, x))


def test_its_projections_are_layers_with_masks_of_their_own():
    ours, _ = attentions(kdim=6, vdim=10)
    layers = {name: it for name, it in ours.named_modules() if isinstance(it, SparseLayer)}
    assert list(layers) == ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert {type(it) for it in layers.values()} == {SparseLinear}
    assert [group.name for group in mask_groups(ours)] == list(layers)
    assert [tuple(it.layout.shape) for it in layers.values()] == [(8, 8), (8, 6), (8, 10), (8, 8)]


def test_drawing_it_anew_keeps_the_masks():
    ours, theirs = attentions()
    slots = ours.in_proj.slots.clone()
    torch.manual_seed(3)
    ours._reset_parameters()
    torch.manual_seed(3)
    theirs._reset_parameters()
    assert torch.equal(ours.in_proj.slots, slots)
    expected = gathered(ours.in_proj.layout, theirs.in_proj_weight.detach(), slots)
    assert torch.equal(ours.in_proj.values.detach(), expected)


def test_a_nested_tensor_is_refused_in_one_line():
    ours, _ = attentions(batch_first=True)
    nested = torch.nested.nested_tensor([draw(3, 8), draw(4, 8)])
    with pytest.raises(InputError, match="nested tensors are not allowed"):
        ours(nested, nested, nested)


def test_a_subclass_may_compute_something_else():
    class Loud(nn.MultiheadAttention):
        pass

    model = nn.Sequential(Loud(8, 2), nn.Linear(8, 2))
    reasons = {row.name: row.reason for row in layer_densities(model)}
    assert reasons["0.in_proj"] is Reason.SUBCLASS
    assert reasons["0.out_proj"] is Reason.ELIGIBLE
    sparsify(seeded(model).double(), "block", 0.5)
    assert type(model[0]) is Loud
    same(model[0], to_dense(model)[0], *inputs({}, "self"))
