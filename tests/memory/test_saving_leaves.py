"""What saving leaves of a model: everything as it was, also after an exception."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from saving_cases import IMAGE, MODELS, PAIRS, cnn2, data, generator, resnet, train, users_own
from torch import nn
from torch.nn.functional import cross_entropy

from mest_fed.errors import InputError
from mest_fed.memory import MemoryOptions, NothingSavedWarning, memory_saving
from mest_fed.memory.activations import segments_of
from mest_fed.nn import norms, to_dense


def attributes(net):
    """Return what stands on each module of a model, and what trains."""
    standing = {name: sorted(vars(module)) for name, module in net.named_modules()}
    training = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    hooks = [len(module._forward_hooks) for module in net.modules()]
    return standing, training, hooks


def is_the_class_s(net):
    return all("forward" not in vars(module) for module in net.modules())


@pytest.mark.parametrize("build", [resnet, cnn2, users_own])
@pytest.mark.parametrize(("recompute", "saved"), PAIRS)
@pytest.mark.parametrize("frozen", [0, 1])
def test_the_model_is_as_it_was(build, recompute, saved, frozen):
    net = build("block") if build is not users_own else build()
    if frozen >= 1 and build is cnn2:
        frozen = 0  # it has one segment
    before = attributes(net)
    images, labels = data(2, dtype=torch.float32)
    with memory_saving(net, MemoryOptions(recompute, saved, frozen=frozen)) as forward:
        cross_entropy(forward(images), labels).backward()
    assert attributes(net) == before
    assert is_the_class_s(net)
    assert norms.WATCHERS.get() == ()


@pytest.mark.parametrize(("recompute", "saved"), [p for p in PAIRS if p != ("none", "fp32")])
@pytest.mark.parametrize("where", ["within", "forward", "backward"])
def test_also_after_an_exception(recompute, saved, where):
    net = resnet("block")
    before = attributes(net)

    class Broken(Exception):
        pass

    def breaks(*_):
        raise Broken

    hook = None
    if where == "forward":
        hook = net.stage3[0].register_forward_hook(breaks)
    if where == "backward":
        hook = net.stage1[0].conv1.values.register_hook(breaks)
    images, labels = data(2, dtype=torch.float32)

    def train():
        with memory_saving(net, MemoryOptions(recompute, saved)) as forward:
            if where == "within":
                raise Broken
            cross_entropy(forward(images), labels).backward()

    with pytest.raises(Broken):
        train()
    if hook is not None:
        hook.remove()
    assert attributes(net) == before
    assert norms.WATCHERS.get() == ()
    # And what comes then is plain training: nothing is packed any more.
    y = torch.rand(64, 64, generator=generator(), requires_grad=True).mul(0.1).exp()
    assert torch.equal(y.grad_fn._saved_result, y)


def test_a_forward_that_stands_on_a_module_stays_there():
    net = users_own().double()
    plain = type(net[3]).forward
    net[3].forward = own = partial(lambda x: 2 * plain(net[3], x))
    with memory_saving(net, MemoryOptions("segments")) as forward:
        ours = forward(data(4)[0])
    assert vars(net[3])["forward"] is own
    del net[3].forward
    assert ours.requires_grad


class CopiesByHand(nn.Module):
    """Copies itself attribute by attribute, as many classes of users do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)

    def __deepcopy__(self, memo):
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in vars(self).items():
            twin.__dict__[name] = copy.deepcopy(value, memo)
        return twin


def by_pickle(net):
    return pickle.loads(pickle.dumps(net))


