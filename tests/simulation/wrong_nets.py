"""Builders of models that cannot be trained, each for a reason of its own."""

import math

import torch
from torch import nn


def good(shape, n, hidden=8):
    first, second = nn.Linear(math.prod(shape), hidden), nn.Linear(hidden, 16)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(16, n))


class Changed(nn.Module):
    """A good model whose output is changed."""

    def __init__(self, shape, n, change):
        super().__init__()
        self.body = good(shape, n)
        self.change = change

    def forward(self, x):
        return self.change(self.body(x))


def few_outputs(shape, n):
    return good(shape, n - 3)


def many_outputs(shape, n):
    return good(shape, n + 3)


def sequence(shape, n):
    return Changed(shape, n, lambda it: it[:, None].expand(-1, 5, -1))


def one_number(shape, n):
    return Changed(shape, n, lambda it: it[:, 0])


def no_examples(shape, n):
    return Changed(shape, n, lambda it: it.mean(0))


def a_dict(shape, n):
    return Changed(shape, n, lambda it: {"logits": it})


def whole_numbers(shape, n):
    return Changed(shape, n, lambda it: it.argsort(1))


def no_gradient(shape, n):
    return Changed(shape, n, torch.Tensor.detach)


def raises(shape, n):
    return Changed(shape, n, {}.__getitem__)


def half(shape, n):
    return good(shape, n).half()


def double(shape, n):
    return good(shape, n).double()


def partly_double(shape, n):
    model = good(shape, n)
    model[3].double()
    return model


def imaginary(shape, n):
    return good(shape, n).to(torch.complex64)


def lazy(shape, n):
    del shape
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, n))


def other_size(shape, n):
    del shape
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, n))


def other_channels(shape, n):
    del shape
    convolutions = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n))


def needs_an_option(shape, n, *, hidden):
    return good(shape, n, hidden)


def needs_a_third(shape, n, hidden):
    return good(shape, n, hidden)


def no_memory(shape, n):
    with torch.device("meta"):
        return good(shape, n)


def on_cuda(shape, n):
    return good(shape, n).cuda()


def not_finite(shape, n):
    model = good(shape, n)
    nn.init.constant_(model[1].weight, float("nan"))
    return model


class Empty(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


def empty():
    return Empty()


def no_forward(shape, n):
    del shape
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, n)])
    return model
