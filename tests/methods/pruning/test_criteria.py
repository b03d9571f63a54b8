"""What weights matter, against values worked out by hand."""

from __future__ import annotations

import torch
from torch import nn

from nutlet.data.examples import Data, Examples
from nutlet.methods.pruning.criteria import saliencies
from nutlet.training.context import Context

WEIGHT = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
EXAMPLES = Examples(torch.tensor([[3.0, 1.0], [4.0, -1.0]]), torch.tensor([0, 1]))


def context(examples: Examples = EXAMPLES) -> Context:
    return Context(data=Data(train=examples, validation=examples, calibration=examples), teacher=nn.Identity())


def dense() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(WEIGHT)
    return model


def test_magnitude() -> None:
    model = dense()
    found, notes = saliencies(model, {"0": model[0]}, "magnitude", context())
    assert torch.equal(found["0"], WEIGHT.abs())
    assert notes == []


def test_activation_is_magnitude_times_the_norm_of_the_input() -> None:
    model = dense()
    found, _ = saliencies(model, {"0": model[0]}, "activation", context())
    norms = torch.tensor([12.5**0.5, 1.0])  # the means of 9 and 16, and of 1 and 1
    torch.testing.assert_close(found["0"], WEIGHT.abs() * norms)


def test_activation_looks_at_the_inputs_of_each_group() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1, groups=2, bias=False))
    images = Examples(torch.tensor([3.0, 5.0]).view(1, 2, 1, 1).repeat(2, 1, 2, 2), torch.tensor([0, 1]))
    found, _ = saliencies(model, {"0": model[0]}, "activation", context(images))
    expected = model[0].weight.detach().abs().flatten() * torch.tensor([3.0, 3.0, 5.0, 5.0])
    torch.testing.assert_close(found["0"].flatten(), expected)


def test_taylor_is_weight_times_gradient() -> None:
    model = dense()
    found, _ = saliencies(model, {"0": model[0]}, "taylor", context())
    errors = (EXAMPLES.x @ WEIGHT.T).softmax(1) - torch.eye(2)  # the gradient of cross entropy by the outputs
    torch.testing.assert_close(found["0"], (WEIGHT * (errors.T @ EXAMPLES.x / 2)).abs())


def test_layers_that_say_nothing_are_named() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(1, 1, 1), nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Identity())
    model[4].unused = nn.Linear(2, 2)
    layers = {"0": model[0], "1": model[1], "4.unused": model[4].unused}
    images = Examples(torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))
    found, notes = saliencies(model, layers, "activation", context(images))
    assert list(found) == ["1"]
    assert notes == [
        "0: the inputs of a ConvTranspose2d cannot be laid out in rows, left alone",
        "4.unused: nobody calls it, left alone",
    ]
    found, notes = saliencies(model, layers, "taylor", context(images))
    assert list(found) == ["0", "1"]
    assert notes == ["4.unused: no gradient is seen there, left alone"]
