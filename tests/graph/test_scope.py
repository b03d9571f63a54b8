"""What training may touch."""

from __future__ import annotations

import torch
from torch import nn

from nutlet.graph.scope import training_only
from nutlet.methods import FineTune


def test_statistics_of_an_excluded_norm_without_parameters_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, affine=False)).train()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with training_only(model, FineTune(exclude=("1",))):
        model(x)
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert not torch.equal(model[2].running_mean, torch.zeros(4))
    assert model[1].momentum == 0.1
