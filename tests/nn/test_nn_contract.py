"""A sparse layer behaves as the dense one: every kind of layer, under every scheme, in every use.

Each use is tried with the sparse model and with ``to_dense`` of it, in double precision where the
use allows, and both must give the same; or it is refused in one line.
"""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from nn_cases import SCHEMES, draw, seeded
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grad_norm_, prune, spectral_norm, weight_norm
from torch.nn.utils.parametrizations import weight_norm as parametrized_weight_norm

from mest_fed.errors import InputError
from mest_fed.nn import Mutator, SparseLayer, match_masks, sparsify, to_dense
from mest_fed.nn.slots import gathered, scattered
from mest_fed.sparsity import Bounds, Set

KINDS = {
    "conv2d": lambda: (
        (nn.Conv2d(2, 4, 3), nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(72, 3)),
        (2, 5, 5),
    ),
    "1x1": lambda: (
        (nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(72, 3)),
        (2, 3, 3),
    ),
    "conv1d": lambda: (
        (nn.Conv1d(2, 4, 3), nn.Conv1d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(40, 3)),
        (2, 7),
    ),
    "linear": lambda: ((nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), (6,)),
    "transformer": lambda: (
        (nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True), nn.Linear(8, 3)),
        (4, 8),
    ),
}
every = pytest.mark.parametrize("scheme", SCHEMES)
kinds = pytest.mark.parametrize("kind", KINDS)


def model_of(kind, scheme="block", density=0.4, seed=0):
    layers, _ = KINDS[kind]()
    model = seeded(nn.Sequential(*layers), seed).double()
    return sparsify(model, scheme, density)


def batch(kind, seed=1):
    return draw(4, *KINDS[kind]()[1], seed=seed, dtype=torch.float64)


def sparse_layers(model):
    return {name: it for name, it in model.named_modules() if isinstance(it, SparseLayer)}


def dense_weight(model, name):
    """Return the weight that a sparse layer stands for in the dense model."""
    parameters = dict(model.named_parameters())
    packed = parameters.get(f"{name}_weight")
    return parameters[f"{name}.weight"] if packed is None else packed


def compare_gradients(model, plain):
    for name, layer in sparse_layers(model).items():
        gradient = dense_weight(plain, name).grad
        expected = gathered(layer.layout, gradient, layer.slots)
        torch.testing.assert_close(layer.values.grad, expected)


def loss_of(model, x):
    return model(x).square().sum()


@every
@kinds
def test_forward_and_backward(kind, scheme):
    model, x = model_of(kind, scheme), batch(kind)
    plain = to_dense(model)
    for each in (model, plain):
        loss_of(each, x).backward()
    torch.testing.assert_close(model(x), plain(x))
    compare_gradients(model, plain)


@every
@kinds
def test_one_example_without_a_batch(kind, scheme):
    model, x = model_of(kind, scheme), batch(kind)[0]
    first = [it for it in model if not isinstance(it, nn.Flatten)][:1]
    first += [it for it in model[1:2] if isinstance(it, SparseLayer)]
    plain = to_dense(nn.Sequential(*first))
    torch.testing.assert_close(nn.Sequential(*first)(x), plain(x))


