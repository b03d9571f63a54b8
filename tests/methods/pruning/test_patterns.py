"""Where zeros lie."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nutlet.errors import ConfigError
from nutlet.methods.pruning.patterns import Pattern, as_matrix, as_weight, parse_pattern

LAYERS = [
    nn.Linear(8, 4),
    nn.Conv1d(8, 4, 3),
    nn.Conv2d(16, 4, 3, groups=2),
    nn.ConvTranspose2d(8, 4, 3),
    nn.ConvTranspose2d(16, 4, 3, groups=2),
]


def random(layer: nn.Module) -> torch.Tensor:
    return torch.rand(layer.get_parameter("weight").shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_matrix_and_back(layer: nn.Module) -> None:
    weight = random(layer)
    matrix = as_matrix(layer, weight)
    assert torch.equal(as_weight(layer, matrix), weight)
    # Side by side lie the inputs of the first output at the first position.
    first = weight.movedim(1, 0) if isinstance(layer, nn.ConvTranspose2d) else weight
    assert torch.equal(matrix[0, :8], first[0].reshape(first.shape[1], -1)[:8, 0])


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (1, 2), (4, 8)])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_of_every_m_inputs_the_largest_n_stay(layer: nn.Module, kept: int, of: int) -> None:
    saliency = random(layer)
    mask = Pattern(kept=kept, of=of).mask(layer, saliency, keep=0)
    axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
    groups = mask.movedim(axis, -1).unflatten(-1, (-1, of))
    assert bool((groups.sum(-1) == kept).all())
    values = saliency.movedim(axis, -1).unflatten(-1, (-1, of))
    smallest_kept = values.masked_fill(~groups, 2).amin(-1)
    largest_gone = values.masked_fill(groups, -1).amax(-1)
    assert bool((smallest_kept >= largest_gone).all())


@pytest.mark.parametrize("block", [(1, 4), (4, 4), (2, 1)])
@pytest.mark.parametrize("layer", LAYERS[:3], ids=str)
def test_blocks_go_as_a_whole(layer: nn.Module, block: tuple[int, int]) -> None:
    saliency = random(layer)
    pattern = Pattern(block=block)
    sums = pattern.units(as_matrix(layer, saliency))
    mask = as_matrix(layer, pattern.mask(layer, saliency, keep=2))
    counts = pattern.units(mask.int())
    assert set(counts.unique().tolist()) <= {0, block[0] * block[1]}
    assert set(counts.flatten().nonzero().flatten().tolist()) == set(sums.flatten().topk(2).indices.tolist())


def test_what_does_not_divide_is_said() -> None:
    assert Pattern(kept=2, of=4).misfit(nn.Conv2d(3, 8, 3)) == "its 3 input channels are not a multiple of 4"
    assert Pattern(kept=2, of=4).misfit(nn.Conv2d(8, 8, 3, groups=8)) == "its 1 input channels are not a multiple of 4"
    assert Pattern(block=(4, 4)).misfit(nn.Linear(8, 10)) == "its 10 x 8 channels are not a multiple of 4 x 4"
    assert Pattern(block=(4, 4)).misfit(nn.ConvTranspose2d(8, 4, 3)) == ""


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "2:", "two", "2:4:8", "", "-1:4"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"X\.pattern is .*as '2:4'"):
        parse_pattern("X", pattern, ())
