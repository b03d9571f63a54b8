"""Channels through the kinds of data flow that forwards contain; what is removed is silent in the original."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from nutlet.compression.pipeline import compress
from nutlet.errors import ModelError
from nutlet.graph.comparison import answers, difference
from nutlet.graph.coupling.groups import Coupling, remove_channels, silenced
from nutlet.methods import PruneChannels, PruneHeads

IMAGE, ROWS = (3, 8, 8), (6, 8)
"""Shapes of an example: an image, and six tokens of eight features."""


class Net(nn.Module):
    """Two layers around something of 16 channels, on images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 1), nn.Linear(12, tiny.CLASSES)

    def inner(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.inner(F.relu(self.a(x))))).mean((2, 3)))


class LayerScale(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(16, 1, 1))

    def inner(self, x: Tensor) -> Tensor:
        return x + self.gamma * x.tanh()


class ReshapedScale(LayerScale):
    """The shape that the scale gets is written down in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(16))
        self.shape = (16, 1, 1)

    def inner(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(self.shape)


class Fusion(Net):
    """Weights of a fusion, one for each side (BiFPN)."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.c = nn.Parameter(torch.tensor([1.0, 0.7])), nn.Conv2d(16, 16, 3, padding=1)

    def inner(self, x: Tensor) -> Tensor:
        w = F.relu(self.w)
        w = w / (w.sum() + 1e-4)
        return w[0] * x + w[1] * self.c(x)