@every
@pytest.mark.parametrize("kind", ["conv2d", "1x1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_channels_last(kind, scheme, dtype):
    model, x = model_of(kind, scheme).to(dtype), batch(kind).to(dtype)
    expected = model(x)
    loss_of(model, x).backward()
    gradients = [it.grad.clone() for it in model.parameters()]
    model.zero_grad()
    model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected)
    loss_of(model, x).backward()
    # Sums in another order.
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close([it.grad for it in model.parameters()], gradients, **close)


@every
@kinds
def test_autocast(kind, scheme):
    model, x = model_of(kind, scheme).float(), batch(kind).float()
    plain = to_dense(model)
    outputs = []
    for each in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            y = each(x)
        y.float().square().sum().backward()
        outputs.append(y)
    assert outputs[0].dtype is outputs[1].dtype
    torch.testing.assert_close(*outputs, rtol=0.1, atol=0.1)
    for layer in sparse_layers(model).values():
        assert layer.values.grad.dtype is torch.float32


@every
@kinds
def test_copies_pickles_and_saved_states(kind, scheme):
    model, x = model_of(kind, scheme), batch(kind)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = model_of(kind, scheme, seed=5)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(other(x), model(x))
        assert [*other.state_dict()] == [*model.state_dict()]
        loss_of(other, x).backward()
        assert all(it.grad is None for it in model.parameters())  # nothing is shared


@every
@kinds
def test_a_state_is_numpy_and_back(kind, scheme):
    model = model_of(kind, scheme)
    for name, tensor in model.state_dict().items():
        again = torch.from_numpy(tensor.numpy() * 1.0)  # a number without dimensions is no array
        assert again.shape == tensor.shape, name


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@kinds
def test_compiled(kind):
    model, x = model_of(kind), batch(kind)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    loss_of(compiled, x).backward()
    gradients = {name: it.grad.clone() for name, it in model.named_parameters()}
    model.zero_grad()
    loss_of(model, x).backward()
    torch.testing.assert_close(gradients, {n: it.grad for n, it in model.named_parameters()})


@every
@kinds
def test_frozen(kind, scheme):
    model, x = model_of(kind, scheme), batch(kind).requires_grad_()
    plain = to_dense(model.requires_grad_(False))
    assert not any(it.requires_grad for it in plain.parameters())
    gradients = [torch.autograd.grad(loss_of(each, x), x)[0] for each in (model, plain)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        assert not model(x).requires_grad


@kinds
def test_hooks_of_all_sorts_run_and_stay(kind):
    model, x = model_of(kind), batch(kind).requires_grad_()
    calls = []
    for layer in sparse_layers(model).values():
        layer.register_forward_pre_hook(lambda *_: calls.append("before"))
        layer.register_forward_hook(lambda *_: calls.append("after"))
        layer.register_full_backward_hook(lambda *_: calls.append("backward"))
        layer.values.register_hook(lambda _: calls.append("gradient"))
        layer.values.register_post_accumulate_grad_hook(lambda _: calls.append("stored"))
    loss_of(model, x).backward()
    number = len(sparse_layers(model))
    for name in ("before", "after", "backward", "gradient", "stored"):
        assert calls.count(name) == number, name


@every
@kinds
def test_evaluation_without_gradients(kind, scheme):
    model, x = model_of(kind, scheme).eval(), batch(kind)
    plain = to_dense(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(x))


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
}


@kinds
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_trains_clipped_through_a_mutation(kind, name):
    model, x = model_of(kind), batch(kind)
    optimizer = OPTIMIZERS[name](model.parameters())
    mutator = Mutator(model, Set(), optimizer)
    plain, theirs = None, None
    for step in range(4):
        if step == 2:
            mutator.mutate(Bounds(floor=0.5), lambda layer: np.random.default_rng(len(layer)))
        if step == 0:  # until the mutation, the dense model under the same mask does the same
            plain = to_dense(model)
            theirs = OPTIMIZERS[name](plain.parameters())
        optimizer.zero_grad()
        loss_of(model, x).backward()
        clip_grad_norm_(model.parameters(), 0.5)
        assert sum(it.grad.square().sum() for it in model.parameters()) <= 0.25 + 1e-6
        optimizer.step()
        if step == 0 and name == "SGD":
            theirs.zero_grad()
            loss_of(plain, x).backward()
            for layer_name, layer in sparse_layers(model).items():
                weight = dense_weight(plain, layer_name)
                weight.grad.mul_(
                    scattered(layer.mask.layout, torch.ones_like(layer.values), layer.slots)
                )
            clip_grad_norm_(plain.parameters(), 0.5)
            theirs.step()
            torch.testing.assert_close(model(x), plain(x))
    for layer in sparse_layers(model).values():
        for entry in optimizer.state[layer.values].values():
            assert entry.numel() == 1 or entry.shape == layer.values.shape
        assert layer.values.isfinite().all()


@kinds
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("how", ["state loaded", "mask matched"])
def test_another_mask_of_the_same_size_takes_the_optimizer_s_state_along(kind, name, how):
    model, other, x = model_of(kind), model_of(kind, seed=7), batch(kind)
    optimizer = OPTIMIZERS[name](model.parameters())
    loss_of(model, x).backward()
    optimizer.step()
    key = "momentum_buffer" if name == "SGD" else "exp_avg"
    before = {
        name: scattered(layer.layout, optimizer.state[layer.values][key], layer.slots)
        for name, layer in sparse_layers(model).items()
    }
    if how == "state loaded":
        model.load_state_dict(other.state_dict())
    else:
        match_masks(model, other)
    for layer_name, layer in sparse_layers(model).items():
        entry = optimizer.state[layer.values][key]
        expected = gathered(layer.layout, before[layer_name], layer.slots)
        assert torch.equal(entry, expected)  # zero where the old mask was inactive
        assert (entry == 0).any()
    optimizer.zero_grad()
    loss_of(model, x).backward()
    optimizer.step()


def test_state_that_is_loaded_with_the_values_stays():
    model, other, x = model_of("linear"), model_of("linear", seed=7), batch("linear")
    optimizers = [OPTIMIZERS["SGD"](it.parameters()) for it in (model, other)]
    for each, optimizer in zip((model, other), optimizers, strict=True):
        loss_of(each, x).backward()
        optimizer.step()
    for first in ("optimizer", "model"):
        ours, theirs = copy.deepcopy(model), other
        optimizer = OPTIMIZERS["SGD"](ours.parameters())
        loss_of(ours, x).backward()
        optimizer.step()
        if first == "optimizer":
            optimizer.load_state_dict(optimizers[1].state_dict())
        ours.load_state_dict(theirs.state_dict())
        if first == "model":
            optimizer.load_state_dict(optimizers[1].state_dict())
        momentum = optimizer.state[ours[0].values]["momentum_buffer"]
        assert torch.equal(momentum, optimizers[1].state[theirs[0].values]["momentum_buffer"])


@every
@kinds
def test_a_moving_average_follows(kind, scheme):
    model, x = model_of(kind, scheme), batch(kind)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    average.update_parameters(model)
    once = model_of(kind, scheme)
    for layer_name, layer in sparse_layers(average.module).items():
        torch.testing.assert_close(layer.values, 2 * once.get_submodule(layer_name).values)
    Mutator(model, Set()).mutate(Bounds(floor=0.5), lambda name: np.random.default_rng(len(name)))
    match_masks(average.module, model)
    average.update_parameters(model)
    assert average(x).isfinite().all()


WRITES = {
    "clamp": lambda layer: layer.weight.data.clamp_(0),
    "scale": lambda layer: layer.weight.data.mul_(2),
    "operator": lambda layer: layer.weight.data.__imul__(2),
    "index": lambda layer: layer.weight.data.__setitem__(0, 1.0),
    "view": lambda layer: layer.weight.detach().view(-1).zero_(),
    "row": lambda layer: next(iter(layer.weight.detach())).zero_(),
    "transposed": lambda layer: layer.weight.data.T.fill_(1),
    "initialised": lambda layer: nn.init.xavier_uniform_(layer.weight),
    "replaced": lambda layer: setattr(layer.weight, "data", torch.zeros(1)),
    "set": lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros(1))),
    "made a parameter": lambda layer: nn.Parameter(layer.weight),
}


