"""``to_dense`` of our own models: torch's modules alone, the same function, loads anywhere."""

import copy
import subprocess
import sys

import pytest
import torch
from nn_cases import draw, generator
from torch import nn

from mest_fed.nn import Sparsity, build_model, sparsify, to_dense
from mest_fed.nn.models import ResNet
from mest_fed.nn.norms import BatchNorm2d

X = draw(4, 3, 12, 12)

LOAD = """
import sys
sys.modules["mest_fed"] = None  # as where it is not installed
import torch
for path in sys.argv[1:]:
    model, x, y = torch.load(path, weights_only=False)
    torch.testing.assert_close(model(x), y)
    model.train()(x).sum().backward()
print([name for name in sys.modules if name.startswith("mest_fed.")])
"""


def build(name, norm="batch", scheme="block", width=0.5):
    sparsity = None if scheme is None else Sparsity(scheme, 0.3)
    options = {"generator": generator(), "width": width, "norm": norm, "sparsity": sparsity}
    model = build_model(name, (3, 12, 12), 10, **options)
    with torch.no_grad():
        model(draw(8, 3, 12, 12, seed=1))  # running statistics move
    return model


CASES = [
    ("resnet8", "batch", "block"),
    ("resnet8", "group", "channel"),
    ("resnet8", "batch", None),
    ("cnn2", "group", "block"),
    ("cnn2", "group", None),
]


@pytest.mark.parametrize(("name", "norm", "scheme"), CASES)
def test_the_plain_model_is_made_of_torch_s_modules_and_computes_the_same(name, norm, scheme):
    model = build(name, norm, scheme)
    plain = to_dense(model)
    assert {type(it).__module__.partition(".")[0] for it in plain.modules()} == {"torch"}
    assert list(plain.state_dict()) == list(build(name, norm, None).state_dict())
    for training in (True, False):
        ours, theirs = copy.deepcopy(model).train(training), copy.deepcopy(plain).train(training)
        y, expected = ours(X), theirs(X)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        y.square().sum().backward()
        expected.square().sum().backward()
        stem, its = ours.conv1.weight.grad, theirs.conv1.weight.grad
        torch.testing.assert_close(stem, its, rtol=1e-3, atol=1e-3 * its.abs().max().item())
        for key, buffer in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(key), buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.soak
def test_it_loads_in_a_process_without_mest_fed(tmp_path):
    paths = []
    for name, norm, scheme in CASES:
        plain = to_dense(build(name, norm, scheme)).eval()
        paths.append(tmp_path / f"{name}-{norm}-{scheme}.pt")
        torch.save((plain, X, plain(X).detach()), paths[-1])
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["resnet8", "cnn2"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own code
def test_it_is_traced_and_exported(name):
    plain = to_dense(build(name)).eval()
    expected = plain(X)
    torch.testing.assert_close(torch.jit.trace(plain, X)(X), expected)
    exported = torch.export.export(plain, (X,))
    torch.testing.assert_close(exported.module()(X), expected)


def test_it_can_be_made_sparse_again():
    plain = to_dense(build("resnet8"))
    again = to_dense(sparsify(plain, "block", 0.3))
    torch.testing.assert_close(again.eval()(X), plain.eval()(X), rtol=1e-4, atol=1e-5)


class Mine(nn.Module):
    """A model of a user's around one of ours, with a normalisation of ours called as torch's."""

    def __init__(self):
        super().__init__()
        self.norm = BatchNorm2d(3)
        self.body, self.head = build("resnet8", scheme=None), nn.Linear(10, 2)

    def forward(self, x):
        return self.head(self.body(self.norm(x)))


class Wider(ResNet):
    """A user's subclass of one of ours."""

    def __init__(self):
        super().__init__((4, 8), 1, (3, 12, 12), 10)
        self.classifier = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize("build_mine", [Mine, Wider])
def test_models_of_ours_inside_a_user_s(build_mine):
    model = build_mine()
    names = list(model.state_dict())
    plain = to_dense(sparsify(model, "block", 0.4))
    assert not any(type(it).__module__.startswith("mest_fed") for it in plain.modules())
    assert list(plain.state_dict()) == names
    for training in (True, False):
        expected = model.train(training)(X)
        torch.testing.assert_close(plain.train(training)(X), expected, rtol=1e-4, atol=1e-5)


def test_hooks_and_attributes_of_whole_blocks_stay():
    model, seen = build("resnet8"), []
    model.note = "mine"
    model.register_forward_hook(lambda *_: seen.append("model"))
    model.stage1[0].register_forward_pre_hook(lambda *_: seen.append("block"))
    model.norm1.register_forward_hook(lambda *_: seen.append("norm"))
    model.stage2[0].eval()
    plain = to_dense(model)
    plain(X)
    assert seen == ["norm", "block", "model"]
    assert plain.note == "mine"
    assert [it.training for it in plain.stage2[0].modules()] == [False] * 8
    assert plain.stage1[0].training
