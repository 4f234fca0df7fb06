"""Networks for sequences: a small transformer and an LSTM.

Both read tokens, int64 of shape (n, length), and give a class of each sequence, or, where targets
have the inputs' shape, the next token at each position.
"""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from mest_fed.errors import not_allowed
from mest_fed.nn.flow import Ends
from mest_fed.nn.models.initial import glorot_uniform, recurrent_uniform


class Attention(nn.Module):
    """Attention of several heads within a sequence.

    Parameters
    ----------
    features : int
        Of each position.
    heads : int
        Divides the features.
    causal : bool
        Whether a position attends only to itself and those before it.
    """

    def __init__(self, features: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.project_in = nn.Linear(features, 3 * features)
        self.project_out = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, length, features) to the same shape."""
        packed = self.project_in(x).unflatten(-1, (3, self.heads, -1))  # n, length, 3, heads, ...
        query, key, value = packed.transpose(1, 3).unbind(2)
        y = scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        z: Tensor = self.project_out(y.transpose(1, 2).flatten(2))
        return z


class EncoderBlock(nn.Module):
    """Attention, then two linear layers; each behind a normalisation, with a residual."""

    segments: ClassVar = {"forward": ()}

    def __init__(self, features: int, heads: int, hidden: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.attention = Attention(features, heads, causal=causal)
        self.norm2 = nn.LayerNorm(features)
        self.linear1 = nn.Linear(features, hidden)
        self.linear2 = nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, length, features) to the same shape."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.linear2(gelu(self.linear1(self.norm2(x))))
        return y


class Transformer(nn.Module):
    """An encoder of tokens with normalisation first (Xiong et al. 2020).

    Parameters
    ----------
    input_shape : tuple of int
        (length,) of a sequence.
    num_classes : int
        Outputs.
    width : float
        Factor on the features of each head and on the hidden units.
    features, heads, hidden, depth : int
        Features of a position, heads of attention, units of the hidden layers, blocks.
    num_tokens : int, optional
        Size of the vocabulary; by default the number of outputs.
    target_shape : tuple of int
        The shape of the inputs asks for an output at each position, which then sees only itself and
        those before it; else the mean over positions is classified.
    """

    initial: ClassVar = staticmethod(glorot_uniform)
    #: The sum of all blocks is normalised once, at the end: sparse layers keep their norms.
    normalised: ClassVar = False
    ends: ClassVar = Ends(stem=(), head=("classifier",))

    def __init__(
        self,
        input_shape: tuple[int],
        num_classes: int,
        *,
        width: float = 1.0,
        features: int = 128,
        heads: int = 4,
        hidden: int = 512,
        depth: int = 2,
        num_tokens: int | None = None,
        target_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if features % heads:
            raise not_allowed("model.options.features", features, f"a multiple of heads, {heads}")
        self.everywhere = tuple(target_shape) == tuple(input_shape)
        features = heads * max(1, round(features // heads * width))
        hidden = max(1, round(hidden * width))
        self.token = nn.Embedding(num_tokens or num_classes, features)
        self.position = nn.Embedding(input_shape[0], features)
        self.blocks = nn.Sequential(
            *(EncoderBlock(features, heads, hidden, causal=self.everywhere) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(features)
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n, length) to logits (n, classes) or (n, length, tokens)."""
        y = self.token(x) + self.position.weight[: x.shape[1]]
        for block in self.blocks:
            y = block(y)
        y = self.norm(y)
        logits: Tensor = self.classifier(y if self.everywhere else y.mean(dim=1))
        return logits


class LSTM(nn.Module):
    """An LSTM with a hidden linear layer behind it, for tokens or series.

    The linear layer is sparse; recurrent weights, which are used once a position, and the embedding
    stay dense.

    Parameters
    ----------
    input_shape : tuple of int
        (length,) of tokens, or (channels, length) of a series.
    num_classes : int
        Outputs.
    width : float
        Factor on the features and hidden units.
    features, hidden, depth : int
        Size of a token's vector, units of each layer, recurrent layers.
    num_tokens, target_shape
        As for :class:`Transformer`.
    """

    initial: ClassVar = staticmethod(recurrent_uniform)
    ends: ClassVar = Ends(stem=(), head=("classifier",))

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        width: float = 1.0,
        features: int = 64,
        hidden: int = 256,
        depth: int = 1,
        num_tokens: int | None = None,
        target_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.everywhere = bool(target_shape) and target_shape[0] == input_shape[-1]
        features, hidden = (max(1, round(base * width)) for base in (features, hidden))
        self.token = (
            nn.Embedding(num_tokens or num_classes, features) if _is_text(input_shape) else None
        )
        self.lstm = nn.LSTM(
            features if self.token is not None else input_shape[0],
            hidden,
            depth,
            batch_first=True,
        )
        self.hidden = nn.Linear(hidden, hidden)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n, length) or series (n, channels, length) to logits."""
        steps = self.token(x) if self.token is not None else x.transpose(1, 2)
        y, _ = self.lstm(steps)
        y = self.relu(self.hidden(y if self.everywhere else y[:, -1]))
        logits: Tensor = self.classifier(y)
        return logits


def _is_text(input_shape: tuple[int, ...]) -> bool:
    return len(input_shape) == 1
