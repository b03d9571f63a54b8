from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from nutlet.compression.pipeline import compress
from nutlet.errors import ModelError
from nutlet.graph.coupling.groups import Coupling
from nutlet.methods import PruneChannels
from nutlet.methods.pruning.channel_scores import channel_scores, relative_to_left
from nutlet.training.context import Context


def two_layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, tiny.CLASSES))
    return tiny.settled(model, torch.zeros(2, 10))  # type: ignore[return-value]


@pytest.mark.parametrize("criterion", ["activation", "taylor", "second-order"])
def test_a_channel_that_does_nothing_goes_first(criterion: str) -> None:
    model, data = two_layers(), tiny.tiny_data((10,))
    with torch.no_grad():
        if criterion == "activation":
            model[0].weight[2], model[0].bias[2] = model[0].weight[2] * 1e-3, 0.0
        else:
            # Large weights that make it and that read it, and no part in the outputs: it is never above zero.
            model[0].weight[2], model[0].bias[2] = model[0].weight[2] * 5, -1e3
    plan = PruneChannels(ratio=0.25, criterion=criterion).plan(  # type: ignore[arg-type]
        model, Context(data=data, teacher=model)
    )
    assert plan["removed"] == {"0": [2]}


def test_taylor_is_the_square_of_the_first_order_change() -> None:
    model, data = two_layers(), tiny.tiny_data((10,))
    x, y = data.calibration.x, data.calibration.y
    weight = model[0].weight.detach().clone().requires_grad_(True)
    logits = model[2](F.relu(F.linear(x, weight, model[0].bias)))
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), weight)
    found = channel_scores(model, ["0"], "taylor", Context(data=data, teacher=model))[
        "0"
    ]  # 32 examples: one small batch
    torch.testing.assert_close(found, (weight.detach() * gradient).sum(1).square())


def test_groups_sum_over_coupled_layers() -> None:
    model, data = tiny.tiny("cnn")
    groups = Coupling(model, data.calibration.x[:2]).groups
    shared = next(group for group in groups if {"stem", "block1.conv2"} <= set(group.producers))
    branch = next(group for group in groups if group.root == "branch")
    scores = {name: torch.ones(model.get_submodule(name).out_channels) for name in shared.producers}
    # The stem, both blocks and the depthwise convolution make one side, the branch and the latter the other.
    assert shared.summed(scores).tolist() == [4.0] * 8
    assert branch.summed({name: torch.ones(12) for name in branch.producers}).tolist() == [2.0] * 4


def test_global_takes_most_from_the_group_that_matters_least() -> None:
    model, data = tiny.tiny("mlp")
    with torch.no_grad():
        model.block1.fc2.weight.mul_(1e-3)
    plan = PruneChannels(ratio=0.3, criterion="taylor", distribution="global").plan(
        model, Context(data=data, teacher=model)
    )
    counts = {root: len(gone) for root, gone in plan["removed"].items()}
    assert counts["block1.fc1"] == max(counts.values()) == 14
    assert sum(counts.values()) <= round(0.3 * 48)


def test_a_budget_of_work_ranks_all_channels_and_one_of_channels_each_group() -> None:
    model, data = tiny.tiny("cnn")
    context = Context(data=data, teacher=model)

    def plan(**options: Any) -> dict[str, Any]:
        return PruneChannels(**options).plan(model, context)

    assert plan(macs=0.6) == plan(macs=0.6, distribution="global") != plan(macs=0.6, distribution="uniform")
    assert plan(ratio=0.5) == plan(ratio=0.5, distribution="uniform") != plan(ratio=0.5, distribution="global")


def test_of_channels_that_matter_alike_those_go_that_cost_more() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, tiny.CLASSES),
    )  # fmt: skip
    data = tiny.tiny_data((3, 8, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    plan = PruneChannels(ratio=0.2, distribution="global").plan(model, Context(data=data, teacher=model))
    assert set(plan["removed"]) == {"0", "2"}


def test_ranked_together_no_group_is_left_with_next_to_nothing() -> None:
    weak = torch.tensor([0.01, 0.01, 0.01, 0.01])
    torch.testing.assert_close(relative_to_left(weak), 0.04 / torch.tensor([4.0, 3.0, 2.0, 1.0]))


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "taylor", "second-order"])
def test_the_work_asked_for_is_kept(criterion: str) -> None:
    model, data = tiny.tiny("cnn")
    for distribution in ("uniform", "global"):
        result = compress(model, [PruneChannels(macs=0.6, criterion=criterion, distribution=distribution)], data)  # type: ignore[arg-type]
        assert 0.4 < result.steps[1].size.macs / result.steps[0].size.macs <= 0.6


class _Grouped(nn.Module):
    """A convolution in groups between two others."""

    def __init__(self, groups: int, transposed: bool) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.first, self.inner = nn.Conv2d(3, 16, 3, padding=1), kind(16, 16, 3, padding=1, groups=groups)
        self.last, self.fc = nn.Conv2d(16, 12, 3, padding=1), nn.Linear(12, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(F.relu(self.first(x))))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_dead_channels_of_grouped_convolutions_go_without_a_trace_or_stay(groups: int, transposed: bool) -> None:
    data = tiny.tiny_data((3, 8, 8))
    model = tiny.settled(_Grouped(groups, transposed), data.calibration.x)
    dead = [1, 3, 4, 6]  # more of one group than of another
    with torch.no_grad():
        width = 16 // groups
        for channel in dead:
            if transposed:  # its inputs come first, its outputs are numbered within a group
                group, place = divmod(channel, width)
                model.inner.weight[group * width : (group + 1) * width, place] = 0
            else:
                model.inner.weight[channel] = 0
        model.inner.bias[dead] = 0
        model.last.weight[:, dead] = 0
    method = PruneChannels(ratio=0.25, include=("inner",))
    try:
        small = compress(model, [method], data)
    except ModelError:  # no channel of it can go
        with pytest.raises(ModelError, match="left alone"):
            method.plan(model, Context(data=data, teacher=model))
        return
    with torch.no_grad():
        torch.testing.assert_close(small.model(data.calibration.x), model(data.calibration.x), rtol=1e-4, atol=1e-4)
