"""Channels by PruneChannels and by Torch-Pruning: the same network, work, fine-tuning and seeds; what the files answer.

    python bench/channels_vs_peer.py [CASE ...]

A case is a network and the share of the multiply-accumulates that may be left. Torch-Pruning takes the smallest ratio
that leaves as much or less, and PruneChannels is asked for what that left. The fine-tuning is one step of nutlet's,
given to both. Accuracies are those of ONNX files in ONNX Runtime on all 10,000 test images of CIFAR-10. The
MobileNetV2-like network is trained here first. What is done is kept under NUTLET_BENCH_WORK and not done again. Asks
for ``torch-pruning``.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

import nutlet as nl
from families import cifar10, original
from families_peers import between_blocks, torch_pruning
from nutlet.formats.onnx.export import export_onnx
from nutlet.graph.macs import macs
from nutlet.graph.trace import trace
from nutlet.training.context import Context
from pieces import Piece, piece, seconds_of
from rows import WORK, Rows
from shipped import accuracy_of

FOLDER = WORK / "channels_vs_peer"
SEEDS = [0, 1]
SHARES = {"0.5": 0.5, "0.3": 0.3}
TRAINING = nl.Distill(epochs=2, lr=0.05)


class InvertedResidual(nn.Module):
    """Sandler et al. 2018 (arXiv:1801.04381), figure 4d."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.adds = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class SmallMobileNetV2(nn.Module):
    """MobileNetV2 for images of 32 pixels: four widths, three strides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        widths = [(16, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1), (40, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(InvertedResidual(*width) for width in widths))
        self.last = nn.Sequential(nn.Conv2d(64, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6())
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.blocks(self.stem(x))).mean((2, 3)))


@cache
def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    recipe = [nl.FineTune(epochs=12, lr=0.1)]
    result = nl.compress(SmallMobileNetV2(), recipe, cifar10(), workdir=FOLDER / "mobilenet", progress=nl.Progress())
    return result.model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], list[nn.Module]]]] = {
    "resnet20": (original, between_blocks),
    "mobilenetv2": (mobilenet, lambda model: [model.fc]),
}
CASES = [f"{network}-{share}" for share in SHARES for network in NETWORKS]


def tuned(name: str, tool: str, model: nn.Module, teacher: nn.Module, seed: int) -> Piece:
    """Train what a tool has left, ship it and return what the file answers."""
    example = cifar10().calibration.batch(slice(0, 2))[0]
    before = accuracy_of(export_onnx(model, FOLDER / f"{name}-{tool}-start.onnx", example), cifar10())
    folder = FOLDER / f"{name}-{tool}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    TRAINING.train(model, Context(data=cifar10(), teacher=teacher, seed=seed, workdir=folder))
    file = export_onnx(model, FOLDER / f"{name}-{tool}-{seed}.onnx", example)
    share = macs(trace(model, example)) / macs(trace(teacher, example))
    return {"untrained": before, "accuracy": accuracy_of(file, cifar10()), "share": share}


def run(name: str) -> None:
    network, share = name.rsplit("-", 1)
    make, kept = NETWORKS[network]
    example = cifar10().calibration.batch(slice(0, 2))[0]
    peer = torch_pruning(make(), SHARES[share], kept)
    left = macs(trace(peer, example)) / macs(trace(make(), example))
    tools: dict[str, Callable[[], nn.Module]] = {
        "ours": lambda: nl.compress(make(), [nl.PruneChannels(macs=left)], cifar10()).model,
        "peer": lambda: copy.deepcopy(peer),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = {
        (tool, seed): piece(
            FOLDER / f"{name}-{tool}-{seed}.npz",
            lambda tool=tool, seed=seed: tuned(name, tool, tools[tool](), make(), seed),
        )
        for seed in SEEDS
        for tool in tools
    }
    rows = Rows("channels_vs_peer", name, SEEDS, seconds_of(made.values()))
    for seed in SEEDS:
        for tool, prefix in (("ours", ""), ("peer", "peer_")):
            rows.add(f"{prefix}accuracy", made[tool, seed]["accuracy"], "%")
            rows.add(f"{prefix}accuracy_untrained", made[tool, seed]["untrained"], "%")
            rows.add(f"{prefix}macs_share", made[tool, seed]["share"], "share")
        rows.add("difference", made["ours", seed]["accuracy"] - made["peer", seed]["accuracy"], "pp", 0.0)
    rows.write()
    print(f"{name}: {rows.values}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case_name in sys.argv[1:] or CASES:
        run(case_name)
