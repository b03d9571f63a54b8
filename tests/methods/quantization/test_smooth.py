"""Smoothing moves outliers from activations into weights, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from nutlet.compression.pipeline import compress
from nutlet.constraints.stack import constrained_weight
from nutlet.data.examples import Data
from nutlet.graph.statistics import observe
from nutlet.methods import PruneWeights, Quantize, Smooth
from nutlet.tasks.predict import predict


class Attention(nn.Module):
    """One pre-norm transformer block over two tokens, with separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(5, 16), nn.Linear(16, tiny.CLASSES)
        self.ln1, self.ln2 = nn.LayerNorm(16), nn.RMSNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, 2, 5))
        y = self.ln1(x)
        x = x + self.out(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        x = x + self.down(F.gelu(self.up(self.ln2(x))))
        return self.fc(x.mean(1))


def outliers() -> tuple[nn.Module, Data]:
    """Return a model two of whose channels are huge behind the norm, as those of language models are."""
    torch.manual_seed(0)
    data = tiny.tiny_data((10,))
    model = tiny.settled(Attention(), data.calibration.x)
    with torch.no_grad():
        for norm, readers in ((model.ln1, (model.q, model.k, model.v)), (model.ln2, (model.up,))):
            norm.weight[:2] *= 60
            for reader in readers:
                reader.weight[:, :2] /= 60
    return model, data


def largest(model: nn.Module, data: Data, name: str) -> Tensor:
    found: list[Tensor] = []

    def note(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        found.append(x.abs().flatten(0, -2).amax(0))

    observe(model, [name], note, [(data.calibration.x, data.calibration.y)])
    return found[0]


def test_the_function_stays_and_outliers_go() -> None:
    model, data = outliers()
    result = compress(model, Smooth(), data)
    assert [None, "ln1", ["q", "k", "v"]] in result.steps[1].plan["links"]
    assert [None, "ln2", ["up"]] in result.steps[1].plan["links"]
    torch.testing.assert_close(predict(result.model, data.train), predict(model, data.train), atol=1e-4, rtol=1e-5)
    spread = [float(x.max() / x.median()) for x in (largest(m, data, "up") for m in (model, result.model))]
    assert spread[0] > 30
    assert spread[1] < 6
    # With alpha 0.5 activations and weights of a channel get the same range.
    weights = constrained_weight(result.model.up).abs().amax(0)
    torch.testing.assert_close(largest(result.model, data, "up"), weights, rtol=1e-4, atol=1e-5)


def test_integers_answer_better_after_it() -> None:
    model, data = outliers()
    answers = predict(model, data.train)
    plain, smooth = (
        float((predict(compress(model, steps, data).model, data.train) - answers).square().mean())
        for steps in ([Quantize()], [Smooth(), Quantize()])
    )
    assert smooth < 0.5 * plain


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_alpha(alpha: float) -> None:
    model, data = outliers()
    result = compress(model, Smooth(alpha=alpha, include=("up",)), data).model
    flat = largest(result, data, "up") if alpha else constrained_weight(result.up).abs().amax(0)
    torch.testing.assert_close(flat, torch.ones(16), atol=1e-4, rtol=1e-4)


def test_masks_stay_and_a_norm_that_others_read_is_left_alone() -> None:
    model, data = outliers()
    pruned = compress(model, PruneWeights(sparsity=0.5), data).model
    result = compress(model, [PruneWeights(sparsity=0.5), Smooth()], data).model
    for name in ("q", "up"):
        before, after = (constrained_weight(m.get_submodule(name)) for m in (pruned, result))
        assert torch.equal(before == 0, after == 0)
    # Where one reader is out of scope, none of them can be scaled.
    partly = compress(model, Smooth(exclude=("k",)), data)
    assert [link[1] for link in partly.steps[1].plan["links"]] == ["ln2"]
