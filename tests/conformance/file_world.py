"""A victim whose file is worth having: what it learned cannot be learned from the thief's few labels."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from nutlet.attacks import Reuse
from nutlet.attacks.base import AttackerKnowledge, AttackResult
from nutlet.attacks.extraction.labelled import labelled
from nutlet.attacks.extraction.surrogate import Surrogate, fresh
from nutlet.data.examples import Examples
from nutlet.oracle import Oracle, source_of
from nutlet.training.loop import Training, cross_entropy, train_on

CLASSES = 4
WIDTH = 8
LABELS = 40
TABLE = (torch.arange(16) % CLASSES)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
"""The class of each corner; unlike parities it favours no grouping of the classes."""


def network() -> nn.Module:
    return fresh(
        nn.Sequential(nn.Linear(WIDTH, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, CLASSES)), 0
    )


def examples(count: int, seed: int) -> Examples:
    """Return noisy corners of a cube ``(count, 8)``; the first four signs say the class, by a table drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (count, WIDTH), generator=generator)
    x = 2.0 * sign - 1 + 0.3 * torch.randn(count, WIDTH, generator=generator)
    return Examples(x, TABLE[sign[:, :4] @ torch.tensor([8, 4, 2, 1])])


@cache
def victim() -> nn.Module:
    model = network()
    training = Training(epochs=12, lr=0.02, batch_size=64, optimizer="adamw", precision="fp32")
    train_on(model, examples(1024, seed=1), training, cross_entropy, seed=0)
    return model


@cache
def untrained() -> nn.Module:
    return fresh(network(), 7).eval()


@cache
def pruned() -> nn.Module:
    """Return the victim without the smallest 70 % of the weights of each layer, and nothing done about it."""
    return prune(victim(), 0.7)


def prune(model: nn.Module, share: float) -> nn.Module:
    """Return a copy with the smallest weights of each layer set to zero."""
    small = network()
    small.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer in small.modules():
            if isinstance(layer, nn.Linear):
                layer.weight[layer.weight.abs() < layer.weight.abs().quantile(share)] = 0
    return small.eval()


def knowledge(white_box: nn.Module | None = None, file: Path | None = None) -> AttackerKnowledge:
    surrogate = Surrogate(architecture=network(), effort=0.4, batch_size=16)
    return AttackerKnowledge(
        classes=CLASSES, shape=(WIDTH,), seed=3, transfer=examples(200, seed=2), surrogate=surrogate,
        white_box=white_box, file=file,
    )  # fmt: skip


def accuracy(loot: AttackResult) -> float:
    """Return the accuracy on examples that no attack has seen, in the task that the loot names."""
    assert loot.clone is not None
    unseen = examples(1000, seed=4)
    group = torch.tensor((loot.facts or {}).get("groups", range(CLASSES)))
    with torch.no_grad():
        return float((loot.clone(unseen.x).argmax(1) == group[unseen.y]).float().mean())


@cache
def from_nothing(reused: bool) -> float:
    """Return what as many labels are worth to who has drawn the weights himself."""
    world = knowledge(untrained())
    if reused:
        (loot,) = Reuse(start="random").run(Oracle(source_of(victim())), world, (LABELS,))
        return accuracy(loot)
    assert world.surrogate is not None
    assert world.transfer is not None
    (own,) = labelled(world.transfer, world.seed, (LABELS,))
    return accuracy(
        AttackResult(queries=0, clone=world.surrogate.train(own, F.one_hot(own.y, CLASSES).float(), seed=world.seed))
    )


def gain(loot: AttackResult) -> float:
    """Return by how much the file is better than nothing; who is better off without it does without it."""
    return max(0.0, accuracy(loot) - from_nothing("groups" in (loot.facts or {})))


# Files to read.


def save(model: onnx.ModelProto) -> Path:
    """Save in a folder that outlives the tests; the system clears it."""
    path = Path(tempfile.mkdtemp(prefix="nutlet-tests-")) / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def dense(weight: Tensor, name: str = "encoder.block1.fc.weight") -> onnx.ModelProto:
    """Return a file of one dense layer ``(N, F) -> (N, C)``."""
    features, outputs = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(weight.numpy(), name)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="")


@cache
def leaky() -> Path:
    """Return a file with everything in it that exporters and scripts leave there."""
    model = dense(torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(0)))
    model.producer_name, model.producer_version = "pytorch", "2.9.0"
    node = model.graph.node[0]
    node.name, node.doc_string = "/encoder/block1/fc/MatMul", "the projection"
    trace = node.metadata_props.add()
    trace.key, trace.value = "pkg.torch.onnx.stack_trace", 'File "/data/me/secret/train.py", line 12, in forward'
    note = model.metadata_props.add()
    note.key, note.value = "recipe", "adamw for 90 epochs"
    return save(model)


@cache
def mute() -> Path:
    """Return a file that holds no layer, no number and no word."""
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CLASSES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
    )
    return save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
