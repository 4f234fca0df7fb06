"""digits_app: a network, its data, training and test."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Examples = tuple[Tensor, Tensor]


def make_net() -> nn.Module:
    """Return a network for 8x8 images of ten classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def load_data(partition_id: int, num_partitions: int) -> tuple[Examples, Examples]:
    """Return the training and test examples of a partition: every so-many-th image."""
    digits = load_digits()
    images = torch.tensor(digits.images[partition_id::num_partitions] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target[partition_id::num_partitions])
    cut = len(labels) * 4 // 5
    return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])


def train(net: nn.Module, examples: Examples, epochs: int, learning_rate: float) -> float:
    """Train, and return the loss of the last batch."""
    images, labels = examples
    optimizer = torch.optim.SGD(net.parameters(), learning_rate, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(16):
            optimizer.zero_grad()
            loss = cross_entropy(net(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
    return loss.item()


@torch.no_grad()
def test(net: nn.Module, examples: Examples) -> tuple[float, float]:
    """Return (loss, accuracy)."""
    images, labels = examples
    logits = net(images)
    correct = (logits.argmax(dim=1) == labels).float().mean()
    return cross_entropy(logits, labels).item(), correct.item()
