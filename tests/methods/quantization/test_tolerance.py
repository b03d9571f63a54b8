"""What integers are too coarse for stays in floating point, is named, and is no more than it has to be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tiny
from nutlet.compression.pipeline import Compressed, compress
from nutlet.constraints.stack import constrained_layers
from nutlet.errors import ConfigError
from nutlet.graph.activation_quantizers import ActivationQuantizer
from nutlet.methods import Quantize
from nutlet.methods.quantization.quantize import TOLERANCE, WEIGHT_TOLERANCE


class Cancelling(nn.Module):
    """The difference of two layers that are nearly the same, and a layer behind it that is not to blame."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plus, self.minus, self.fc = nn.Linear(10, 16), nn.Linear(10, 16), nn.Linear(16, tiny.CLASSES)
        with torch.no_grad():
            self.minus.weight.copy_(self.plus.weight + 0.006 * torch.randn(16, 10))
            self.minus.bias.copy_(self.plus.bias)
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.plus(x) - self.minus(x))


def moved(small: Compressed, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = model(x)
        return float((small.model(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize(("activations", "most"), [(True, TOLERANCE), (False, WEIGHT_TOLERANCE)])
def test_what_is_too_coarse_is_left_and_named(activations: bool, most: float) -> None:
    model, data = Cancelling().eval(), tiny.tiny_data((10,))
    free = compress(model, [Quantize(activations=activations, tolerance=100.0)], data)
    held = compress(model, [Quantize(activations=activations)], data)
    x = data.calibration.x[:16]
    assert moved(free, model, x) > 1.5 * most
    assert 0 < moved(held, model, x) <= 1.2 * most
    left = {name.removeprefix("model.") for name, _ in constrained_layers(held.model)}
    assert "fc" in left
    assert len(left) < 3
    (note,) = (note for note in held.steps[1].notes if "too coarse" in note)
    assert note.startswith(("plus", "minus"))
    assert f"`tolerance` is {most:.1%}" in note
    assert not any("too coarse" in note for note in free.steps[1].notes)


def test_ranges_are_those_behind_the_weights_that_are_left() -> None:
    model, data = Cancelling().eval(), tiny.tiny_data((10,))
    held = compress(model, [Quantize()], data)
    assert not any("left as it was" in note for note in held.steps[1].notes)
    assert any(isinstance(module, ActivationQuantizer) for module in held.model.modules())


def test_a_model_that_holds_is_quantized_whole() -> None:
    model, data = tiny.tiny("cnn")
    one, other = (compress(model, [Quantize(tolerance=t)], data).steps[1].plan for t in (None, 100.0))
    assert one == other


def test_fewer_bits_are_held_only_where_asked() -> None:
    model, data = tiny.tiny("mlp")
    layers = [
        len(list(constrained_layers(compress(model, [Quantize(bits=3, activations=False, tolerance=t)], data).model)))
        for t in (None, 0.05)
    ]
    assert layers[1] < layers[0]


def test_no_tolerance_below_zero() -> None:
    with pytest.raises(ConfigError, match=r"Quantize.tolerance is 0; expected"):
        Quantize(tolerance=0)
