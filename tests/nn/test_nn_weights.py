"""Weights of a trained model: loaded, made sparse by magnitude, refused if they do not fit."""

import pytest
import torch
from nn_cases import generator, small

from mest_fed.errors import InputError
from mest_fed.nn import Sparsity, build_model, sparsify
from mest_fed.nn.models import Weights


@pytest.fixture
def trained(tmp_path):
    """Return a dense model of other weights, and the file of its state."""
    model, file = small("resnet8", seed=9), tmp_path / "trained.pt"
    torch.save(model.state_dict(), file)
    return model, file


def test_a_dense_checkpoint_is_made_sparse_by_magnitude(trained):
    model, file = trained
    ours = small("resnet8", sparsity=Sparsity("block", 0.2), weights=Weights.read(file))
    for name, tensor in sparsify(model, "block", 0.2).state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_a_checkpoint_may_hold_more_than_the_state(trained, tmp_path):
    model, _ = trained
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "more.pt")
    ours = small("resnet8", weights=Weights.read(tmp_path / "more.pt"))
    assert torch.equal(ours.conv1.weight, model.conv1.weight)


def test_trained_weights_keep_their_size_without_normalisation(tmp_path):
    model = small("mlp", seed=9)
    torch.save(model.state_dict(), tmp_path / "mlp.pt")
    ours = small("mlp", sparsity=Sparsity("block", 0.2), weights=Weights.read(tmp_path / "mlp.pt"))
    kept = ours.hidden[0][0].values
    assert torch.isin(kept, model.hidden[0][0].weight).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it.pop("conv1.weight"), "has no conv1.weight, which the model has"),
        (lambda it: it.update(more=torch.zeros(1)), "has more, which the model has not"),
        (
            lambda it: it.update({"conv1.weight": torch.zeros(4, 1, 3, 3)}),
            r"conv1.weight has shape \(4, 1, 3, 3\); allowed: \(4, 3, 3, 3\), the model's",
        ),
        (lambda it: it["conv1.weight"].fill_(float("nan")), "conv1.weight has values that are not"),
        (lambda it: it.update(epoch=3), "epoch is no dense tensor"),
    ],
)
def test_what_does_not_fit_is_named(trained, change, message):
    model, file = trained
    state = model.state_dict()
    change(state)
    torch.save(state, file)
    with pytest.raises(InputError, match=message):
        small("resnet8", weights=Weights.read(file))


@pytest.mark.parametrize("data", [b"", b"no checkpoint", b"\x80\x04cos\nsystem\n(S'true'\ntR."])
def test_other_files_are_refused_in_one_line(tmp_path, data):
    (tmp_path / "file.pt").write_bytes(data)
    with pytest.raises(InputError, match="is no state_dict that torch can load") as caught:
        Weights.read(tmp_path / "file.pt")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no model\.pt; allowed: a finished run"):
        Weights.read(tmp_path)


def test_something_else_than_a_state_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds a list; allowed: a state_dict"):
        Weights.read(tmp_path / "list.pt")


def test_nothing_is_drawn_where_weights_are_loaded(trained):
    weights = Weights.read(trained[1])
    first, second = (
        build_model(
            "resnet8",
            (3, 8, 8),
            10,
            generator=generator(seed),
            width=0.25,
            norm="group",
            weights=weights,
        )
        for seed in (1, 2)
    )
    assert torch.equal(first.stage1[0].conv1.weight, second.stage1[0].conv1.weight)
