"""Where activation quantizers go, and what they do there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.constraints import QuantScheme, WeightQuantizer
from nutlet.constraints.stack import constrain, constrained_weight, remove_constraints
from nutlet.errors import ModelError
from nutlet.graph.activation_quantizers import ActivationQuantizer, attach, calibrate, reattach
from nutlet.graph.fold import fold, foldable
from nutlet.graph.placement import place
from nutlet.graph.scope import Layer
from nutlet.graph.trace import trace
from nutlet.methods.quantization.integers import attach_quantizer
from tiny import Residual, TinyCNN, settled

X = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def quantized(model: nn.Module, x: Tensor = X, leave: tuple[str, ...] = ()) -> nn.Module:
    """Put quantizers on all weights but those of the layers named in ``leave``."""
    settled(model, x)
    for name, layer in model.named_modules():
        if isinstance(layer, Layer) and name not in leave:
            constrain(layer, [WeightQuantizer.fit(constrained_weight(layer))])
    return model


def sites(model: nn.Module, x: Tensor = X) -> dict[str, str | None]:
    return place(model, trace(model, x))


class Head(nn.Module):
    def __init__(self, *before: nn.Module) -> None:
        super().__init__()
        self.before = nn.Sequential(*before)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.before(x).mean((2, 3)))


def test_a_residual_block_is_quantized_after_norm_relu_and_addition() -> None:
    model = quantized(Head(Residual(8), Residual(8)))
    assert list(sites(model)) == [
        "/input/0",
        "before.0/relu/0",
        "before.0.bn2/batch_norm/0",
        "before.0/relu/1",
        "before.1/relu/0",
        "before.1.bn2/batch_norm/0",
        "before.1/relu/1",
        "/mean/0",
    ]
    assert set(sites(model).values()) == {None}


def test_after_folding_the_same_places_are_quantized() -> None:
    model = quantized(Head(Residual(8)))
    fold(model, foldable(model, trace(model, X)))
    assert list(sites(model)) == [
        "/input/0",
        "before.0/relu/0",
        "before.0.conv2/conv2d/0",
        "before.0/relu/1",
        "/mean/0",
    ]


def test_nothing_on_the_output() -> None:
    for model in (quantized(Head(Residual(8))), quantized(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))):
        record = trace(model, X)
        assert not set(place(model, record)) & record.outputs


def test_without_quantized_weights_nothing_is_quantized() -> None:
    assert sites(settled(Head(Residual(8)), X)) == {}


def test_the_scope_of_the_weights_is_the_scope_of_the_activations() -> None:
    convs = (nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
    model = quantized(nn.Sequential(*convs, nn.Conv2d(8, 2, 1)), leave=("2",))
    # What the float layer 2 reads stays float, and layer 4 gets its input quantized after it.
    assert list(sites(model)) == ["/input/0", "3/relu/0", "5/relu/0"]
    model = quantized(Head(Residual(8)), leave=("before.0.conv1", "before.0.conv2"))
    assert not any(name.startswith("before.0.conv") or name == "before.0/relu/0" for name in sites(model))


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.c(F.relu(self.b(x) + short))


def test_a_padding_shares_the_scale_of_what_it_pads() -> None:
    model = quantized(Padded())
    placed = sites(model)
    assert placed == {
        "/input/0": None,
        "/relu/0": None,
        "b/conv2d/0": None,
        "/pad/0": "/relu/0",
        "/relu/1": None,
    }
    activations = calibrate(model, trace(model, X), [X])
    assert activations["/pad/0"] == {"same_as": "/relu/0"}
    edited = attach(model, activations, X)
    assert edited.by_site["/pad/0"] is edited.by_site["/relu/0"]
    assert copy.deepcopy(edited).by_site["/pad/0"].scale == edited.by_site["/relu/0"].scale


def test_concatenation_and_depthwise() -> None:
    x = torch.randn(4, 3, 8, 8)
    placed = sites(quantized(TinyCNN(), x), x)
    assert "/cat/0" in placed
    assert "/relu/1" in placed, "the side of the concatenation"
    assert "/relu/2" in placed, "after the norm of the depthwise convolution"
    assert not any("stem" in name or name == "norm/batch_norm/0" for name in placed)


def test_pools_and_views_pass_the_quantization_on() -> None:
    model = quantized(nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)))
    assert list(sites(model)) == ["/input/0", "1/relu/0"]
    model = quantized(nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)))
    assert list(sites(model)) == ["/input/0", "1/relu/0", "2/avg_pool2d/0"]


def test_ranges_are_those_seen_and_hold_zero() -> None:
    model = quantized(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 3))
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    activations = calibrate(model, trace(model, x), [x[:1], x[1:]])
    assert activations["/input/0"] == {"scale": pytest.approx(6 / 255), "zero_point": 0}
    shifted = calibrate(model, trace(model, x), [-x])
    assert shifted["/input/0"] == {"scale": pytest.approx(6 / 255), "zero_point": 255}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_ranges_that_are_not_finite_are_refused_by_the_name_of_the_site(bad: float) -> None:
    model = quantized(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 3))
    x = torch.tensor([[1.0, bad, 3.0], [1.0, 2.0, 3.0]])
    with pytest.raises(ModelError, match="/input/0"):
        calibrate(model, trace(model, x), [x, torch.zeros(2, 3)])
    with pytest.raises(ModelError, match="no calibration inputs"):
        calibrate(model, trace(model, x), [])


def test_a_constant_activation_has_a_scale() -> None:
    model = quantized(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 3))
    activations = calibrate(model, trace(model, torch.zeros(2, 3)), [torch.zeros(2, 3)])
    assert activations["/input/0"] == {"scale": 1.0, "zero_point": 0}


def test_training_and_evaluation_round_alike_and_gradients_pass_inside_the_range() -> None:
    quantizer = ActivationQuantizer(0.1, 10)
    x = torch.linspace(-2.0, 30.0, 1001).requires_grad_()
    assert torch.equal(quantizer.train()(x), quantizer.eval()(x))
    quantizer.train()(x).sum().backward()
    inside = (x > -1.0) & (x < 24.5)
    assert x.grad is not None
    assert torch.equal(x.grad[(x < -1.06) | (x > 24.56)].unique(), torch.zeros(1))
    assert torch.equal(x.grad[inside].unique(), torch.ones(1))
    assert len(quantizer(x).unique()) <= 256


def test_quantizers_are_carried_only_where_the_sites_are_the_same() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    attach_quantizer(model[2], QuantScheme())
    edited = attach(model, {"1/relu/0": {"scale": 0.1, "zero_point": 3}}, x)
    wanted = edited(x)
    body = edited.unwrap()
    free = copy.deepcopy(body)
    remove_constraints(free[2])
    assert torch.equal(reattach(edited, body, None, x)(x), wanted)
    assert reattach(edited, free, None, x) is free, "no integer kernel is left that would take them"
    thinner = nn.Sequential(nn.Linear(3, 2)).eval()
    with pytest.raises(ModelError, match="expected new ranges"):
        reattach(edited, thinner, None, x)
    assert reattach(edited, thinner, {"/input/0": {"scale": 1.0, "zero_point": 0}}, x).by_site.keys() == {"/input/0"}
