"""What holds for every model by name, dense and sparse; and the shapes of the families."""

import pytest
import torch
from nn_cases import SHAPES, generator, input_of, small
from torch import nn

from mest_fed.catalogue import MODELS
from mest_fed.devices import Work, training_work
from mest_fed.errors import InputError
from mest_fed.nn import (
    SparseLayer,
    Sparsity,
    build_model,
    layer_densities,
    model_spec,
    read_state,
    sparsifiable,
    sparsify,
    to_dense,
    whole_density,
    write_state,
)
from mest_fed.nn.models import Architecture
from mest_fed.nn.optimizers import SGD
from mest_fed.wire import decode, encode

NEW = ("resnet50", "mobilenetv2", "dscnn", "mlp", "har1d", "transformer", "lstm")


def build(name, num_classes=10, **options):
    shape = options.pop("shape", SHAPES.get(name, (3, 32, 32)))
    return Architecture(name, shape, num_classes, **options).model(generator())


def weights_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def sparse(name):
    """Return a small sparse model."""
    if not sparsifiable(small(name)):
        pytest.skip("none of its layers can be sparse")
    return small(name, sparsity=Sparsity("block", 0.3))


@pytest.mark.filterwarnings("ignore::mest_fed.errors.DensityWarning")
@pytest.mark.parametrize("name", MODELS)
def test_sparse_from_the_start_is_sparsified_afterwards(name):
    ours, dense = sparse(name), small(name)
    keep_norm = name in ("cnn2", "mlp", "transformer", "lstm")
    after = sparsify(dense, "block", 0.3, keep_norm=keep_norm)
    for key, tensor in after.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key
    assert whole_density([it for it in layer_densities(ours) if it.reason is None]) < 0.35


@pytest.mark.parametrize("name", NEW)
def test_training_lowers_the_loss_and_dense_layers_compute_the_same(name):
    model = sparse(name)
    inputs, classes = input_of(name, 4), torch.arange(4)
    optimizer = SGD(model.parameters(), 0.01, momentum=0.9)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]
    optimizer.close()
    model.eval()
    expected = model(inputs).detach()
    dense = to_dense(model)
    assert not any(isinstance(module, SparseLayer) for module in dense.modules())
    torch.testing.assert_close(dense.eval()(inputs).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NEW)
def test_a_state_travels_into_a_shell(name):
    model = sparse(name).eval()
    payload, _ = encode(read_state(model), model_spec(model))
    shell = Architecture(
        name,
        SHAPES.get(name, (3, 8, 8)),
        10,
        width=0.25,
        norm="group" if MODELS.takes(name, "norm") else None,
    ).shell(Sparsity("block"))
    write_state(shell, decode(payload, model_spec(shell)))
    inputs = input_of(name)
    assert torch.equal(shell.eval()(inputs), model(inputs))


@pytest.mark.parametrize("name", NEW)
def test_work_counts_active_weights(name):
    model, dense, inputs = sparse(name), small(name), input_of(name)
    shape, dtype = tuple(inputs.shape[1:]), inputs.dtype
    less, more = (training_work(it, shape, None, dtype) for it in (model, dense))
    assert isinstance(less, Work)
    assert less.sparse_flops > 0 == more.sparse_flops
    assert less.sparse_flops + less.dense_flops < more.dense_flops


def test_counts_are_those_of_the_papers():
    # torchvision's: 23,508,032 without the classifier, of which its 7x7 stem has 7,680 more.
    assert weights_of(build("resnet50")) == 23_508_032 - 7_680 + 20_490
    # torchvision's 2,223,872 and a classifier of 10.
    assert weights_of(build("mobilenetv2")) == 2_223_872 + 12_810
    # 2,560 + 4 * (576 + 4,096) in convolutions, 9 * 128 in norms, 780 in the classifier of 12
    assert weights_of(build("dscnn", 12)) == 2_560 + 18_688 + 1_152 + 780


def test_dscnn_halves_time_and_coefficients():
    assert build("dscnn").stem(torch.zeros(1, 1, 49, 10)).shape == (1, 64, 25, 5)


def test_mobilenet_stays_at_the_size_of_the_image_for_two_groups():
    sizes = []
    model = build("mobilenetv2")
    for block in model.blocks:
        block.register_forward_hook(lambda *it: sizes.append(it[2].shape[-1]))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert sizes == [32] * 3 + [16] * 3 + [8] * 7 + [4] * 4


def test_options_change_the_structure():
    assert len(build("mlp", options={"hidden": [8, 8, 8]}).hidden) == 3
    assert len(build("transformer", options={"depth": 3}).blocks) == 3
    assert build("lstm", options={"hidden": 32}).lstm.hidden_size == 32
    assert len(build("har1d", options={"channels": [8]}).blocks) == 1
    with pytest.raises(InputError, match="features = 10 is not allowed; allowed: a multiple of"):
        build("transformer", options={"features": 10})


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_tokens_are_classified_or_predicted_one_by_one(name):
    tokens = torch.randint(30, (2, 12), generator=generator())
    assert build(name, num_tokens=30)(tokens).shape == (2, 10)
    model = build(name, 30, num_tokens=30, target_shape=(12,))
    logits = model(tokens)
    assert logits.shape == (2, 12, 30)
    # What comes later changes nothing before it.
    later = tokens.clone()
    later[:, 6:] = (later[:, 6:] + 1) % 30
    torch.testing.assert_close(model(later)[:, :6], logits[:, :6])
    assert not torch.allclose(model(later)[:, 6:], logits[:, 6:])


def test_lstm_takes_series():
    model = build("lstm", shape=(6, 20))
    assert model(torch.zeros(2, 6, 20)).shape == (2, 10)
    assert not any(isinstance(module, nn.Embedding) for module in model.modules())


def test_a_model_without_norms_or_widths_refuses_them():
    with pytest.raises(InputError, match=r"model\.norm = 'batch' is not allowed"):
        build_model("mlp", (4,), 2, generator=generator(), norm="batch")
