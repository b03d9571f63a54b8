"""Tiny models and data that run in milliseconds and still hold every shape of data flow that methods must follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.data.examples import Data, Examples

CLASSES = 4


class Residual(nn.Module):
    """Two convolutions with batch norms around a shortcut, all functional but the layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + x)


class TinyCNN(nn.Module):
    """Images ``(B, 3, 8, 8)``: two residual blocks, a concatenation and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block1 = Residual(8)
        self.block2 = Residual(8)
        self.branch = nn.Conv2d(8, 4, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.mix = nn.Conv2d(12, 16, 3, stride=2)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.block2(self.block1(x))
        x = torch.cat([x, F.relu(self.branch(x))], 1)
        x = F.relu(self.norm2(self.depthwise(x)))
        x = F.relu(self.mix(x)).mean((2, 3))
        return self.fc(x)


class ResidualMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.relu(self.fc1(x)))


class TinyMLP(nn.Module):
    """Rows ``(B, 10)``: two residual blocks between two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 16)
        self.block1 = ResidualMLP(16)
        self.block2 = ResidualMLP(16)
        self.fc2 = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.block2(self.block1(F.relu(self.fc1(x))))))


class AttentionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, 16)
        self.fc2 = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.fc2(F.relu(self.fc1(self.norm(x))))


class TinyAttention(nn.Module):
    """Rows ``(B, 10)``, read as two tokens: attention of one's own, and a transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 16)
        self.block1 = AttentionBlock()
        self.block2 = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.fc2 = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.block2(self.block1(self.fc1(x.view(-1, 2, 5)))).mean(1))


def settled(model: nn.Module, example: Tensor, seed: int = 0) -> nn.Module:
    """Return ``model`` in evaluation mode with weights from the seed and batch norms that have seen data."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if name.endswith("weight") and tensor.ndim > 1:
                fan_in = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
            elif name.endswith(("running_var", "weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        model.eval()(example)
    return model


def tiny_data(shape: tuple[int, ...], seed: int = 0) -> Data:
    """64 training examples of four classes, noisy copies of one pattern each; there is no test split."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, *shape, generator=generator)

    def draw(count: int) -> Examples:
        y = torch.arange(count) % CLASSES
        return Examples(patterns[y] + 0.5 * torch.randn(count, *shape, generator=generator), y)

    train = draw(64)
    return Data(train=train, validation=draw(32), calibration=train.subset(slice(0, 32)))


def tiny(kind: str) -> tuple[nn.Module, Data]:
    """Return a model and its data: ``cnn``, ``mlp`` or ``attention``, trained a little."""
    torch.manual_seed(0)
    data = tiny_data((3, 8, 8) if kind == "cnn" else (10,))
    made = {"cnn": TinyCNN, "mlp": TinyMLP, "attention": TinyAttention}[kind]()
    model = settled(made, data.calibration.x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    model.train()
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.x), data.train.y).backward()
        optimizer.step()
    return model.eval(), data
