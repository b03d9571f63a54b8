"""Placement by what calls do: their arguments, who reads their results, and what of a norm is folded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.constraints import WeightQuantizer
from nutlet.constraints.stack import constrain, constrained_weight, output_axis
from nutlet.graph.activation_quantizers import attach, calibrate
from nutlet.graph.finalize import finalize
from nutlet.graph.fold import FoldedNorm, fold, foldable
from nutlet.graph.placement import place, read_exactly
from nutlet.graph.scope import Layer
from nutlet.graph.trace import trace
from tiny import settled

IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def on_grids(model: nn.Module, x: Tensor = IMAGE) -> nn.Module:
    settled(model, x)
    for layer in model.modules():
        if isinstance(layer, Layer):
            constrain(layer, [WeightQuantizer.fit(constrained_weight(layer), output_axis(layer))])
    return model


class Between(nn.Module):
    """A call between two convolutions."""

    def __init__(self, call: object) -> None:
        super().__init__()
        self.one, self.two, self.call = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), call

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.call(F.relu(self.one(x))))  # type: ignore[operator]


PADS = {
    "zeros": (lambda x: F.pad(x, (1, 1, 1, 1)), "/relu/0"),
    "another constant": (lambda x: F.pad(x, (1, 1, 1, 1), value=-3.0), None),
    "another constant by position": (lambda x: F.pad(x, (1, 1), "constant", -3.0), None),
    "a module": (nn.ConstantPad2d(1, -3.0), None),
}


@pytest.mark.parametrize("kind", PADS)
def test_only_a_padding_of_zeros_shares_the_scale(kind: str) -> None:
    call, tied = PADS[kind]
    model = on_grids(Between(call))
    record = trace(model, IMAGE)
    (pad,) = (name for name, site in record.sites.items() if site.op == "pad")
    assert place(model, record)[pad] == tied
    ranges = calibrate(model, record, [(IMAGE, IMAGE)])
    if tied is None:
        quantized = attach(model, ranges, IMAGE).by_site[pad](torch.tensor(-3.0))
        assert float(quantized) == pytest.approx(-3.0, abs=ranges[pad]["scale"])


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_paddings_and_nearest_neighbours_only_move_values(mode: str) -> None:
    for call in (lambda x: F.pad(x, (1, 1, 1, 1), mode=mode), lambda x: F.interpolate(x, scale_factor=2)):
        model = on_grids(Between(call))
        assert list(place(model, trace(model, IMAGE))) == ["/input/0", "/relu/0"]


def test_what_interpolates_between_values_or_hangs_over_the_edge_is_quantized_where_it_is_read() -> None:
    bilinear = on_grids(Between(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")))
    assert "/interpolate/0" in place(bilinear, trace(bilinear, IMAGE))
    pool = on_grids(Between(nn.AvgPool2d(2, ceil_mode=True)))
    assert "/relu/0" not in place(pool, trace(pool, IMAGE)), "no integer kernel reads it"


READERS = {
    "an embedding": lambda net, x: net.table(x[:, 0].long()) + net.fc(x),
    "scaled before": lambda net, x: net.table((x[:, 0] * 2).to(torch.int64)) + net.fc(x),
    "a comparison": lambda net, x: torch.where(x[:, :1] > 0.5, net.fc(x), -net.fc(x)),
    "rows by the largest": lambda net, x: net.fc(x) + net.table.weight[x.argmax(1)],
    "a bucket": lambda net, x: net.fc(x) + net.table(torch.bucketize(x[:, 0].contiguous(), net.edges)),
    "rounded": lambda net, x: net.fc(x) + x[:, 1:2].round(),
}


class Read(nn.Module):
    def __init__(self, call: object) -> None:
        super().__init__()
        self.table, self.fc, self.call = nn.Embedding(16, 6), nn.Linear(6, 6), call
        self.register_buffer("edges", torch.linspace(0, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)  # type: ignore[operator]


@pytest.mark.parametrize("reader", READERS)
def test_values_that_something_decides_by_are_not_rounded(reader: str) -> None:
    x = torch.rand(4, 6)
    model = on_grids(Read(READERS[reader]), x)
    record = trace(model, x)
    assert "/input/0" in read_exactly(record)
    assert "/input/0" not in place(model, record)


def test_a_maximum_whose_index_nobody_uses_decides_nothing() -> None:
    x = torch.rand(4, 6)
    model = on_grids(Read(lambda net, x: net.fc(x) + x.max(1, keepdim=True)[0]), x)
    assert "/input/0" in place(model, trace(model, x))


class NormAct(nn.BatchNorm2d):
    """A norm with an activation as a child, and more in its own forward."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x)) + 0.5


