from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nutlet.constraints import WeightQuantizer
from nutlet.constraints.stack import Mask, constrain, constrained_weight, constraints
from nutlet.errors import ModelError
from nutlet.graph.attention import Attention, open_attention


def opened(module: nn.Module) -> Attention:
    attention = open_attention(module)
    assert isinstance(attention, Attention)
    return attention


def module(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(8, 4, **options).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


PLAIN, KEYS = {"batch_first": True}, {"kdim": 6, "vdim": 5}


@pytest.mark.parametrize("options", [PLAIN, {}, {"bias": False}, KEYS], ids="-".join)
@pytest.mark.parametrize("need_weights", [True, False])
def test_opened_it_answers_the_same(options: dict[str, Any], need_weights: bool) -> None:
    theirs = module(**options)
    ours = opened(theirs)
    query, key, value = (torch.randn(3, 3, options.get(width, 8)) for width in ("", "kdim", "vdim"))
    causal = torch.ones(3, 3, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False, False, True], [False, False, False], [False, True, True]])
    both, hint = {"attn_mask": causal, "key_padding_mask": padding}, {"attn_mask": causal, "is_causal": True}
    added = {"attn_mask": torch.randn(3, 3)}
    for masks in ({}, {"attn_mask": causal}, {"key_padding_mask": padding}, both, added, hint):
        expected, found = (m(query, key, value, need_weights=need_weights, **masks) for m in (theirs, ours))
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        assert (found[1] is None) == (expected[1] is None)
        if found[1] is not None:
            torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)
    one = theirs(query[0], key[0], value[0])[0]
    torch.testing.assert_close(ours(query[0], key[0], value[0])[0], one, atol=1e-5, rtol=1e-5)


def test_constraints_are_kept_and_frozen_stays_frozen() -> None:
    theirs = module(batch_first=True).requires_grad_(False)
    constrain(theirs.out_proj, [Mask(torch.rand(8, 8) > 0.5), WeightQuantizer.fit(theirs.out_proj.weight.detach())])
    ours = opened(theirs)
    assert [type(c) for c in constraints(ours.out_proj)] == [WeightQuantizer, Mask]
    assert torch.equal(constrained_weight(ours.out_proj), constrained_weight(theirs.out_proj))
    assert not any(p.requires_grad for p in ours.parameters())


def test_what_cannot_be_opened_says_why() -> None:
    assert "key of its own" in str(open_attention(module(add_bias_kv=True)))
    assert "key of its own" in str(open_attention(module(add_zero_attn=True)))
    attention = opened(module())
    attention.q_proj = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8))
    assert "no dense layers" in str(open_attention(attention))


def test_a_mask_for_each_head_is_refused() -> None:
    x = torch.randn(3, 2, 8)
    with pytest.raises(ModelError, match=r"one for each head; expected one for all"):
        opened(module())(x, x, x, attn_mask=torch.zeros(8, 3, 3))
