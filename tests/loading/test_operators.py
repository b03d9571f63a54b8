"""The list of operators: classifiers of every common make pass, and what reaches memory or files does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nutlet.errors import ModelError
from nutlet.loading import load_model
from nutlet.loading.operators import ATEN, function


class Sum(nn.Module):
    """Gives the features of all ``parts`` of one input side by side, each averaged down to one number."""

    def __init__(self, *parts: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.parts = parts
        self.layers = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x).float().flatten(1).mean(1) for part in self.parts], 1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        x = F.relu(F.pad((x + self.body(x))[:, :, ::2, ::2], (0, 0, 0, 0, 2, -2)))
        return self.head(torch.flatten(self.pool(x), 1))


class Mobile(nn.Module):
    """Depthwise convolutions with squeeze and excitation, channels shuffled between halves."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Hardswish(inplace=True))
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.SiLU(inplace=True), nn.ReLU6())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.expand(x))
        x = x * self.gate(x)
        left, right = x.chunk(2, dim=1)
        b, c, h, w = x.shape
        x = torch.cat([left, right.sigmoid()], 1).view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(x.mean(2))


class Patches(nn.Module):
    """A vision transformer with a class token, positions, and attention written in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.qkv, self.norm, self.head = nn.Linear(16, 48), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = self.encoder(x)
        x = x + self.attention(x, x, x)[0] + self.attention(x, x, x, need_weights=False)[0]
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], 17, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        weights = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(dim=-1)
        x = x + torch.einsum("bhnm,bhmd->bhnd", weights, v).transpose(1, 2).reshape(x.shape)
        return self.head(x[:, 0] + x[:, 1:].mean(1))


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 0.5
    y[:, :1] = x[:, 1:2]
    y += x
    y *= 2
    y -= 1
    y /= 3
    return y.clamp_(-1, 1).masked_fill_(x > 2, 0.0).mul_(2).relu_()


def soft_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.abs().clamp(min=1e-3).pow(3), 2).pow(1 / 3)


MODELS: dict[str, nn.Module] = {
    "lenet": nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(216, 8), nn.Sigmoid(), nn.Linear(8, 4)
    ),
    "resnet": Residual(),
    "mobilenet": Mobile(),
    "transformer": Patches(),
    "activations": Sum(
        *(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.ELU(), nn.SELU(), nn.CELU(), nn.PReLU(), nn.Softplus()),
        *(nn.LeakyReLU(), nn.Hardtanh(), nn.Hardswish(), nn.LogSigmoid(), nn.Softsign(), nn.GLU(2), nn.Softmax(1)),
        *(nn.Hardshrink(), nn.Softshrink(), nn.Tanhshrink(), nn.Threshold(0.1, 0.0), nn.LogSoftmax(1), nn.RReLU()),
    ),
    "normalisation": Sum(
        *(nn.GroupNorm(1, 3), nn.LayerNorm(16), nn.RMSNorm(16), nn.InstanceNorm2d(3, affine=True), nn.BatchNorm2d(3)),
        *(nn.LocalResponseNorm(2), F.normalize, lambda x: (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 1).sqrt()),
        lambda x: x / x.norm(dim=1, keepdim=True),
    ),
    "pooling and resizing": Sum(
        *(nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d((3, 1)), nn.LPPool2d(2, 2), soft_pool),
        *(nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(1), nn.ZeroPad2d(1), nn.PixelUnshuffle(2)),
        *(nn.Upsample(scale_factor=2, mode=mode) for mode in ("nearest", "bilinear", "bicubic")),
        *(lambda x: F.interpolate(x, size=(8, 8), mode="area"), lambda x: F.interpolate(x, (8, 8), mode="bilinear")),
        *(nn.Unfold(2, stride=2), nn.ConvTranspose2d(3, 4, 2, 2), nn.ChannelShuffle(3)),
    ),
    "shapes": Sum(
        *(lambda x: x[:, :, 1:-1, ::2], lambda x: x[:, -1], lambda x: x[:, [0, 2]], lambda x: x[..., None]),
        *(lambda x: x.split(1, 1)[1], lambda x: x.unbind(1)[0], lambda x: x.narrow(1, 0, 2), lambda x: x.flip(3)),
        *(lambda x: torch.stack([x, x], 1), lambda x: x.repeat(1, 2, 1, 1), lambda x: x.roll(1, 2), assigned),
        *(lambda x: x.permute(0, 2, 3, 1).contiguous(), lambda x: x.unsqueeze(1).squeeze(1), lambda x: x.mT),
        *(lambda x: x.repeat_interleave(2, 1), lambda x: x.unflatten(1, (3, 1)), lambda x: x.movedim(1, -1)),
        *(lambda x: x.half().float(), lambda x: torch.gather(x, 1, x.argsort(1)), lambda x: x.topk(2, 1)[0]),
    ),
    "arithmetic": Sum(
        *(lambda x: 1 - x, lambda x: 2 / (x**2 + 1), lambda x: -x.exp().log1p(), lambda x: x.abs().sqrt().rsqrt()),
        *(lambda x: torch.where(x > 0, x, 0.0), lambda x: x.masked_fill((x > 0) & (x < 1), 0.0), torch.square),
        *(lambda x: torch.maximum(x, -x), lambda x: x.clamp(0, 1), lambda x: x.sin() + x.cos(), torch.erf),
        *(lambda x: x.amax((2, 3)), lambda x: x.std(1), lambda x: x.max(1)[0], lambda x: x.logsumexp(1)),
        *(lambda x: x @ x, lambda x: torch.cumsum(x, 1), lambda x: x.sum(1), lambda x: x.argmax(1)),
        *(lambda x: x + torch.arange(16), lambda x: torch.ones_like(x), lambda x: x.new_zeros(x.shape[0], 2) + 1),
        *(lambda x: torch.tensor(2.0) * x, lambda x: torch.tril(x), lambda x: torch.lerp(x, -x, 0.5)),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_classifiers_export_to_is_on_the_list(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name].eval(), torch.randn(3, 3, 16, 16)
    model(x)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    torch.export.save(program, tmp_path / "net.pt2")
    torch.testing.assert_close(load_model(str(tmp_path / "net.pt2"))(x), model(x), rtol=1e-5, atol=1e-5)


def test_every_name_on_the_list_is_an_operator() -> None:
    assert [name for name in sorted(ATEN) if not hasattr(torch.ops.aten, name)] == []


@pytest.mark.parametrize(
    "name",
    ["save", "from_file", "as_strided", "as_strided_", "empty_strided", "empty", "new_empty", "set_", "resize_", "warn",
     "rand", "bernoulli", "no_such_operator"],
)  # fmt: skip
def test_others_are_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=rf"calls 'torch.ops.aten.{name}.default'.*name the model's Python factory"):
        function(f"torch.ops.aten.{name}.default")


@pytest.mark.parametrize("target", ["os.system", "_operator.attrgetter", "torch.ops.mkldnn.x.default", "aten.relu"])
def test_only_operators_of_torch_are_known(target: str) -> None:
    with pytest.raises(ModelError, match="calls"):
        function(target)