@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@kinds
@pytest.mark.parametrize("write", WRITES)
def test_a_write_into_the_weight_is_refused_and_changes_nothing(kind, write):
    model, x = model_of(kind), batch(kind)
    before = model(x)
    for layer in sparse_layers(model).values():
        with torch.no_grad(), pytest.raises(InputError, match=r"layer\.values") as caught:
            WRITES[write](layer)
        assert "\n" not in str(caught.value)
    assert torch.equal(model(x), before)


@every
@kinds
def test_the_weight_can_be_read_as_any(kind, scheme):
    model = model_of(kind, scheme)
    plain = to_dense(model)
    for name, layer in sparse_layers(model).items():
        weight, theirs = layer.weight, dense_weight(plain, name)
        assert torch.equal(weight, theirs)
        assert weight.norm() == theirs.norm()
        assert type(weight.clone()) is torch.Tensor
        assert type(weight * 2) is torch.Tensor
        assert type(copy.deepcopy(weight)) is torch.Tensor
        assert type(pickle.loads(pickle.dumps(weight.detach()))) is torch.Tensor
        weight.square().sum().backward()
        expected = gathered(layer.layout, 2 * theirs.detach(), layer.slots)
        torch.testing.assert_close(layer.values.grad, expected)


def pruned(layer):
    prune.l1_unstructured(layer, "values", amount=0.5)


