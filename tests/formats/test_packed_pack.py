"""What a method left of a model takes no more bytes than that, and comes back bit for bit."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import random
import shutil
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nutlet as nl
import tiny
from conformance.examples import same_state
from nutlet.compression.compressed import MANIFEST, TENSORS, Compressed
from nutlet.constraints import Quantizer, WeightQuantizer
from nutlet.constraints.stack import Constraint, Mask, constrain, constrained_weight, raw_weight
from nutlet.data.examples import Data
from nutlet.formats.packed.pack import pack, sync_dense, unpack


class Signs(Quantizer):
    """Two values per layer: plus and minus its mean magnitude."""

    levels: Sequence[int] = (-1, 1)
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", weight.detach().abs().mean())

    def forward(self, weight: Tensor) -> Tensor:
        return self.values(self.codes(weight))

    def codes(self, weight: Tensor) -> Tensor:
        return torch.where(weight < 0, -1, 1)

    def values(self, codes: Tensor) -> Tensor:
        return codes * self.scale


class Trits(Signs):
    """Three values per layer."""

    levels = (-1, 0, 1)

    def codes(self, weight: Tensor) -> Tensor:
        return torch.round(weight / self.scale).clamp(-1, 1).int()


class Codebook(Signs):
    """Eight values per layer that lie anywhere."""

    levels = range(8)

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.register_buffer("scale", torch.randn(8, generator=torch.Generator().manual_seed(0)))

    def codes(self, weight: Tensor) -> Tensor:
        return (weight[..., None] - self.scale).abs().argmin(-1)

    def values(self, codes: Tensor) -> Tensor:
        return self.scale[codes.long()]


class Halved(Constraint):
    """Gives another weight each time it is applied to its own result."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Wrong(Signs):
    """Has values that are not those of its codes."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.sign() * 0.3


def layer(seed: int = 0, inputs: int = 100, outputs: int = 40) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=False)


def sparse(share: float, like: Tensor) -> Mask:
    return Mask(torch.rand(like.shape, generator=torch.Generator().manual_seed(1)) < share)


def round_trip(model: nn.Module) -> int:
    """Assert that a copy with other values becomes the same, and return the bytes."""
    packed = pack(model)
    other = copy.deepcopy(model)
    for tensor in other.state_dict().values():
        tensor.zero_()
    unpack(other, packed.content)
    assert same_state(other, model)
    assert pack(other) == packed
    assert len(packed.content) == 16 + sum(packed.sizes.values())
    return len(packed.content)


@pytest.mark.parametrize(
    ("kind", "bits", "rest"), [(Signs, 1, 4), (Trits, 1.6, 4), (Codebook, 3, 32), (WeightQuantizer.fit, 8, 160 + 4)]
)
def test_weights_take_the_bits_of_their_codes(kind: type[Signs], bits: float, rest: int) -> None:
    model = layer()
    constrain(model, [kind(model.weight)])
    sync_dense(model)
    assert round_trip(model) <= 4000 * bits / 8 + rest + 16 + 4  # the signature, and a byte or two for each tensor


@pytest.mark.parametrize("kind", [Signs, Trits, Codebook, WeightQuantizer.fit, None])
def test_removed_weights_take_no_code(kind: type[Signs] | None) -> None:
    model = layer()
    stack: list[Constraint] = [sparse(0.1, model.weight)]
    if kind is not None:
        stack.append(kind(model.weight))
    constrain(model, stack)
    sync_dense(model)
    assert not bool(raw_weight(model)[~stack[0].mask].any())  # type: ignore[union-attr]
    kept = int(stack[0].mask.sum())  # type: ignore[union-attr,arg-type]
    bits = {Signs: 1, Trits: 1.6, Codebook: 3, None: 32}.get(kind, 8)
    positions = 0.52 * 4000 / 8
    assert round_trip(model) <= kept * bits / 8 + positions + 16 + 176 + 20


def test_half_floats_take_16_bits_whoever_made_them() -> None:
    model = layer()
    with torch.no_grad():
        model.weight.copy_(model.weight.half())
    assert round_trip(model) <= 8000 + 20


def test_nothing_is_left_of_a_layer() -> None:
    model = layer()
    constrain(model, [Mask(torch.zeros(40, 100, dtype=torch.bool)), Signs(model.weight)])
    sync_dense(model)
    assert round_trip(model) < 50


def test_settling_changes_no_output_and_does_nothing_twice() -> None:
    model = nn.Sequential(layer(0), nn.ReLU(), nn.Linear(40, 8))
    constrain(model[0], [WeightQuantizer.fit(model[0].weight), sparse(0.3, model[0].weight)])
    x = torch.randn(5, 100)
    with torch.no_grad():
        before = model(x)
        sync_dense(model)
        assert torch.equal(model(x), before)
        once = copy.deepcopy(model)
        sync_dense(model)
    assert torch.equal(raw_weight(model[0]), constrained_weight(model[0]))
    assert same_state(once, model)
    model(x).sum().backward()
    assert raw_weight(model[0]).grad is not None


@pytest.mark.parametrize("kind", [Halved, Wrong])
def test_a_constraint_that_breaks_the_rules_costs_bytes_and_not_values(kind: type[Constraint]) -> None:
    model = layer()
    constrain(model, [kind(model.weight) if kind is Wrong else kind()])  # type: ignore[call-arg]
    before = constrained_weight(model).clone()
    sync_dense(model)
    assert torch.equal(constrained_weight(model), before)
    assert round_trip(model) > 1000 * 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layer(0, 40, 40), layer(1, 40, 40)
        self.two.weight = self.one.weight


@pytest.mark.parametrize("stacks", ["none", "one", "the same", "different"])
def test_tied_weights_are_stored_once(stacks: str) -> None:
    model = Tied()
    if stacks != "none":
        constrain(model.one, [sparse(0.1, model.one.weight)])
    if stacks in ("the same", "different"):
        constrain(model.two, [sparse(0.1 if stacks == "the same" else 0.2, model.one.weight)])
    before = [constrained_weight(m).clone() for m in (model.one, model.two)]
    sync_dense(model)
    assert all(torch.equal(constrained_weight(m), w) for m, w in zip((model.one, model.two), before, strict=True))
    size = round_trip(model)
    assert size < 40 * 40 * 4 + 500
    assert (size < 1500) == (stacks == "the same")


def test_bytes_of_another_model_are_refused() -> None:
    content = pack(layer()).content
    for other in (layer(0, 40, 100), nn.Linear(100, 40), layer().double(), nn.Sequential(layer())):
        with pytest.raises(ValueError, match="found tensors of other names, shapes or types"):
            unpack(other, content)
    for wrong, words in ((content + b"\0", "1 bytes after"), (content[:-1], "cut short"), (content[:3], "cut short")):
        with pytest.raises(ValueError, match=words):
            unpack(layer(), wrong)


# In saved folders


@pytest.fixture(scope="module")
def result() -> tuple[Compressed, Data]:
    model, data = tiny.tiny("mlp")
    chain = [nl.PruneWeights(sparsity=0.6), nl.Quantize(), nl.FineTune(epochs=1, batch_size=16)]
    return nl.compress(model, chain, data), data


def test_the_history_has_the_bytes_of_the_file(result: tuple[Compressed, Data], tmp_path: Path) -> None:
    model, data = tiny.tiny("mlp")
    chain = [nl.PruneWeights(sparsity=0.9), nl.Quantize(activations=False), nl.FineTune(epochs=1, batch_size=16)]
    for count in range(1, 4):
        saved = nl.compress(model, chain[:count], data)
        saved.save(tmp_path)
        size = saved.steps[-1].size
        assert size.bytes_packed == (tmp_path / TENSORS).stat().st_size
        assert sum(row.bytes_packed for row in size.layers) == size.bytes_packed - 16
    first, *steps = (step.size for step in saved.steps)
    assert first.bytes_packed < first.bytes + 100
    assert all(size.bytes_packed < first.bytes_packed / 2.5 for size in steps)  # its biases are a tenth of the model
    assert "packed" in str(saved.table())


def test_pruned_weights_stay_zero_below_the_mask_and_codes_on_the_grid(result: tuple[Compressed, Data]) -> None:
    for module in result[0].model.modules():
        if isinstance(module, nn.Linear):
            assert torch.equal(raw_weight(module), constrained_weight(module))


def test_damage_is_noticed_wherever_it_is(result: tuple[Compressed, Data], tmp_path: Path) -> None:
    content = (result[0].save(tmp_path) / TENSORS).read_bytes()
    for at in range(0, len(content), 41):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        (tmp_path / TENSORS).write_bytes(flipped)
        with pytest.raises(nl.StorageError, match=r"expected .* as compressed\.json says"):
            Compressed.load(tmp_path, tiny.TinyMLP())


def damaged(content: bytes, choose: random.Random) -> bytes:
    bad = bytearray(content)
    kind = choose.randrange(3)
    if kind == 0:
        del bad[choose.randrange(17, len(bad)) :]
    elif kind == 1:
        at = choose.randrange(16, len(bad))
        bad[at : at + choose.randrange(4)] = choose.randbytes(choose.randrange(1, 9))
    for _ in range(choose.randrange(1, 4)):
        bad[choose.randrange(16, len(bad))] = choose.randrange(256)
    return bytes(bad)


def test_hostile_tensors_cannot_do_more_than_other_values(result: tuple[Compressed, Data]) -> None:
    content = pack(result[0].model).content
    model = copy.deepcopy(result[0].model)
    shapes = [tensor.shape for tensor in model.state_dict().values()]
    choose = random.Random(0)
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(400):
            try:
                unpack(model, damaged(content, choose))
            except ValueError:
                refused += 1
            assert [tensor.shape for tensor in model.state_dict().values()] == shapes
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert 150 < refused < 400, "some damage is refused, some gives other values"


def test_hostile_tensors_under_a_right_checksum_give_a_model_that_runs_or_a_storage_error(
    result: tuple[Compressed, Data], tmp_path: Path
) -> None:
    content = (result[0].save(tmp_path) / TENSORS).read_bytes()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    choose = random.Random(1)
    for _ in range(40):
        bad = damaged(content, choose)
        (tmp_path / TENSORS).write_bytes(bad)
        (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "sha256": hashlib.sha256(bad).hexdigest()}))
        with contextlib.suppress(nl.StorageError):
            loaded = Compressed.load(tmp_path, tiny.TinyMLP())
            assert loaded.model(loaded.example).shape == (2, tiny.CLASSES)


@pytest.mark.parametrize("sha256", [None, 3, "", "ab", ["x"]])
def test_a_checksum_that_is_none(sha256: object, result: tuple[Compressed, Data], tmp_path: Path) -> None:
    result[0].save(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "sha256": sha256}))
    with pytest.raises(nl.StorageError, match="expected"):
        Compressed.load(tmp_path, tiny.TinyMLP())


def test_a_folder_half_of_an_earlier_save_is_refused(result: tuple[Compressed, Data], tmp_path: Path) -> None:
    model, data = tiny.tiny("mlp")
    result[0].save(tmp_path / "one")
    nl.compress(model, nl.Quantize(), data).save(tmp_path / "two")
    shutil.copy(tmp_path / "two" / TENSORS, tmp_path / "one" / TENSORS)
    with pytest.raises(nl.StorageError, match="saving was cut off between them"):
        Compressed.load(tmp_path / "one", tiny.TinyMLP())
