"""What layers see on data, against the layers' own arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.constraints.stack import Mask, constrain
from nutlet.graph.statistics import (
    batch_gradients,
    channels_first,
    input_moments,
    input_rows,
    observe,
    weight_gradients,
)

LAYERS = [
    (nn.Linear(4, 6), (7, 4)),
    (nn.Linear(4, 6), (7, 3, 4)),
    (nn.Conv1d(4, 6, 3, padding=2, dilation=2), (7, 4, 9)),
    (nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (7, 4, 9, 8)),
    (nn.Conv2d(4, 6, (3, 5), padding="same"), (7, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"), (7, 4, 9, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_rows_times_weight_is_what_the_layer_gives(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = input_rows(layer, x)
    weight = layer.get_parameter("weight").flatten(1).unflatten(0, (len(rows), -1))
    found = (rows @ weight.transpose(1, 2)).permute(1, 0, 2).flatten(1) + layer.get_parameter("bias")
    outputs = layer(x)
    expected = (outputs if isinstance(layer, nn.Linear) else outputs.movedim(1, -1)).reshape(-1, 6)
    torch.testing.assert_close(found, expected)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(5, 4, generator=generator), torch.arange(5) % 2) for _ in range(count)]


def test_moments_are_means_over_all_batches() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).train()
    data = batches(3)
    found = input_moments(model, ["0", "2"], data)
    x = torch.cat([x for x, _ in data])
    torch.testing.assert_close(found["0"][0], (x.T @ x / 15).double())
    hidden = model[1](model[0](x)).detach()
    torch.testing.assert_close(found["2"][0], (hidden.T @ hidden / 15).double())
    assert model.training
    assert not model[0]._forward_hooks


def test_gradients_are_those_of_the_weight_as_used() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    constrain(model[0], [Mask(torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) > 0.5)])
    kind = type(model[0])
    (x, y), *_ = batches(1)
    found = weight_gradients(model, ["0", "2"], [(x, y)])
    assert type(model[0]) is kind
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(found["2"][0], model[2].weight.grad)
    torch.testing.assert_close(found["2"][1], model[2].weight.grad.square())
    # Below the mask, the gradient of what it holds at zero is there all the same.
    mask = model[0].parametrizations["weight"][0].mask
    torch.testing.assert_close(found["0"][0][mask], model[0].parametrizations["weight"].original.grad[mask])
    assert bool(found["0"][0][~mask].any())


def test_gradients_of_batches_are_those_that_are_averaged() -> None:
    model, data = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).train(), batches(3)
    each = [gradients["0"] for gradients in batch_gradients(model, ["0"], data)]
    assert len(each) == 3
    mean, squares = weight_gradients(model, ["0"], data)["0"]
    torch.testing.assert_close(mean, torch.stack(each).mean(0))
    torch.testing.assert_close(squares, torch.stack(each).square().mean(0))
    assert model.training


def test_a_layer_is_observed_in_evaluation_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5)).train()
    x = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    seen = {}

    def note(name: str, layer: nn.Module, taken: Tensor, given: Tensor) -> None:
        seen[name] = (taken, given, layer.training, channels_first(layer, given))

    observe(model, ["0", "1"], note, [(x, x)])
    taken, given, training, channels = seen["1"]
    assert torch.equal(taken, given)  # no dropout
    assert not training
    assert torch.equal(channels[1], given[:, 1].flatten())
    assert model.training
    assert not model[0]._forward_hooks