def by_torch_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIED = {
    "resnet": (resnet, IMAGE),
    "cnn2": (cnn2, IMAGE),
    "own": (users_own, IMAGE),
    "linear": (lambda: nn.Sequential(nn.Linear(2, 2)), (2,)),
    "by hand": (lambda: nn.Sequential(CopiesByHand()), (2,)),
}


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch_save])
@pytest.mark.parametrize(
    "memory", [MemoryOptions("segments"), MemoryOptions("norms"), MemoryOptions(saved="int8")]
)
def test_a_copy_made_within_has_its_own_weights(name, copied, memory):
    build, shape = COPIED[name]
    net, x = build().eval(), data(4, shape, torch.float32)[0]
    expected = net(x)
    with memory_saving(net, memory) as forward:
        twin = copied(net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2.5)
        assert torch.equal(twin(x), expected)
        assert not torch.equal(forward(x), expected)
        twin.train()(x).sum().backward()
        assert all(parameter.grad is None for parameter in net.parameters())
    assert type(twin) is type(net)
    if name != "by hand":
        assert attributes(twin) == attributes(net)
    assert twin.state_dict().keys() == net.state_dict().keys()
    with memory_saving(twin, memory) as forward:  # and it can be trained and copied as any model
        forward(x).sum().backward()
    assert torch.equal(copied(twin).eval()(x), twin.eval()(x))


def test_what_is_made_of_a_model_within_is_made_of_the_model():
    net, own = resnet("block"), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    own[1].forward = partial(torch.mul, 2.0)
    with (
        memory_saving(net, MemoryOptions("segments")),
        memory_saving(net, MemoryOptions("segments")),
    ):
        plain = to_dense(net)
    with memory_saving(own, MemoryOptions("segments")):
        twin = copy.deepcopy(own)
    assert all("forward" not in vars(module) for module in plain.modules())
    assert twin[1](torch.tensor(3.0)) == 6.0
    assert isinstance(vars(twin[1])["forward"], partial)


def test_a_module_with_a_copy_of_its_attributes_alone_copies_its_method():
    """As a traced model does: its attributes are copied without a word of whose they are."""
    net = users_own()
    with memory_saving(net, MemoryOptions("segments")):
        attributes = copy.deepcopy(vars(net[3]))
    assert attributes["forward"] is nn.Sequential.forward


def test_within_one_another():
    net = resnet("block", "group").double()
    images, labels = data(4)
    with (
        memory_saving(net, MemoryOptions("segments")),
        memory_saving(net, MemoryOptions("segments", frozen=1)) as forward,
    ):
        cross_entropy(forward(images), labels).backward()
    assert is_the_class_s(net)
    assert all(parameter.requires_grad for parameter in net.parameters())
    expected = train("group-block", "none", "fp32", count=4).gradients
    torch.testing.assert_close(net.classifier.weight.grad, expected["classifier.weight"])
    assert net.conv1.weight.grad is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recompute": "all"}, "recompute = 'all' is not allowed; allowed: none, norms, segments"),
        ({"saved": "fp8"}, "saved = 'fp8' is not allowed; allowed: fp32, mask, fp16, bf16, int8"),
        ({"frozen": -1}, "frozen = -1 is not allowed; allowed: a whole number from 0"),
    ],
)
def test_refusals(wrong, message):
    with pytest.raises(InputError, match=message):
        MemoryOptions(**wrong)


@pytest.mark.parametrize("frozen", [4, 5])
def test_a_model_of_which_nothing_would_train_is_refused(frozen):
    net = resnet()  # a stem and three blocks
    before = attributes(net)
    with (
        pytest.raises(InputError, match=f"frozen = {frozen} .*from 0 to 3 .*segments but one"),
        memory_saving(net, MemoryOptions(frozen=frozen)),
    ):
        pass
    assert attributes(net) == before


def test_a_model_without_segments_has_none_to_freeze_and_none_to_run_again():
    net = nn.Linear(64, 10).double()
    with (
        pytest.raises(InputError, match=r"frozen = 1 .*from 0 to 0"),
        memory_saving(net, MemoryOptions(frozen=1)),
    ):
        pass
    images, labels = data(4, (64,))
    with (
        pytest.warns(NothingSavedWarning, match="saves nothing: Linear has no segments"),
        memory_saving(net, MemoryOptions("segments", "int8")) as forward,
    ):
        cross_entropy(forward(images), labels).backward()
    assert net.weight.grad is not None


def test_every_case_has_segments():
    counts = {case: len(segments_of(build())) for case, build in MODELS.items()}
    assert {case: n for case, n in counts.items() if case.startswith(("batch", "group"))} == {
        case: 4 for case in MODELS if case.startswith(("batch", "group"))
    }
    assert [counts["cnn2-None"], counts["own-None"]] == [1, 5]
