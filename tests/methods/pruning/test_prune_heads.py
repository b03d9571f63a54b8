from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tiny
from nutlet.compression.pipeline import compress
from nutlet.errors import ModelError
from nutlet.graph.attention import Attention
from nutlet.graph.coupling.groups import Coupling
from nutlet.methods import PruneHeads
from nutlet.training.context import Context


def silenced(model: nn.Module, head: int) -> nn.Module:
    """Let nothing of one head of the first block through."""
    with torch.no_grad():
        model.block1.attention.out_proj.weight[:, 4 * head : 4 * head + 4] = 0.0
        model.block1.attention.in_proj_weight[32 + 4 * head : 36 + 4 * head] *= 1e-3
    return model


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "taylor"])
def test_the_head_that_does_nothing_goes_first(criterion: str) -> None:
    model, data = tiny.tiny("attention")
    silenced(model, 2)
    with torch.no_grad():
        model.block1.attention.in_proj_bias[40:44] = 0.0
    method = PruneHeads(ratio=0.25, criterion=criterion)  # type: ignore[arg-type]
    result = compress(model, [method], data)
    assert result.steps[1].plan["removed"]["block1.attention"] == [2]
    assert len(result.steps[1].plan["removed"]["block2.self_attn"]) == 1
    assert result.steps[1].size.macs < result.steps[0].size.macs


def test_without_a_silent_head_the_answers_are_the_same() -> None:
    model, data = tiny.tiny("attention")
    silenced(model, 1)
    result = compress(model, [PruneHeads(ratio=0.25, include=("block1",))], data)
    with torch.no_grad():
        torch.testing.assert_close(result.model(data.train.x), model(data.train.x), atol=1e-5, rtol=1e-5)
    attention = result.model.block1.attention
    assert isinstance(attention, Attention)
    assert attention.q_proj.weight.shape == (12, 16)
    assert attention.out_proj.weight.shape == (16, 12)
    assert isinstance(result.model.block2.self_attn, nn.MultiheadAttention)


def test_taylor_is_the_derivative_by_a_factor_on_the_head() -> None:
    model, data = tiny.tiny("attention")
    method = PruneHeads(ratio=0.25, include=("block1",))
    opened = compress(model, [method], data).model
    context = Context(data=data, teacher=model)
    groups = {group.root: group for group in Coupling(opened, context.example, heads=True).groups}
    found = method._scores(opened, groups, context)["block1.attention"]
    factors = torch.ones(3, requires_grad=True)
    opened.block1.attention.out_proj.register_forward_pre_hook(
        lambda _, args: (args[0] * factors.repeat_interleave(4),)
    )
    loss = nn.functional.cross_entropy(opened(data.calibration.x), data.calibration.y)
    (gradient,) = torch.autograd.grad(loss, factors)
    torch.testing.assert_close(found, gradient.square(), atol=1e-7, rtol=1e-3)


def test_heads_go_twice_and_one_always_stays() -> None:
    model, data = tiny.tiny("attention")
    twice = compress(model, [PruneHeads(ratio=0.5), PruneHeads(ratio=0.5)], data).model
    assert twice.block1.attention.num_heads == twice.block2.self_attn.num_heads == 1
    last = compress(model, [PruneHeads(ratio=0.9, distribution="global"), PruneHeads(ratio=0.9)], data)
    assert last.model.block1.attention.num_heads == 1
    assert any("nothing removed" in note for note in last.steps[2].notes) or last.model.block2.self_attn.num_heads == 1


class Encoder(nn.Module):
    """A stack whose container reads the inside of its first layer, and hides padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(5, 8), nn.Linear(8, tiny.CLASSES)
        layer = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tensor([[False, True]]).expand(len(x), 2)
        return self.fc(self.encoder(self.embed(x.view(-1, 2, 5)), src_key_padding_mask=hidden)[:, 0])


def test_in_an_encoder_with_padding() -> None:
    data = tiny.tiny_data((10,))
    model = tiny.settled(Encoder(), data.calibration.x)
    result = compress(model, [PruneHeads(ratio=0.5)], data)
    assert [layer.self_attn.num_heads for layer in result.model.encoder.layers] == [2, 2]


class Reading(nn.Module):
    """Reads the inside of its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(5, 8), nn.Linear(8, tiny.CLASSES)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.other = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, 2, 5)) * self.attention.in_proj_weight.mean()
        return self.fc(self.other(x, x, x)[0].mean(1) + self.attention(x, x, x)[0].mean(1))


def test_what_cannot_be_opened_is_left_alone_and_named() -> None:
    data = tiny.tiny_data((10,))
    step = compress(tiny.settled(Reading(), data.calibration.x), [PruneHeads(ratio=0.5)], data).steps[1]
    assert step.plan["removed"] == {}
    assert any("attention: the model does not run with it opened (AttributeError" in note for note in step.notes)
    assert any(note.startswith("other: it attends to a key of its own") for note in step.notes)


def test_a_model_without_attention_is_refused() -> None:
    model, data = tiny.tiny("mlp")
    with pytest.raises(ModelError, match=r"found no attention; expected nn\.MultiheadAttention"):
        compress(model, [PruneHeads(ratio=0.5)], data)
