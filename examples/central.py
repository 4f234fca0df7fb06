"""Sparse training in a plain torch loop: three lines of sparsity, one of memory saving."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mest_fed import (
    Interval,
    MemoryOptions,
    MestEM,
    Mutator,
    layer_densities,
    memory_saving,
    sparsify,
    to_dense,
)

EPOCHS, BATCH_SIZE, TEST_IMAGES = 10, 32, 360


def main() -> None:
    """Train a network with a tenth of its weights, and say how well it does."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)

    model = network()
    sparsify(model, scheme="unstructured", density=0.1)  # in place
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)  # made after sparsify
    mutator, interval = Mutator(model, MestEM(), optimizer), Interval(steps=EPOCHS)
    # Keep what enters a block alone, in 8 bits, and compute the rest again in backward.
    options = MemoryOptions(recompute="segments", saved="int8")

    with memory_saving(model, options) as forward:
        for epoch in range(EPOCHS):
            mutator.step(epoch, interval, seed=0)  # drops and grows weights; momentum follows
            for rows in torch.randperm(len(labels) - TEST_IMAGES).split(BATCH_SIZE):
                optimizer.zero_grad()
                cross_entropy(forward(images[rows]), labels[rows]).backward()
                optimizer.step()

    for layer in layer_densities(model):
        why = "sparse" if layer.reason is None else f"dense: {layer.reason}"
        print(f"{layer.name:12} {layer.active:6} of {layer.weights:6} weights, {why}")
    plain = to_dense(model).eval()  # torch's own modules, which need no mest_fed
    print(f"accuracy {accuracy(plain, images[-TEST_IMAGES:], labels[-TEST_IMAGES:]):.1%}")


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(8, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, height, width) to the same shape."""
        return torch.relu(x + self.body(x))


def network(channels: int = 32) -> nn.Module:
    """Return a small residual network for 8x8 images of ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        Block(channels),
        nn.MaxPool2d(2),
        Block(channels),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class the model knows."""
    return (model(images).argmax(dim=1) == labels).float().mean().item()


if __name__ == "__main__":
    main()
