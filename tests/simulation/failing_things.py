"""Things of a user's own that fail while a file ``broken`` is beside them, and are ours else."""

from pathlib import Path

from mest_fed.nn.optimizers import SGD
from mest_fed.server.modes.synchronous import SummedRounds
from mest_fed.server.optimizers import ServerOptimizer
from mest_fed.server.selection import Uniform
from mest_fed.sparsity.methods import MestEM
from mest_fed.training.tasks import Classification
from mest_fed.wire.float_formats import Float32
from mest_fed.wire.values import Plain

BROKEN = Path(__file__).parent / "broken"


def ask_the_battery():
    if BROKEN.exists():
        raise KeyError("no battery")


class Chooses(Uniform):
    def select(self, call):
        ask_the_battery()
        return super().select(call)


class Learns(Uniform):
    def learn(self, number, reports):
        ask_the_battery()


class Rounds(SummedRounds):
    def configure_train(self, *arguments):
        ask_the_battery()
        return super().configure_train(*arguments)


class Method(MestEM):
    def growth_order(self, *arguments):
        ask_the_battery()
        return super().growth_order(*arguments)


class Step(ServerOptimizer):
    def update(self, gradient, moments):
        ask_the_battery()
        return super().update(gradient, moments)


class Descent(SGD):
    def step(self):
        ask_the_battery()
        return super().step()


class Codec(Plain):
    number = 201
    dense = Float32()

    def pack(self, values, lengths):
        ask_the_battery()
        return super().pack(values, lengths)


class Guesses(Classification):
    def sums(self, outputs, targets):
        ask_the_battery()
        return super().sums(outputs, targets)


def weight(examples):
    ask_the_battery()
    return examples


def brighter(images, generator):
    del generator
    ask_the_battery()
    return images


class Lines:
    def __init__(self, folder):
        del folder

    def begin(self, config, name, done):
        """Begin."""

    def round_done(self, row):
        del row
        ask_the_battery()

    def end(self):
        """End."""