def halved(layer):
    parametrized_weight_norm(layer, "bias", dim=None)


COMPUTED = {
    "pruned": pruned,
    "weight norm": lambda layer: weight_norm(layer, "values"),
    "spectral norm": lambda layer: spectral_norm(layer, "values"),
    "parametrized bias": halved,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@kinds
@pytest.mark.parametrize("name", COMPUTED)
def test_what_torch_computes_of_values_or_bias_becomes_dense_as_it_is(kind, name):
    model, x = model_of(kind).eval(), batch(kind)
    for layer in sparse_layers(model).values():
        if name != "parametrized bias" or layer.bias is not None:
            COMPUTED[name](layer)
    if kind == "transformer":
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = model(x)
        plain = to_dense(model)
        torch.testing.assert_close(plain(x), expected)
        torch.testing.assert_close(model(x), expected)  # which stays as it is
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert [*plain.state_dict()].sort() == [*nn.Sequential(*KINDS[kind]()[0]).state_dict()].sort()
    assert all(it.requires_grad for it in plain.parameters())
    assert not any(it._forward_pre_hooks for it in plain.modules())


@every
def test_layers_that_share_values_share_a_weight_when_they_are_dense(scheme):
    model = model_of("linear", scheme)
    first = model[0]
    twin = copy.deepcopy(first)
    twin.slots, twin.values = first.slots, first.values
    tied = nn.Sequential(first, nn.Linear(8, 6).double(), twin)
    plain, x = to_dense(tied), batch("linear")
    assert plain[0].weight is plain[2].weight
    torch.testing.assert_close(plain(x), tied(x))


@every
@kinds
def test_parameters_are_drawn_anew_as_those_of_the_dense_layer(kind, scheme):
    model = model_of(kind, scheme)
    plain = to_dense(model)
    for name, layer in sparse_layers(model).items():
        try:
            dense = plain.get_submodule(name)
        except AttributeError:  # packed in an attention, whose own test this is
            continue
        slots = layer.slots.clone()
        for each in (layer, dense):
            torch.manual_seed(3)
            each.reset_parameters()
        assert torch.equal(layer.slots, slots)
        expected = gathered(layer.layout, dense.weight, slots)
        assert torch.equal(layer.values, expected)
        assert torch.equal(layer.bias, dense.bias)


@every
@kinds
def test_gradients_of_gradients(kind, scheme):
    model, x = model_of(kind, scheme), batch(kind).requires_grad_()
    plain = to_dense(model)
    for each in (model, plain):
        with sdpa_kernel(SDPBackend.MATH):  # torch's other attentions have none
            (gradient,) = torch.autograd.grad(loss_of(each, x), x, create_graph=True)
            gradient.square().sum().backward()
    compare_gradients(model, plain)


@pytest.mark.parametrize("kind", [it for it in KINDS if it != "transformer"])
def test_gradients_of_each_example_by_vmap(kind):
    model, x = model_of(kind), batch(kind)
    plain = to_dense(model)
    gradients = []
    for each in (model, plain):
        values = {name: it.detach() for name, it in each.named_parameters()}

        def loss(parameters, example, each=each):
            y = torch.func.functional_call(each, parameters, (example[None],))
            return y.square().sum()

        gradients.append(torch.func.vmap(torch.func.grad(loss), (None, 0))(values, x))
    for name, layer in sparse_layers(model).items():
        theirs = gradients[1][f"{name}.weight"]
        expected = [gathered(layer.layout, it, layer.slots) for it in theirs]
        torch.testing.assert_close(gradients[0][f"{name}.values"], torch.stack(expected))
