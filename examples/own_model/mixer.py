"""A model of your own: an MLP-Mixer (Tolstikhin et al. 2021) for small images."""

from torch import Tensor, nn


def build(
    input_shape: tuple[int, int, int],
    num_classes: int,
    patch: int = 2,
    features: int = 32,
    depth: int = 2,
) -> nn.Module:
    """Return the model; patch, features and depth come from [model.options]."""
    channels, height, width = input_shape
    patches = (height // patch) * (width // patch)
    blocks = [MixerBlock(patches, features) for _ in range(depth)]
    return nn.Sequential(
        nn.Conv2d(channels, features, patch, stride=patch),
        nn.Flatten(2),  # (n, features, patches)
        *blocks,
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(features, num_classes),
    )


class MixerBlock(nn.Module):
    """Mix the patches of each feature, then the features of each patch."""

    def __init__(self, patches: int, features: int) -> None:
        super().__init__()
        self.patch_norm = nn.GroupNorm(1, features)
        self.patch_mixer = mlp(patches)
        self.feature_norm = nn.GroupNorm(1, features)
        self.feature_mixer = mlp(features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, features, patches) to the same shape."""
        x = x + self.patch_mixer(self.patch_norm(x))
        return x + self.feature_mixer(self.feature_norm(x).mT).mT


def mlp(size: int) -> nn.Module:
    """Return two linear layers, the hidden one twice as wide."""
    return nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