class OtherGain(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight.abs() + 1, self.bias, eps=self.eps)


def test_of_a_norm_only_its_own_call_is_folded() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), nn.Conv2d(4, 2, 1)), IMAGE)
    wanted = model(IMAGE)
    pairs = foldable(model, trace(model, IMAGE))
    assert pairs == [("0", "1")]
    fold(model, pairs)
    assert isinstance(model[1], FoldedNorm)
    torch.testing.assert_close(model(IMAGE), wanted, atol=1e-5, rtol=1e-5)
    assert "1.act/hardswish/0" in trace(model, IMAGE).sites
    twin = copy.deepcopy(model)
    twin[1].act = nn.Identity()
    assert not torch.equal(twin(IMAGE), model(IMAGE)), "a child is replaced where it is used"
    assert not [name for name in model.state_dict() if name.startswith("1.")]


def test_norms_along_another_axis_or_of_other_numbers_are_left_alone() -> None:
    for layer, norm, shape in (
        (nn.Linear(5, 5), nn.BatchNorm1d(5), (5, 5)),
        (nn.Linear(7, 6), nn.BatchNorm1d(5), (5, 7)),
        (nn.Conv2d(3, 4, 3), OtherGain(4), (3, 8, 8)),
    ):
        x = torch.randn(6, *shape)
        model = settled(nn.Sequential(layer, norm), x)
        assert foldable(model, trace(model, x)) == []


def test_a_weight_that_the_forward_makes_is_neither_folded_nor_on_its_grid() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    model = settled(nn.Sequential(Standardized(3, 4, 3), nn.BatchNorm2d(4)), IMAGE)
    assert foldable(model, trace(model, IMAGE)) == []
    assert place(on_grids(model), trace(model, IMAGE)) == {}


@pytest.mark.parametrize("kind", ["linear", "conv", "transposed", "tiny scale of the input"])
def test_every_bias_fits_into_int32(kind: str) -> None:
    layers = {"conv": nn.Conv2d(3, 4, 3), "transposed": nn.ConvTranspose2d(3, 4, 3, groups=1)}
    layer = layers.get(kind, nn.Linear(8, 4))
    x = IMAGE * (1e-6 if kind.startswith("tiny") else 1)
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(layer(x)[0].numel(), 2))
    with torch.no_grad():
        channels = layer.weight.movedim(output_axis(layer), 0)
        channels[0] = 0
        channels[1] *= 1e-9
        layer.bias.fill_(2.0)
    for part in (layer, model[3]):
        constrain(part, [WeightQuantizer.fit(constrained_weight(part), output_axis(part))])
    record = trace(model, x)
    edited = attach(model, calibrate(model, record, [(x, x)]), x)
    final = finalize(edited)
    scale = final.model[0].parametrizations.weight[0].scale
    assert float((2.0 / (scale * edited.by_site["/input/0"].step)).max()) < 2**31
    torch.testing.assert_close(final(x), edited(x), atol=1e-4, rtol=1e-4)


def test_a_forward_that_keeps_something_is_recorded_as_it_runs_later() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.cache = nn.Linear(3, 3), {}

        def forward(self, x: Tensor) -> Tensor:
            if "bias" not in self.cache:
                self.cache["bias"] = self.fc.weight.sum(1) * 2
            return self.fc(x) + self.cache["bias"]

    x = torch.randn(2, 3)
    model = Cached()
    record = trace(model, x)
    assert [site.op for site in record.sites.values()] == ["input", "linear", "add"]
