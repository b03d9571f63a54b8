"""What the file gives away as it lies there, and what it is worth as a start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from conformance import file_world
from nutlet.attacks import FileLeaks, Refine, Reuse
from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult
from nutlet.attacks.extraction.surrogate import fresh
from nutlet.errors import StorageError
from nutlet.formats.onnx.export import export_onnx
from nutlet.formats.onnx.metadata import describe
from nutlet.formats.onnx.reader import load_onnx
from nutlet.oracle import Oracle, source_of


def raid(attack: Attack, knowledge: AttackerKnowledge, *budgets: int) -> list[AttackResult]:
    return list(attack.run(Oracle(source_of(file_world.victim())), knowledge, budgets))


def leaks(path: Path) -> dict[str, Any]:
    (loot,) = raid(FileLeaks(), file_world.knowledge(file=path))
    assert loot.facts is not None
    return {**loot.facts, "share": loot.share}


def found(facts: dict[str, Any]) -> set[str]:
    return {item["item"] for item in facts["items"] if item["found"]}


def example(facts: dict[str, Any], name: str) -> str:
    return next(item["example"] for item in facts["items"] if item["item"] == name)


# FileLeaks


def test_our_export_gives_away_shapes_and_weights_alone(tmp_path: Path) -> None:
    model = file_world.pruned()
    path = export_onnx(model, tmp_path / "m.onnx", file_world.examples(2, 0).x)
    facts = leaks(path)
    assert found(facts) == {"architecture", "weights"}
    assert facts["share"] == 2 / 8
    numbers = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert facts["parameters"] == len(numbers)
    assert facts["bits_per_parameter"] == 32
    assert facts["zeros"] == pytest.approx(float((numbers == 0).float().mean()))
    assert 0 < facts["bytes_zstd"] < path.stat().st_size


@pytest.mark.filterwarnings("ignore")  # those of the exporter are not ours
def test_a_raw_export_gives_away_everything_that_torch_and_a_script_left_there(tmp_path: Path) -> None:
    path = tmp_path / "raw.onnx"
    module = nn.Sequential()
    module.add_module("encoder", nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    program = torch.onnx.export(module.eval(), (torch.zeros(2, 8),), dynamo=True, verbose=False)
    assert program is not None
    model = program.model_proto
    helper.set_model_props(model, {"optimizer": "adamw, 90 epochs"})
    model.graph.doc_string = "made in C:\\Users\\me\\train.py"
    path.write_bytes(model.SerializeToString())
    facts = leaks(path)
    assert facts["share"] == 1
    assert "encoder" in example(facts, "module paths")
    assert "pytorch" in example(facts, "producer").lower()
    assert "Users" in example(facts, "file paths") or ".py" in example(facts, "file paths")


@pytest.mark.parametrize(
    ("item", "place", "text"),
    [
        ("module paths", "node", "layer1.0.conv1.weight"),
        ("module paths", "node", "/blocks/attn/MatMul"),
        ("class names, stack traces, metadata", "node", "timm.models.ResNet"),
        ("file paths", "doc", "/data/run7/best.ckpt"),
        ("training traces", "doc", "final training loss 0.2"),
    ],
)
def test_each_item_is_found_where_it_stands(tmp_path: Path, item: str, place: str, text: str) -> None:
    model = file_world.dense(torch.ones(8, 4), "w")
    if place == "node":
        model.graph.node[0].name = text
    else:
        model.graph.node[0].doc_string = text
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    facts = leaks(tmp_path / "m.onnx")
    assert text in example(facts, item)
    assert {"doc strings"} & found(facts) == ({"doc strings"} if place == "doc" else set())
    assert "producer" not in found(facts)


def test_how_inputs_are_prepared_is_no_leak_but_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(file_world.dense(torch.ones(8, 4), "w").SerializeToString())
    before = leaks(path)
    assert "input" not in before
    classes = ["Dataset", "St.Bernard", *(f"class {k}" for k in range(200))]
    describe(path, mean=[0.5], std=[0.25], scale=1 / 255, layout="NCHW", classes=classes)
    told = leaks(path)
    assert found(told) == found(before) == {"architecture", "weights"}
    assert "mean [0.5]" in told["input"]
    assert len(told["input"]) == 5
    # Under the same names something else, and a path among the classes, are leaks.
    describe(path, classes=["/data/me/train.py"])
    model = onnx.load(path)
    model.metadata_props.add(key="mean", value="loss after 90 epochs")
    model.metadata_props.add(key="author", value="somebody")
    path.write_bytes(model.SerializeToString())
    more = leaks(path)
    assert example(more, "file paths") == "/data/me/train.py"
    assert "90 epochs" in example(more, "training traces")
    assert "class names, stack traces, metadata" in found(more)


def test_plain_short_names_give_nothing_away(tmp_path: Path) -> None:
    model = file_world.dense(torch.ones(8, 4), "w_1")
    model.graph.node[0].name = "MatMul_0"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert found(leaks(tmp_path / "m.onnx")) == {"architecture", "weights"}


def test_quantized_weights_are_counted_in_their_own_bits_and_zeros(tmp_path: Path) -> None:
    stored = torch.tensor([[3, 5, 3, 9], [3, 3, 200, 7]], dtype=torch.uint8).numpy()
    model = file_world.dense(torch.ones(2, 4), "w")
    graph = model.graph
    del graph.initializer[:]
    graph.initializer.extend(
        [
            numpy_helper.from_array(stored, "q"),
            numpy_helper.from_array(torch.full((4,), 0.1).numpy(), "scale"),
            numpy_helper.from_array(torch.tensor([3, 3, 3, 7], dtype=torch.uint8).numpy(), "zero"),
        ]
    )
    graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=1))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    facts = leaks(tmp_path / "m.onnx")
    assert (facts["parameters"], facts["bits_per_parameter"], facts["zeros"]) == (8, 8, 5 / 8)
    assert "MatMul 2x4" in example(facts, "architecture")


def test_numbers_that_look_like_random_bits_are_not_readable(tmp_path: Path) -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (64, 4), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    (tmp_path / "m.onnx").write_bytes(file_world.dense(bits.view(torch.float32)).SerializeToString())
    assert "weights" not in found(leaks(tmp_path / "m.onnx"))


def test_a_hostile_file_is_refused_or_read_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x80\x04not onnx")
    with pytest.raises(StorageError, match="expected"):
        leaks(path)
    model = file_world.dense(torch.ones(8, 4), "w")
    huge = model.graph.initializer.add(name="huge", data_type=TensorProto.FLOAT, raw_data=b"\0" * 16)
    huge.dims.extend([2**40, 2**20])
    short = model.graph.initializer.add(name="short", data_type=TensorProto.FLOAT, raw_data=b"\0" * 60)
    short.dims.extend([16])
    odd = model.graph.initializer.add(name="odd", data_type=TensorProto.INT8, raw_data=b"\1\2\3\4")
    odd.dims.extend([4])
    zero = model.graph.initializer.add(name="zero", data_type=TensorProto.INT8, raw_data=b"\1\2\3")
    zero.dims.extend([3])
    model.graph.node.append(helper.make_node("DequantizeLinear", ["odd", "scale", "zero"], ["o"], axis=-9))
    for k in range(200):
        model.graph.node.append(
            helper.make_node("Relu", ["x"], [f"r{k}"], name="/a." * 4000, doc_string="\x1b[2J" * 99)
        )
    path.write_bytes(model.SerializeToString())
    facts = leaks(path)
    assert facts["parameters"] == 32 + 4
    assert all(len(item["example"]) <= 80 and item["example"].isprintable() for item in facts["items"])


# Reuse and Refine, on the file as it is loaded from disk


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    path = tmp_path_factory.mktemp("shipped") / "m.onnx"
    return load_onnx(export_onnx(file_world.pruned(), path, file_world.examples(2, 0).x))


def test_every_weight_of_the_loaded_file_can_be_drawn_anew(shipped: nn.Module) -> None:
    again = dict(fresh(shipped, 0).named_parameters())
    assert again
    assert not any(torch.equal(tensor, again[name]) for name, tensor in shipped.named_parameters())


@pytest.mark.parametrize("seed", [3, 4])
def test_the_file_spares_labels_on_another_task(shipped: nn.Module, seed: int) -> None:
    knowledge = replace(file_world.knowledge(shipped), seed=seed)
    (stolen,) = raid(Reuse(), knowledge, 40)
    (drawn,) = raid(Reuse(start="random"), knowledge, 40)
    assert stolen.facts == drawn.facts
    assert stolen.facts is not None
    assert stolen.facts["labels"] == 40
    assert sorted(stolen.facts["groups"]) == [0, 0, 1, 1]
    assert file_world.accuracy(stolen) > file_world.accuracy(drawn) + 0.05


def test_a_few_labels_win_back_what_pruning_cost(shipped: nn.Module) -> None:
    before = file_world.accuracy(AttackResult(queries=0, clone=shipped))
    original = file_world.accuracy(AttackResult(queries=0, clone=file_world.victim()))
    (loot,) = raid(Refine(), file_world.knowledge(shipped), file_world.LABELS)
    after = file_world.accuracy(loot)
    assert after > before + 0.5 * (original - before)
    assert loot.queries == 0


def test_the_file_itself_is_not_changed(shipped: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in shipped.state_dict().items()}
    raid(Refine(), file_world.knowledge(shipped), 8)
    raid(Reuse(), file_world.knowledge(shipped), 8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in shipped.state_dict().items())


def test_the_head_takes_the_place_of_the_last_layer_or_reads_the_scores(shipped: nn.Module) -> None:
    def parameters(module: nn.Module | None) -> int:
        assert module is not None
        return sum(p.numel() for p in module.parameters())

    (replaced,) = raid(Reuse(), file_world.knowledge(shipped), 8)
    assert parameters(replaced.clone) == parameters(shipped) - 2 * (24 + 1)
    behind = nn.Sequential(shipped, nn.Softmax(1))
    (added,) = raid(Reuse(), file_world.knowledge(behind), 8)
    assert parameters(added.clone) == parameters(shipped) + 2 * (file_world.CLASSES + 1)


def test_says_why_it_cannot_run(shipped: nn.Module) -> None:
    oracle = Oracle(source_of(file_world.victim()))
    assert "more than 4 classes" in (Reuse(groups=4).obstacle(oracle, file_world.knowledge(shipped)) or "")
    bare = file_world.knowledge(nn.Flatten())
    assert Reuse().obstacle(oracle, bare) is None
    assert "drawn anew" in (Reuse(start="random").obstacle(oracle, bare) or "")
