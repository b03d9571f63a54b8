"""Other tools on the jobs of families.py: their layers or their pruning, and then our very training step.

    python bench/families_peers.py [CASE ...]

So rows differ in the method alone: same epochs, rates, augmentation and soft targets. Brevitas has the pretrained
weights in its own layers, batch norms unfolded, is calibrated on our calibration examples before training, and exports
itself (QCDQ). Torch-Pruning takes the inner channels of the blocks, by L2 norm in groups: the shortcuts, padded with a
fixed width, bind the others. Asks for ``brevitas`` and ``onnxoptimizer``, which nothing else here needs.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nutlet as nl
from families import FOLDER, SEED, TRAINING, accuracy_before, add_file, cifar10, epochs_of, original
from nutlet.formats.onnx.export import export_onnx
from nutlet.graph.macs import macs
from nutlet.graph.trace import trace
from nutlet.tasks.predict import evaluate
from nutlet.training.context import Context
from rows import Rows


@dataclass(frozen=True)
class Peer:
    """What a tool makes of the network before training, how it is exported, and the training it gets."""

    make: Callable[[], nn.Module]
    export: Callable[[nn.Module, Path], object]
    training: nl.Method


class QuantBlock(nn.Module):
    """A block of the network with Brevitas layers: every activation on a grid, sums too, where ``bits`` says so."""

    def __init__(self, block: Any, weights: Any, activation: Any, summand: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = weights(block.conv1), block.bn1, activation()
        self.conv2, self.bn2, self.grid, self.relu2 = weights(block.conv2), block.bn2, summand(), activation()
        self.shortcut = block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.grid(self.bn2(self.conv2(y))) + self.shortcut(x))


class QuantResNet(nn.Module):
    def __init__(self, model: Any, edge: Any, weights: Any, activation: Any, summand: Any) -> None:
        super().__init__()
        self.input = summand()
        self.conv1, self.bn1, self.relu = edge(model.conv1), model.bn1, activation()
        blocks = [*model.layer1, *model.layer2, *model.layer3]
        self.blocks = nn.Sequential(*(QuantBlock(block, weights, activation, summand) for block in blocks))
        self.pooled, self.linear = summand(), edge(model.linear)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.bn1(self.conv1(self.input(x)))))
        return self.linear(self.pooled(x.mean((2, 3))))


def brevitas(bits: int) -> nn.Module:
    """Return the network in Brevitas layers, with 8-bit activations; with 2 bits, that is three values, without.

    Scales of weights are those of least squared error, one per channel, and are learned. As in trained ternary
    quantization the first and the last layer stay in floating point where the others get three values.
    """
    import brevitas.nn as qnn
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloatMSE, Uint8ActPerTensorFloat

    def quantized(layer: nn.Module, width: int) -> nn.Module:
        options: dict[str, Any] = {"weight_quant": Int8WeightPerChannelFloatMSE, "weight_bit_width": width}
        if isinstance(layer, nn.Conv2d):
            new: nn.Module = qnn.QuantConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding,
                bias=False, **options,
            )  # fmt: skip
        else:
            assert isinstance(layer, nn.Linear)
            new = qnn.QuantLinear(layer.in_features, layer.out_features, bias=True, **options)
        new.load_state_dict(layer.state_dict(), strict=False)
        return new

    model, ternary = copy.deepcopy(original()), bits == 2
    result = QuantResNet(
        model,
        edge=(lambda layer: layer) if ternary else partial(quantized, width=8),
        weights=partial(quantized, width=bits),
        activation=nn.ReLU if ternary else partial(qnn.QuantReLU, act_quant=Uint8ActPerTensorFloat),
        summand=nn.Identity if ternary else partial(qnn.QuantIdentity, act_quant=Int8ActPerTensorFloat),
    ).eval()
    if not ternary:
        with torch.no_grad(), calibration_mode(result):
            for x, _ in cifar10().calibration.batches(64):
                result(x)
    return result


def export_brevitas(model: nn.Module, file: Path) -> None:
    from brevitas.export import export_onnx_qcdq

    example = cifar10().calibration.batch(slice(0, 2))[0]
    export_onnx_qcdq(
        model, example, export_path=str(file), dynamo=False, opset_version=17, do_constant_folding=True,
        input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
    )  # fmt: skip


def torch_pruning(model: nn.Module, share: float, kept: Callable[[Any], Collection[nn.Module]]) -> nn.Module:
    """Return a network with the fewest channels gone that leaves at most ``share`` of the work.

    Args:
        model: not changed.
        share: of the multiply-accumulates.
        kept: gives the layers of a copy of the model that keep their channels.
    """
    import torch_pruning as tp

    example = cifar10().calibration.batch(slice(0, 2))[0]
    budget = share * macs(trace(model, example))
    for percent in range(1, 100):
        thinner = copy.deepcopy(model)
        tp.pruner.BasePruner(
            thinner, example, tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=percent / 100,
            ignored_layers=list(kept(thinner)),
        ).step()  # fmt: skip
        if macs(trace(thinner, example)) <= budget:
            return thinner
    raise AssertionError(f"no ratio leaves {share} of the work")


def between_blocks(model: Any) -> list[nn.Module]:
    """Return the layers of a ResNet whose channels its shortcuts bind, and the classifier."""
    inner = {block.conv1 for layer in (model.layer1, model.layer2, model.layer3) for block in layer}
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return [layer for layer in layers if layer not in inner]


def thin_resnet(share: float) -> nn.Module:
    return torch_pruning(original(), share, between_blocks)


def export_plain(model: nn.Module, file: Path) -> None:
    export_onnx(model, file, cifar10().calibration.batch(slice(0, 2))[0])


PEERS = {
    "channels3x-torch-pruning": Peer(partial(thin_resnet, 1 / 3), export_plain, TRAINING["channels3x"]),
    "qat8-brevitas": Peer(partial(brevitas, 8), export_brevitas, TRAINING["qat8"]),
    "qat4-brevitas": Peer(partial(brevitas, 4), export_brevitas, TRAINING["qat4"]),
    "ternary-brevitas": Peer(partial(brevitas, 2), export_brevitas, TRAINING["ternary"]),
    "channels2x-torch-pruning": Peer(partial(thin_resnet, 0.5), export_plain, TRAINING["channels2x"]),
}


def run(name: str) -> None:
    peer, rows = PEERS[name], Rows("families", name, [SEED])
    folder, file = FOLDER / name, FOLDER / f"{name}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    model = peer.make()
    print(f"{name}: validation {evaluate(model, cifar10().validation):.2%} before training", flush=True)
    # The checkpoint stays: a second run goes on from there, be it finished or not.
    peer.training.train(model, Context(data=cifar10(), teacher=original(), seed=SEED, workdir=folder))
    print(f"{name}: validation {evaluate(model, cifar10().validation):.2%} after", flush=True)
    work = macs(trace(model, cifar10().calibration.batch(slice(0, 2))[0])) if "pruning" in name else None
    peer.export(model, file)
    after = add_file(rows, file, None)
    if work is not None:
        rows.add("macs_share", work / accuracy_before()[2].macs, "share")
    rows.add("epochs", epochs_of([peer.training]), "epochs")
    rows.write()
    print(f"{name}: {after:.2f} % in {file}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case_name in sys.argv[1:] or PEERS:
        run(case_name)