class Gate(Net):
    """Squeeze and excitation, and a gate of one channel for all."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.one = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), nn.Conv2d(16, 1, 1)

    def inner(self, x: Tensor) -> Tensor:
        x = x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return x * self.one(x).sigmoid()


class SpatialGate(Net):
    """What is taken across channels is taken across those that are left."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(2, 1, 3, padding=1)

    def inner(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * self.gate(pooled).sigmoid()


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.group, self.layer = nn.GroupNorm(4, 16), nn.LayerNorm(16)

    def inner(self, x: Tensor) -> Tensor:
        x = self.group(x)
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Shuffled(Net):
    """The unit of ShuffleNet v2: halves, one of them convolved, mixed like cards."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(8, 8, 3, padding=1)

    def inner(self, x: Tensor) -> Tensor:
        kept, other = x.chunk(2, 1)
        x = torch.cat([kept, F.relu(self.c(other))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Split(Net):
    """Sizes of a split that are written down."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [10, 6]
        self.c = nn.Conv2d(6, 10, 3, padding=1)

    def inner(self, x: Tensor) -> Tensor:
        one, other = x.split(self.sizes, 1)
        return torch.cat([one + self.c(other), other], 1)


class Grouped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ConvTranspose2d(16, 16, 3, padding=1, groups=2)

    def inner(self, x: Tensor) -> Tensor:
        return F.relu(self.d(F.relu(self.c(x))))


class DepthwiseTwice(Net):
    """Two channels made of each, then all of a group taken together again."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(16, 32, 3, padding=1, groups=16), nn.Conv2d(32, 16, 1, groups=16)

    def inner(self, x: Tensor) -> Tensor:
        return F.relu(self.d(F.relu(self.c(x))))


class Upsampled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.c = nn.ConvTranspose2d(16, 16, 2, stride=2), nn.Conv2d(4, 16, 1)

    def inner(self, x: Tensor) -> Tensor:
        return self.c(F.interpolate(F.pixel_shuffle(self.up(x), 2), scale_factor=0.5))


class TokenMixing(nn.Module):
    """A dense layer over tokens, through which channels pass; a class token and positions on the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.fc = nn.Linear(8, 16), nn.Linear(7, 7), nn.Linear(16, tiny.CLASSES)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 7, 16))
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.positions
        x = x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.fc(F.gelu(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(8, 12), nn.Linear(16, tiny.CLASSES)
        self.reads = kind(12, 8, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.reads(F.relu(self.embed(x)))[0][:, -1])


class LSTM(Recurrent):
    def __init__(self) -> None:
        super().__init__(nn.LSTM)


class GRU(Recurrent):
    def __init__(self) -> None:
        super().__init__(nn.GRU)


class Attention(nn.Module):
    """One projection for queries, keys and values, the product written out, its scale an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 4
        self.embed, self.qkv, self.proj = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc = nn.Linear(16, tiny.CLASSES)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = self.mixed(q, k, v).transpose(1, 2).reshape(n, length, -1)
        return self.fc((x + self.proj(mixed)).mean(1))


class FusedAttention(Attention):
    """The kernel takes its scale from the width of a head: heads go as a whole."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class EinsumAttention(Attention):
    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhij,bhjd->bhid", (torch.einsum("bhid,bhjd->bhij", q, k) * 0.5).softmax(-1), v)


class CrossCovariance(Attention):
    """Channels multiplied with channels."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
        return (v.transpose(-2, -1).mT @ (q.transpose(-2, -1) @ k).softmax(-1)).contiguous()


class TiedAttention(FusedAttention):
    """Heads are as wide as the input of the attention divided by their number."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, length, width = x.shape
        shape = n, length, 3, self.num_heads, width // self.num_heads
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
        return self.fc((x + self.proj(self.mixed(q, k, v).transpose(1, 2).reshape(n, length, width))).mean(1))


IMAGES = [LayerScale, ReshapedScale, Fusion, Gate, SpatialGate, Normed, Shuffled, Split, Grouped, DepthwiseTwice]
IMAGES += [Upsampled]
TOKENS = [TokenMixing, LSTM, GRU, Attention, FusedAttention, EinsumAttention, CrossCovariance, TiedAttention]
ATTENTION = [Attention, FusedAttention, EinsumAttention, CrossCovariance]


def made(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, *(IMAGE if issubclass(kind, Net) else ROWS))
    return kind().eval(), x


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [*IMAGES, *TOKENS])
def test_what_goes_is_silent_in_the_original(kind: type[nn.Module]) -> None:
    model, x = made(kind)
    coupling = Coupling(model, x)
    removed: dict[str, list[int]] = {}
    for group in coupling.groups:
        removed.setdefault(group.root, []).extend(group.places[: max(1, group.channels // 4)])
    removed, attributes, wrong = coupling.tried(removed)
    assert wrong == {}
    assert coupling.groups
    expected = answers(silenced(model, x, removed), x)
    before = parameters(model)
    remove_channels(model, x, removed, attributes)
    assert parameters(model) < 0.93 * before
    found = answers(model, x)
    assert difference(found.best, expected.best) < 1e-6


@pytest.mark.parametrize(
    ("kind", "roots"),
    [
        (LayerScale, {"a", "b"}),
        (Fusion, {"a", "b"}),
        (Gate, {"a", "b", "down"}),
        (Shuffled, {"a", "b"}),
        (Grouped, {"a", "b", "c", "d"}),
        (TokenMixing, {"embed"}),
        (Attention, {"embed", "qkv"}),
        (FusedAttention, {"embed", "qkv"}),
    ],
)
def test_nothing_is_left_alone_that_can_go(kind: type[nn.Module], roots: set[str]) -> None:
    model, x = made(kind)
    assert {group.root for group in Coupling(model, x).groups} == roots


@pytest.mark.parametrize("kind", ATTENTION)
def test_heads_of_attention_that_a_forward_writes_out(kind: type[nn.Module]) -> None:
    data = tiny.tiny_data(ROWS)
    model, _ = made(kind)
    small = compress(model, [PruneHeads(ratio=0.5)], data)
    assert len(small.steps[1].plan["removed"]) == 1
    assert small.model.num_heads == 2
    assert small.model.qkv.weight.shape == (24, 16)
    assert small.model.proj.weight.shape == (16, 8)
    assert small.model.head_dim == 4


def test_tied_groups_lose_the_same_share() -> None:
    data = tiny.tiny_data(ROWS)
    model, x = made(TiedAttention)
    assert {(group.root, group.tie) for group in Coupling(model, x).groups} == {("embed", "embed"), ("qkv", "embed")}
    widths = {}
    for method in (
        PruneChannels(ratio=0.3),
        PruneChannels(ratio=0.45),
        PruneChannels(ratio=0.3, distribution="global"),
        PruneChannels(ratio=0.45, multiple_of=8),
        PruneChannels(ratio=0.3, multiple_of=16),
        PruneChannels(macs=0.4),
    ):
        small = compress(model, [method], data).model
        widths[method] = small.embed.out_features, small.proj.in_features, small.num_heads
    assert list(widths.values()) == [(12, 12, 3), (8, 8, 2), (8, 8, 2), (8, 8, 2), (16, 16, 4), (8, 8, 2)]


def test_what_is_tied_to_an_excluded_layer_stays() -> None:
    model, _ = made(TiedAttention)
    with pytest.raises(ModelError, match="no channels it can remove"):
        compress(model, [PruneChannels(ratio=0.5, exclude=("embed",))], tiny.tiny_data(ROWS))


def test_one_head_goes_unnoticed_that_nobody_reads() -> None:
    data = tiny.tiny_data(ROWS)
    model, _ = made(Attention)
    with torch.no_grad():
        model.proj.weight[:, 4:8] = 0.0
    small = compress(model, [PruneHeads(ratio=0.25, criterion="taylor")], data)
    assert list(small.steps[1].plan["removed"].values()) == [[1]]
    with torch.no_grad():
        torch.testing.assert_close(small.model(data.train.x), model(data.train.x), rtol=1e-5, atol=1e-5)


def test_reasons_name_the_call() -> None:
    class Unknown(Net):
        def inner(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x, dim=1).real

    class Sides(Net):
        def inner(self, x: Tensor) -> Tensor:
            return F.conv1d(x.mean((2, 3))[:, None], torch.ones(1, 1, 3), padding=1)[:, 0, :, None, None] * x

    class Standardized(Net):
        def inner(self, x: Tensor) -> Tensor:
            return F.conv2d(x, (self.b.weight - self.b.weight.mean(1, keepdim=True)).repeat(2, 1, 1, 1)[:16])

    reasons = {kind: Coupling(*made(kind)).refused["a"] for kind in (Unknown, Sides, Standardized)}
    assert "fft_fft in the model is a call through which channels are not followed" in reasons[Unknown]
    assert "conv1d in the model mixes channels that lie side by side" in reasons[Sides]
    assert "conv2d in the model is computed" in reasons[Standardized]


def test_a_choice_that_order_matters_for_is_left_alone() -> None:
    class Halves(Net):
        """Halves by index: a removal from one of them alone moves the border."""

        def inner(self, x: Tensor) -> Tensor:
            return torch.cat([x[:, :8], x[:, 8:] * torch.ones(8, 1, 1)], 1)

    model, x = made(Halves)
    coupling = Coupling(model, x)
    assert "a" in coupling.refused
    data = tiny.tiny_data(IMAGE)
    small = compress(model, [PruneChannels(ratio=0.5)], data)
    assert (small.model.a.out_channels, small.model.b.out_channels) == (16, 6)
    assert any(note.startswith("a: its channels are coupled") for note in small.steps[1].notes)


class NarrowGroups(Net):
    """Two channels in each group, of which one can go: what is left looks like a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(16, 32, 3, padding=1, groups=8)
        self.d = nn.Conv2d(32, 16, 1)

    def inner(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.c(x)))


class UnevenParts(Net):
    """Parts of different sizes, which a removal may make equal."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [12, 4]
        self.c = nn.Conv2d(4, 12, 3, padding=1)

    def inner(self, x: Tensor) -> Tensor:
        one, other = x.split(self.sizes, 1)
        return torch.cat([one + self.c(other), other], 1)


@pytest.mark.parametrize(("kind", "gone"), [(NarrowGroups, [0]), (UnevenParts, [0, 1, 2, 3, 4, 5, 6, 7])])
def test_a_thinner_model_is_judged_by_what_the_whole_one_was(kind: type[nn.Module], gone: list[int]) -> None:
    model, x = made(kind)
    coupling = Coupling(model, x)
    assert {"a", "b"} <= {group.root for group in coupling.groups}
    assert coupling.tried({"a": gone})[::2] == ({"a": gone}, {})


class Switch(Net):
    """Channels whose places choose among branches: without one, the others have other places."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.scales = nn.Linear(16, 4), nn.Embedding(4, 1)

    def chosen(self, scores: Tensor) -> Tensor:
        return scores.argmax(1)

    def inner(self, x: Tensor) -> Tensor:
        return x * self.scales(self.chosen(self.gate(x.mean((2, 3)))))[:, :, None, None]


class SwitchByMax(Switch):
    def chosen(self, scores: Tensor) -> Tensor:
        return scores.max(1)[1]


class SwitchBySort(Switch):
    def chosen(self, scores: Tensor) -> Tensor:
        return scores.argsort(1)[:, 0]


@pytest.mark.parametrize("kind", [Switch, SwitchByMax, SwitchBySort])
def test_channels_stay_whose_places_are_read(kind: type[nn.Module]) -> None:
    coupling = Coupling(*made(kind))
    assert {group.root for group in coupling.groups} == {"a", "b"}
    assert "gate" in coupling.refused


class FixedKernel(Net):
    """A blur whose weight is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(16, 1, 3, 3) / 9)

    def inner(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=len(self.kernel))


class Gated(Net):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(16, 32, 1)

    def inner(self, x: Tensor) -> Tensor:
        return F.glu(self.c(x), 1) / (1 / (1 + x.square())) + x.new_zeros(1)


@pytest.mark.parametrize("kind", [FixedKernel, Gated])
def test_fixed_kernels_and_gates(kind: type[nn.Module]) -> None:
    model, x = made(kind)
    assert "a" in {group.root for group in Coupling(model, x).groups}
    small = compress(model, [PruneChannels(ratio=0.5)], tiny.tiny_data(IMAGE)).model
    assert small.a.out_channels == 8
    assert kind is Gated or len(small.kernel) == 8
