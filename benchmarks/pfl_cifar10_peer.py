"""pfl-research's side of ``pfl_cifar10.py``: a process of its own, or two that reduce together.

Its benchmark as its repository has it (benchmarks/image_classification, ``baseline.yaml``): FedAvg,
1,000 IID users of 50 images, cohorts of 50, one local epoch in batches of 10 at learning rate 0.1,
central SGD at 1.0, every user weighing the same. The images come as float32 tensors in the layout
that its convolutions want, so that nothing is converted or transposed while it is timed, and its
own progress reports stay silent.

    python pfl_cifar10_peer.py --data FOLDER --rounds 10
    python -m torch.distributed.run --nproc-per-node 2 pfl_cifar10_peer.py --data FOLDER

Prints one line of JSON: seconds of each round, and accuracies (round -> share) if asked.
"""

import argparse
import json
import logging
import sys
import time
import types

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import get_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn

from mest_fed.data import ArrayData, load_dataset, partition

#: Dropout behind the pooling and behind the hidden layer, in pfl-research's network.
DROPOUT = (0.25, 0.5)
COHORT = 50


def build_network(dropout: bool) -> nn.Module:
    """Build pfl-research's ``simple_cnn`` for CIFAR-10, with its Glorot-uniform weights."""
    after_pool, after_hidden = DROPOUT if dropout else (0.0, 0.0)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(after_pool),
        nn.Flatten(),
        nn.Linear(64 * 14 * 14, 128),
        nn.ReLU(),
        nn.Dropout(after_hidden),
        nn.Linear(128, 10),
    ]
    network = nn.Sequential(*(layer for layer in layers if getattr(layer, "p", 1) > 0))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    network.loss = types.MethodType(_loss, network)
    network.metrics = types.MethodType(_metrics, network)
    return network


def _loss(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    network.train()
    return nn.functional.cross_entropy(network(images), labels)


def _metrics(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict:
    network.eval()
    with torch.no_grad():
        correct = int((network(images).argmax(1) == labels).sum())
    return {"accuracy": Weighted(correct, len(images))}


def normalised(data: ArrayData) -> torch.Tensor:
    """Return images as our clients see them: float32, (n, channels, height, width)."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (data.mean, data.std))
    return (data.inputs.float() / 255).sub_(mean).div_(std)


def users_of(data: ArrayData, users: int, seed: int) -> FederatedDataset:
    """Share the images out among the users as our fleet does."""
    images, labels = normalised(data), data.targets
    parts = partition(labels.numpy(), users, scheme="iid", seed=seed)
    own = {user: (images[part], labels[part]) for user, part in enumerate(parts)}
    return FederatedDataset.from_slices(own, get_user_sampler("random", range(users)))


class Watch(TrainingProcessCallback):
    """Times the rounds and evaluates after some of them, outside what is timed."""

    def __init__(
        self, test: tuple[torch.Tensor, torch.Tensor] | None, every: int, *, cpu: bool = False
    ) -> None:
        self.test, self.every = test, every
        self.clock = time.process_time if cpu else time.perf_counter
        self.seconds: list[float] = []
        self.accuracy: dict[int, float] = {}

    def on_train_begin(self, *, model):
        """Start the clock."""
        self.started = self.clock()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Note a round's seconds; evaluate if it is due; start the clock again."""
        self.seconds.append(self.clock() - self.started)
        done = central_iteration + 1
        if self.test is not None and done % self.every == 0:
            images, labels = self.test
            network = model.pytorch_model.eval()
            with torch.no_grad():
                guesses = torch.cat([network(part).argmax(1) for part in images.split(250)])
            self.accuracy[done] = float((guesses == labels).float().mean())
        self.started = self.clock()
        return False, Metrics()


def train(options: argparse.Namespace) -> Watch:
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 - pfl-research samples users with it
    data = load_dataset("cifar10", options.data)
    network = build_network(options.dropout)
    model = PyTorchModel(
        model=network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), 1.0),
        use_torch_compile=options.compile,
    )
    test = (normalised(data.test), data.test.targets) if options.evaluate_every else None
    watch = Watch(test, options.evaluate_every, cpu=options.cpu)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=options.rounds,
            evaluation_frequency=options.rounds + 1,
            train_cohort_size=COHORT,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=users_of(data.train, options.users, options.seed),
            val_data=None,
            postprocessors=[WeightByUser()],
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_learning_rate=0.1, local_num_epochs=1, local_batch_size=10
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=250),
        callbacks=[watch],
    )
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train and test.parquet")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--dropout", action="store_true", help="as in its own network")
    parser.add_argument("--compile", action="store_true", help="its torch.compile option")
    parser.add_argument("--cpu", action="store_true", help="seconds of the CPU, not of a clock")
    parser.add_argument("--evaluate-every", type=int, default=0, help="rounds; 0: never")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.CRITICAL)
    watch = train(options)
    if get_ops().distributed.global_rank == 0:
        found = {"seconds": watch.seconds, "accuracy": watch.accuracy}
        json.dump(found, sys.stdout)
        print()


if __name__ == "__main__":
    main()
