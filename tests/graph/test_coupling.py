"""Channels that must go together, in the shapes of data flow that models have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.constraints import WeightQuantizer
from nutlet.constraints.stack import Mask, constrain, constrained_weight, constraints, raw_weight
from nutlet.graph.coupling.groups import Coupling, remove_channels
from nutlet.graph.macs import macs
from nutlet.graph.trace import trace
from nutlet.methods import PruneChannels
from nutlet.training.context import Context
from tiny import settled, tiny_data


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(x + self.b(x))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


class ConcatNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 2, 1)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.fc(F.relu(self.depthwise(x)).mean((2, 3)))


class GroupedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.grouped = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.b = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.grouped(F.relu(self.a(x)))))).mean((2, 3)))


class FlattenNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc1, self.fc2 = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6 * 9, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(F.relu(self.a(x)).flatten(1))))


class PaddedShortcut(nn.Module):
    """As in the ResNets for CIFAR: the shortcut is subsampled and padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = F.relu(self.b(x) + short)
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


class TransposedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 3), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.up(F.relu(self.a(x))))).mean((2, 3))


NETS = [ResidualNet, ConcatNet, GroupedNet, FlattenNet, PaddedShortcut, TransposedNet]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def groups_of(model: nn.Module) -> tuple[dict[str, set[str]], dict[str, str]]:
    coupling = Coupling(model, X)
    return {g.root: set(g.producers) for g in coupling.groups}, coupling.refused


def test_residual() -> None:
    groups, refused = groups_of(settled(ResidualNet(), X))
    assert sorted(map(sorted, groups.values())) == [["a", "b"], ["c"]]
    assert refused == {}


def test_each_side_of_a_concatenation_is_a_group() -> None:
    groups = Coupling(settled(ConcatNet(), X), X).groups
    assert {group.root: (set(group.producers), group.channels) for group in groups} == {
        "a": ({"a", "depthwise"}, 8),
        "b": ({"b", "depthwise"}, 2),
    }


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 0.99])
def test_no_side_of_a_concatenation_loses_all_its_channels(ratio: float) -> None:
    model = settled(ConcatNet(), X)
    with torch.no_grad():
        model.b.weight.mul_(1e-6)
    data = tiny_data((3, 8, 8))
    plan = PruneChannels(ratio=ratio).plan(model, Context(data=data, teacher=model))
    PruneChannels.apply(model, plan, X)
    assert model.a.out_channels == max(1, round(8 * (1 - ratio)))
    assert model.b.out_channels == max(1, round(2 * (1 - ratio)))
    assert model(X).shape == (2, 3)


def test_flatten_to_linear_removes_whole_planes() -> None:
    model = settled(FlattenNet(), X)
    wanted = model.fc1.weight.detach().view(8, 6, 9)[:, [0, 2, 3, 5]].flatten(1)
    remove_channels(model, X, {"a": [1, 4]}, {})
    assert torch.equal(model.fc1.weight, wanted)
    assert model(X).shape == (2, 3)


def test_beside_a_padded_shortcut_channels_stay_and_those_added_to_it_go_together() -> None:
    model = settled(PaddedShortcut(), X)
    coupling = Coupling(model, X)
    assert {group.root: (set(group.producers), group.channels) for group in coupling.groups} == {
        "a": ({"a", "b"}, 4),
        "c": ({"c"}, 8),
    }
    assert "zeros beside channels" in coupling.refused["b"]
    remove_channels(model, X, {"a": [1]}, {})
    assert model.b.weight.shape[:2] == (7, 3)
    assert model.c.weight.shape[:2] == (8, 7)
    assert model(X).shape == (2, 3)


@pytest.mark.parametrize("kind", NETS)
def test_removing_dead_channels_changes_nothing(kind: type[nn.Module]) -> None:
    """The sharpest test of coupling: channels whose every weight is zero can go without a trace."""
    model = settled(kind(), X)
    groups = Coupling(model, X).groups
    for group in groups:
        trial = settled(kind(), X)
        gone = [group.places[0], group.places[-1]] if group.channels > 3 else group.places[:1]
        # Removing with a mask of zeros on every removed slice of all weights is what removal means.
        stacks = {}
        for name, layer in trial.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
                stacks[name] = torch.arange(float(layer.weight.numel())).view_as(layer.weight).remainder(5) > 1
                constrain(layer, [Mask(stacks[name]), WeightQuantizer.fit(raw_weight(layer) * stacks[name])])
        remove_channels(trial, X, {group.root: gone}, {})
        assert trial(X).shape == model(X).shape
        for _, layer in trial.named_modules():
            for constraint in constraints(layer):
                if isinstance(constraint, Mask):
                    assert constraint.mask.shape == constrained_weight(layer).shape
                    assert not bool(constrained_weight(layer)[~constraint.mask].any())


@pytest.mark.parametrize("kind", NETS)
def test_masks_select_the_slices_that_their_weights_keep(kind: type[nn.Module]) -> None:
    """Each mask holds a function of the weight; after pruning it must still be that function."""
    model = settled(kind(), X)
    for layer in list(model.modules()):
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            constrain(layer, [Mask(raw_weight(layer).detach() > 0)])
    groups = Coupling(model, X).groups
    assert groups
    for group in groups:
        remove_channels(model, X, {group.root: [0]}, {})
    for layer in model.modules():
        for constraint in constraints(layer):
            assert isinstance(constraint, Mask)
            assert torch.equal(constraint.mask, raw_weight(layer) > 0)


@pytest.mark.parametrize("kind", NETS)
def test_work_is_what_goes_with_one_channel(kind: type[nn.Module]) -> None:
    coupling = Coupling(settled(kind(), X), X)
    whole = macs(trace(coupling.model, X))
    for group, work in zip(coupling.groups, coupling.work(coupling.groups), strict=True):
        thinner = coupling.thinner({group.root: group.places[:1]})
        # What a layer reads and makes at once counts twice.
        assert work == pytest.approx(whole - macs(trace(thinner, X)), rel=0.1 if "b" in group.producers else 1e-5)


def test_importance_sees_the_masks() -> None:
    model = settled(ResidualNet(), X)
    mask = torch.ones_like(model.c.weight, dtype=torch.bool)
    mask[2] = False
    constrain(model.c, [Mask(mask)])
    groups = Coupling(model, X).groups
    (group,) = [g for g in groups if g.root == "c"]
    read = model.fc.weight.detach().square().sum(0)
    torch.testing.assert_close(group.importance[2], read[2] / read.sum())


def test_frozen_parameters_stay_frozen() -> None:
    model = settled(ResidualNet(), X).requires_grad_(False)
    Coupling(model, X)
    remove_channels(model, X, {"c": [0]}, {})
    assert not any(p.requires_grad for p in model.parameters())
