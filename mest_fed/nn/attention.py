"""Attention with sparse projections.

``nn.MultiheadAttention`` packs its input projections into one weight (or three) of its own, which
is no layer. In :class:`SparseAttention` each of them is a :class:`SparseLinear` child, so that it
has values, slots and a name as any sparse layer has. Biases stay where they were.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mest_fed.errors import InputError
from mest_fed.nn.layers import SparseLayer

#: Weights of an attention -> the children that hold them when they are sparse.
PROJECTIONS = {
    "in_proj_weight": "in_proj",
    "q_proj_weight": "q_proj",
    "k_proj_weight": "k_proj",
    "v_proj_weight": "v_proj",
}


_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def projections(attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """Return the input projections that are dense, as linear layers of the same weights.

    Parameters
    ----------
    attention : nn.MultiheadAttention
        Any; it stays as it is.
    """
    found = {}
    for weight_name, name in PROJECTIONS.items():
        weight = attention._parameters.get(weight_name)
        if weight is not None and weight.dim() == 2:
            out_features, in_features = weight.shape
            linear = nn.Linear(in_features, out_features, bias=False, device="meta")
            linear.weight = weight
            linear.training = attention.training
            found[name] = linear
    return found


def _weight_of(name: str) -> Any:
    """Return the property by which a projection's weight reads as it does of a dense one."""

    def read(self: nn.Module) -> Tensor | None:
        projection: Any = self._modules.get(name)
        return self._parameters[f"{name}_weight"] if projection is None else projection.weight

    return property(read)


class SparseAttention(nn.MultiheadAttention):
    """Multi-head attention of which projections are sparse; :meth:`adopt` makes one.

    It takes and returns what ``nn.MultiheadAttention`` does. The weights read as ever
    (``in_proj_weight``), each built anew from the values.
    """

    in_proj_weight = _weight_of("in_proj")
    q_proj_weight = _weight_of("q_proj")
    k_proj_weight = _weight_of("k_proj")
    v_proj_weight = _weight_of("v_proj")

    @classmethod
    def adopt(cls, attention: nn.Module, name: str, projection: SparseLayer) -> None:
        """Make an attention sparse, or one more of its projections; it stays the same object.

        Parameters
        ----------
        attention : nn.MultiheadAttention
            Changed in place.
        name : str
            ``in_proj``, ``q_proj``, ``k_proj``, ``v_proj`` or ``out_proj``.
        projection : SparseLayer
            The sparse form of that projection.
        """
        attention.__class__ = cls
        if f"{name}_weight" in PROJECTIONS:
            # The name keeps its place among the parameters, for the way back.
            attention._parameters[f"{name}_weight"] = None
        held = {**attention._modules, name: projection}
        order = [*PROJECTIONS.values(), *(it for it in held if it not in PROJECTIONS.values())]
        attention._modules.clear()
        attention._modules.update({it: held[it] for it in order if it in held})

    def restore(self, weights: dict[tuple[Any, ...], nn.Parameter] | None = None) -> None:
        """Turn it into the plain dense one, its input projections too; see ``SparseLayer``."""
        for weight_name, name in PROJECTIONS.items():
            projection = self._modules.pop(name, None)
            if isinstance(projection, SparseLayer):
                projection.restore(weights)
                self._parameters[weight_name] = projection.get_parameter("weight")
        plain: Any = self
        plain.__class__ = nn.MultiheadAttention

    def _reset_parameters(self) -> None:
        """Draw the weights as ``nn.MultiheadAttention`` does; the masks stay."""
        plain = copy.deepcopy(self)
        plain.restore()
        plain._reset_parameters()
        with torch.no_grad():
            for name in PROJECTIONS.values():
                projection = self._modules.get(name)
                if isinstance(projection, SparseLayer):
                    projection.read_weight(plain.get_parameter(f"{name}_weight"))
            for name, parameter in self.named_parameters():
                if name.rpartition(".")[2] != "values":
                    parameter.copy_(plain.get_parameter(name))

    def forward(  # noqa: PLR0917 - as torch has it
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see ``nn.MultiheadAttention``.

        Raises
        ------
        InputError
            If an input is a nested tensor.
        """
        if any(it.is_nested for it in (query, key, value)):
            raise InputError(
                "nested tensors are not allowed in attention with sparse projections; allowed: "
                "padded ones (nn.TransformerEncoder(..., enable_nested_tensor=False))"
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        q, k, v = self._projected(query, key, value)
        if not batched:
            q, k, v = (it.unsqueeze(0) for it in (q, k, v))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            q, k, v = (it.transpose(0, 1) for it in (q, k, v))
        causal = is_causal and key_padding_mask is None and not need_weights
        if not causal:
            attn_mask = self._mask(attn_mask, key_padding_mask, q)
        y, weights = self._attended(
            q, k, v, None if causal else attn_mask, causal=causal, need_weights=need_weights
        )
        if not self.batch_first and batched:
            y = y.transpose(0, 1)
        y = self.out_proj(y if batched else y.squeeze(0))
        if weights is None:
            return y, None
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return y, weights if batched else weights.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return query, key and value, projected."""
        bias: Any = self.in_proj_bias
        if self._qkv_same_embed_dim:
            if query is key is value:
                packed = self._project("in_proj", query)
                packed = packed if bias is None else packed + bias
                return packed.chunk(3, dim=-1)
            # Each input has a third of the packed weight; two that are one are multiplied once.
            made = {id(it): self._project("in_proj", it) for it in (query, key, value)}
            thirds = [made[id(it)].chunk(3, -1)[i] for i, it in enumerate((query, key, value))]
        else:
            given = zip(("q_proj", "k_proj", "v_proj"), (query, key, value), strict=True)
            thirds = [self._project(name, it) for name, it in given]
        if bias is None:
            return tuple(thirds)
        return tuple(it + part for it, part in zip(thirds, bias.chunk(3), strict=True))

    def _project(self, name: str, x: Tensor) -> Tensor:
        projection = self._modules.get(name)
        if projection is None:
            return functional.linear(x, self.get_parameter(f"{name}_weight"))
        projected: Tensor = projection(x)
        return projected

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Return both masks as one that is added, of shape (n or 1, heads or 1, target, source)."""
        total = None
        if attn_mask is not None:
            mask = _added(attn_mask, q.dtype)
            heads = mask.view(len(q), self.num_heads, *mask.shape[1:]) if mask.dim() == 3 else None
            total = mask.view(1, 1, *mask.shape) if heads is None else heads
        if padding is not None:
            keys = _added(padding, q.dtype).view(len(q), 1, 1, -1)
            total = keys if total is None else total + keys
        more = (self.bias_k is not None) + self.add_zero_attn
        return functional.pad(total, (0, more)) if total is not None and more else total

    def _attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with inputs of shape (n, length, features); weights are (n, heads, t, s)."""
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], dim=1)
        if self.add_zero_attn:
            k, v = (functional.pad(it, (0, 0, 0, 1)) for it in (k, v))
        q, k, v = (it.view(*it.shape[:2], self.num_heads, -1).transpose(1, 2) for it in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, dropout) if dropout else weights
            y = weights @ v
        elif q.is_meta and not dropout:
            # Meta tensors stand for the CPU's, but torch chooses another operator for them.
            y = _ON_CPU(q, k, v, 0.0, causal, attn_mask=mask)[0]
        else:
            y = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        return y.transpose(1, 2).flatten(2), weights


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers that are added to scores; true means: is not attended to."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
