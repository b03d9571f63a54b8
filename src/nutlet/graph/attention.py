"""Attention whose heads can be counted, scored and removed one by one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.constraints.stack import constrain, constraints, raw_weight
from nutlet.errors import ModelError

__all__ = ["Attention", "open_attention"]


class Attention(nn.Module):
    """Multi-head attention with a dense layer for each projection, for :class:`torch.nn.MultiheadAttention`.

    It takes and gives what that module does. The width of a head is an attribute, so that the projections can become
    thinner with each head that goes; torch's module derives it from the width of the model.

    Args:
        q_proj: ``heads * head_dim`` outputs, as ``k_proj`` and ``v_proj`` have.
        k_proj: see ``q_proj``.
        v_proj: see ``q_proj``.
        out_proj: ``heads * head_dim`` inputs.
        heads: number of heads.
        batch_first: whether inputs are ``(B, L, E)``, else ``(L, B, E)``.
        dropout: share of the attention weights that is dropped in training.

    >>> open_attention(nn.MultiheadAttention(8, 4)).q_proj
    Linear(in_features=8, out_features=8, bias=True)
    """

    in_proj_bias = None
    """Tells :class:`torch.nn.TransformerEncoderLayer` to call this module instead of a kernel of its own."""

    def __init__(
        self,
        q_proj: nn.Linear,
        k_proj: nn.Linear,
        v_proj: nn.Linear,
        out_proj: nn.Linear,
        *,
        heads: int,
        batch_first: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q_proj, k_proj, v_proj, out_proj
        self.num_heads = heads
        self.head_dim = q_proj.out_features // heads
        self.batch_first = batch_first
        self.dropout = dropout

    def forward(
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
        """Return the result and the attention weights; arguments as :class:`torch.nn.MultiheadAttention` takes them.

        Raises:
            ModelError: ``attn_mask`` says something for each head, of which some are gone.
        """
        if attn_mask is not None and attn_mask.ndim != 2:
            raise ModelError(
                f"found an attn_mask {tuple(attn_mask.shape)}, one for each head; expected one for all, (L, S): heads "
                "have been removed"
            )
        single = query.ndim == 2
        if single:
            query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        # With a mask, "causal" only says what the mask is.
        mask = _merged(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = q @ k.transpose(-1, -2) * self.head_dim**-0.5
            weights = (weights if mask is None else weights + mask).softmax(-1)
            mixed = F.dropout(weights, dropout) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal and mask is None)
        result = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not self.batch_first:
            result = result.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            result = result.squeeze(0 if self.batch_first else 1)
            weights = weights if weights is None else weights.squeeze(0)
        return result, weights

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)


def open_attention(module: nn.Module) -> Attention | str:
    """Return ``module`` as an :class:`Attention` that computes the same, or why that cannot be.

    Args:
        module: not changed; a :class:`torch.nn.MultiheadAttention`, or one of ours, which is returned itself.
    """
    if isinstance(module, Attention):
        projections = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
        dense = all(isinstance(layer, nn.Linear) for layer in projections)
        return module if dense else "its projections are no dense layers any more"
    assert isinstance(module, nn.MultiheadAttention)
    if module.bias_k is not None or module.add_zero_attn:
        return "it attends to a key of its own (add_bias_kv, add_zero_attn)"
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    q, k, v = (_dense(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return Attention(
        q,
        k,
        v,
        _copied(module.out_proj),
        heads=module.num_heads,
        batch_first=module.batch_first,
        dropout=module.dropout,
    ).train(module.training)


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a layer with these values, trained where they are."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
    for own, value in ((layer.weight, weight), (layer.bias, bias)):
        if value is not None:
            own.data.copy_(value.detach())
            own.requires_grad_(value.requires_grad)
    return layer


def _copied(layer: nn.Linear) -> nn.Linear:
    """Return a layer with the same values under the same constraints."""
    same = _dense(raw_weight(layer), layer.bias)
    constrain(same, [copy.deepcopy(constraint) for constraint in constraints(layer)])
    return same


def _merged(mask: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
    """Return what is added to the scores ``(B, heads, L, S)``, from masks that are true, or -inf, at what is hidden."""
    found = None
    for part in (mask, None if padding is None else padding[..., None, None, :] if padding.ndim == 2 else padding):
        if part is None:
            continue
        if part.dtype == torch.bool:
            part = torch.zeros_like(part, dtype=like.dtype).masked_fill(part, -torch.inf)
        found = part if found is None else found + part
    return found
