"""Faults planted into our own code while it runs: does the comparison of each step, file and saved form find them?

    python bench/planted_faults.py             all of them, into bench/results/planted_faults.json
    python bench/planted_faults.py FAULT ...   some, printed only

Each fault replaces a function of ours for one run of a recipe on a small network: compress, save, export. It is caught
where an error is raised, or where a note or a warning of the comparison says what was left out. None of our tests runs.
The same recipes without a fault have to pass without such a note: no false alarm.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from rows import ROOT, Rows

sys.path.insert(0, str(ROOT / "tests"))

import nutlet as nl
import tiny
from nutlet.constraints import Codebook, WeightQuantizer
from nutlet.constraints.stack import Mask, constrain, constrained_layers, remove_constraints
from nutlet.graph.activation_quantizers import ActivationQuantizer, Activations
from nutlet.graph.channels import scale_inputs
from nutlet.graph.equivalent_scaling import Link
from nutlet.graph.trace import InstrumentedModel

SAID = ("compared with the model before", "do not correspond", "left in floating point in this file")
"""What notes and warnings of comparisons have in common."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One mutation.

    Args:
        target: what is replaced, ``module.path:attribute`` or ``module.path:Class.attribute``.
        mutant: given what was there, returns what takes its place.
        recipe: names the recipe that meets it.
    """

    target: str
    mutant: Callable[[Any], Any]
    recipe: str


RECIPES: dict[str, tuple[str, list[nl.Method]]] = {
    "int8": ("cnn", [nl.Quantize()]),
    "int8, dense": ("mlp", [nl.Quantize()]),
    "int4": ("cnn", [nl.Quantize(bits=4, activations=False)]),
    "asymmetric": ("cnn", [nl.Quantize(bits=4, symmetric=False, activations=False)]),
    "ternary": ("cnn", [nl.Ternarize(edges=True)]),
    "binary": ("cnn", [nl.Binarize(edges=True)]),
    "codebook": ("cnn", [nl.Cluster(values=8)]),
    "rounded": ("cnn", [nl.AdaRound(bits=4, steps=50)]),
    "gptq": ("mlp", [nl.GPTQ(bits=4, group_size=0)]),
    "masked": ("cnn", [nl.PruneWeights(sparsity=0.5)]),
    "second order": ("mlp", [nl.PruneSecondOrder(sparsity=0.5)]),
    "masked, thinner": ("cnn", [nl.PruneWeights(sparsity=0.5), nl.PruneChannels(ratio=0.3)]),
    "thinner": ("cnn", [nl.PruneChannels(ratio=0.3)]),
    "fewer heads": ("attention", [nl.PruneHeads(ratio=0.5)]),
    "int8, thinner": ("cnn", [nl.Quantize(), nl.PruneChannels(ratio=0.3)]),
    "int8, masked": ("cnn", [nl.Quantize(), nl.PruneWeights(sparsity=0.5)]),
    "equalized": ("cnn", [nl.Equalize()]),
    "smoothed": ("attention", [nl.Smooth()]),
    "factorized": ("mlp", [nl.Factorize(rank=4)]),
    "factorized kernels": ("cnn", [nl.Factorize(decomposition="tucker", energy=0.8)]),
    "shallower": ("cnn", [nl.DropBlocks(drop=1)]),
    "trained": ("cnn", [nl.PruneWeights(sparsity=0.5), nl.Quantize(learn=True, bits=4), nl.FineTune(epochs=1)]),
}


def after(change: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a mutant that lets the original do its work and passes the result and the arguments to ``change``."""

    def mutant(original: Any) -> Any:
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return change(original(*args, **kwargs), *args)

        return replaced

    return mutant


def first(change: Callable[..., tuple[Any, ...]]) -> Callable[[Any], Any]:
    """Return a mutant that calls the original with the arguments that ``change`` makes of the real ones."""

    def mutant(original: Any) -> Any:
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return original(*change(*args), **kwargs)

        return replaced

    return mutant


def _norms(change: Callable[[Any], None]) -> Callable[[Any], Any]:
    def before(model: nn.Module, pairs: list[tuple[str, str]]) -> tuple[Any, ...]:
        for _, norm in pairs:
            change(model.get_submodule(norm))
        return model, pairs

    return first(before)


def _next_norms(pairs: list[list[str]]) -> list[list[str]]:
    inner = [pair for pair in pairs if pair[0].startswith("block")]
    return [[layer, norm] for (layer, _), (_, norm) in zip(inner, [*inner[1:], *inner[:1]], strict=True)]


def _no_bias(result: None, model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    for layer, _ in pairs:
        model.get_submodule(layer).get_parameter("bias").data.zero_()


def _scales(change: Callable[[dict[str, float]], None]) -> Callable[[Any], Any]:
    def ranges(result: Activations, *args: Any) -> Activations:
        for entry in result.values():
            if "scale" in entry:
                change(entry)
        return result

    return after(ranges)


def _elsewhere(result: Activations, *args: Any) -> Activations:
    own = [name for name, entry in result.items() if "scale" in entry]
    return {**result, **{name: result[other] for name, other in zip(own, [*own[1:], own[0]], strict=True)}}


def _rolled_masks(result: dict[str, Tensor], *args: Any) -> dict[str, Tensor]:
    return {name: mask.flatten().roll(1).view_as(mask) for name, mask in result.items()}


def _put_rolled(model: nn.Module, values: Any) -> tuple[Any, ...]:
    return model, {key: v.roll(1, -1) if key.endswith("mask") else v for key, v in values.items()}


class _Uncompensated(Link):
    """Scales the channels, and not what reads them."""

    def scale(self, model: nn.Module, factor: Tensor) -> None:
        super().scale(model, factor)
        for name in self.readers:
            reader = model.get_submodule(name)
            scale_inputs(reader, factor.repeat_interleave(reader.get_parameter("weight").shape[1] // len(factor)))


def _uncompensated(result: list[Link], *args: Any) -> list[Link]:
    return [_Uncompensated(link.layer, link.norm, link.readers) for link in result]


def _reordered(result: Any, *args: Any) -> Any:
    def cut(ranks: Any) -> list[Tensor]:
        first, *others = result.cut(ranks)
        return [first.flip(0), *others]

    return dataclasses.replace(result, cut=cut)


def _another_block(model: nn.Module, plan: dict[str, Any], example: Tensor) -> tuple[Any, ...]:
    return model, {"dropped": ["block2" if name == "block1" else "block1" for name in plan["dropped"]]}, example


def _cuts(change: Callable[[Tensor], Tensor], of: Callable[[str, int], bool]) -> Callable[[Any], Any]:
    """Return a mutant of the cut that keeps other places of some parameters, along some of their dimensions."""

    def wrong(model: nn.Module, cuts: dict[str, list[tuple[int, Tensor]]]) -> tuple[Any, ...]:
        return model, {
            name: [(dim, change(keep) if of(name, dim) else keep) for dim, keep in places]
            for name, places in cuts.items()
        }

    return first(wrong)


def _other_place(keep: Tensor) -> Tensor:
    """Return the first place that goes in the place of one that stays."""
    gone = [k for k in range(int(keep.max())) if k not in keep.tolist()]
    return torch.cat([keep[:-1], torch.tensor(gone[:1])]) if gone else keep + 1


def _moved_quantizers(result: Any, *args: Any) -> Any:
    edits = result.by_site
    values = list(edits.values())
    return InstrumentedModel(result.unwrap(), result.record, dict(zip(edits, [*values[1:], values[0]], strict=True)))


def _halved_quantizers(result: Any, *args: Any) -> Any:
    for edit in result.by_site.values():
        edit.scale = edit.scale / 2
    return result


def _halved_learned(result: None, model: nn.Module) -> None:
    for _, layer in constrained_layers(model):
        for constraint in layer.parametrizations["weight"]:
            if isinstance(constraint, WeightQuantizer):
                constraint.scale.data.div_(2)


def _unmasked(result: Any, model: nn.Module, *args: Any) -> Any:
    for _, layer in list(constrained_layers(model)):
        kept = [constraint for constraint in remove_constraints(layer) if not isinstance(constraint, Mask)]
        constrain(layer, kept)
    return result


def _halved_codebook(codebook: Codebook) -> Codebook:
    codebook.shared.data.div_(2)
    return codebook


def _bias_lost(result: None, proto: Any) -> None:
    biases = [node.input[2] for node in proto.graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) > 2]
    if not biases:  # a file of the first few calls
        return
    bias = biases[0]
    producers = {name: node for node in proto.graph.node for name in node.output}
    bias = producers[bias].input[0] if bias in producers else bias
    (tensor,) = (t for t in proto.graph.initializer if t.name == bias)
    tensor.raw_data = bytes(len(tensor.raw_data))


def _mixed(result: None, proto: Any) -> None:
    alike = [t for t in proto.graph.initializer if list(t.dims) == [8, 8, 3, 3]]
    if len(alike) > 1:  # a file of the first few calls has fewer
        alike[0].raw_data, alike[1].raw_data = alike[1].raw_data, alike[0].raw_data


def _other_zero(self: ActivationQuantizer, x: Tensor) -> Tensor:
    codes = (x / self.step).round() + self.zero_point
    return (codes.clamp(0, 2**self.grid.bits - 1) - self.zero_point - 1) * self.step


FAULTS = {
    "fold on the wrong axis": Fault(
        "nutlet.graph.fold:scale_outputs",
        lambda original: (
            lambda layer, factor: (
                scale_inputs(layer, factor)
                if layer.weight.shape[0] == layer.weight.shape[1]
                else original(layer, factor)
            )
        ),
        "int8",
    ),
    "fold loses the bias": Fault("nutlet.methods.quantization.integers:fold", after(_no_bias), "int8"),
    "fold forgets eps": Fault(
        "nutlet.methods.quantization.integers:fold", _norms(lambda norm: setattr(norm, "eps", 0.0)), "int8"
    ),
    "fold forgets the mean": Fault(
        "nutlet.methods.quantization.integers:fold", _norms(lambda norm: norm.running_mean.zero_()), "int8"
    ),
    "fold of the wrong norm": Fault(
        "nutlet.methods.quantization.integers:fold",
        first(lambda model, pairs: (model, _next_norms(pairs))),
        "int8",
    ),
    "mask off by one": Fault("nutlet.methods.pruning.prune_weights:mask_values", after(_rolled_masks), "masked"),
    "mask shifted where it is put": Fault("nutlet.methods.base:put_values", first(_put_rolled), "masked"),
    "mask shifted, weights made up for": Fault("nutlet.methods.base:put_values", first(_put_rolled), "second order"),
    "mask lets small weights through": Fault(
        "nutlet.constraints.stack:Mask.forward", lambda original: lambda self, w: original(self, w) + 0.1 * w, "masked"
    ),
    "mask rolled when channels are selected": Fault(
        "nutlet.constraints.stack:Mask.select", after(lambda mask, *args: Mask(mask.mask.roll(1, 0))), "masked, thinner"
    ),
    "a reader takes other channels": Fault(
        "nutlet.graph.coupling.groups:cut",
        _cuts(_other_place, lambda name, dim: dim == 1 and name != "depthwise.weight"),
        "thinner",
    ),
    "two channels of a reader swapped": Fault(
        "nutlet.graph.coupling.groups:cut", _cuts(lambda keep: keep.roll(1), lambda name, dim: dim == 1), "thinner"
    ),
    "a norm keeps the statistics of others": Fault(
        "nutlet.graph.coupling.groups:cut", _cuts(_other_place, lambda name, dim: "running" in name), "thinner"
    ),
    "biases of other channels": Fault(
        "nutlet.graph.coupling.groups:cut", _cuts(_other_place, lambda name, dim: name.endswith("bias")), "thinner"
    ),
    "values of other heads": Fault(
        "nutlet.graph.coupling.groups:cut",
        _cuts(lambda keep: keep.flip(0), lambda name, dim: "v_proj" in name),
        "fewer heads",
    ),
    "another head is read": Fault(
        "nutlet.graph.coupling.groups:cut", _cuts(lambda keep: keep.flip(0), lambda name, dim: dim == 1), "fewer heads"
    ),
    "the number of heads stays": Fault(
        "nutlet.graph.coupling.groups:put_attributes", lambda _: lambda model, attributes: None, "fewer heads"
    ),
    "scale halved": Fault(
        "nutlet.constraints.integer:WeightQuantizer._set", first(lambda q, s, z: (q, s / 2, z)), "int8"
    ),
    "scale halved, 4 bits": Fault(
        "nutlet.constraints.integer:WeightQuantizer._set", first(lambda q, s, z: (q, s / 2, z)), "int4"
    ),
    "scale halved, ternary": Fault(
        "nutlet.constraints.integer:WeightQuantizer._set", first(lambda q, s, z: (q, s / 2, z)), "ternary"
    ),
    "scale halved, codes chosen": Fault(
        "nutlet.constraints.integer:WeightQuantizer._set", first(lambda q, s, z: (q, s / 2, z)), "rounded"
    ),
    "scale of the next channel": Fault(
        "nutlet.constraints.integer:WeightQuantizer._set", first(lambda q, s, z: (q, s.roll(1), z)), "int8"
    ),
    "scale of the next channel after a late fold": Fault(
        "nutlet.constraints.integer:WeightQuantizer.scale_outputs",
        first(lambda q, factor: (q, factor.roll(1))),
        "trained",
    ),
    "scales along the wrong axis": Fault(
        "nutlet.constraints.integer:WeightQuantizer._spread",
        after(lambda spread, q, values, w: spread.T if w.ndim == 2 and len(w) == w.shape[1] else spread),
        "gptq",
    ),
    "weight zero point off by one": Fault(
        "nutlet.constraints.integer:WeightQuantizer.values",
        after(lambda values, q, codes: values - q._spread(q.step.detach(), codes)),
        "asymmetric",
    ),
    "chosen codes of the next channel": Fault(
        "nutlet.methods.quantization.rounding:_representable", after(lambda weight, *args: weight.roll(1, 0)), "rounded"
    ),
    "shared values shifted": Fault(
        "nutlet.constraints.codebook:Codebook.values",
        lambda original: lambda self, codes: original(self, (codes + 1) % len(self.shared)),
        "codebook",
    ),
    "shared values halved": Fault(
        "nutlet.constraints.codebook:Codebook.fit",
        after(lambda codebook, *args: _halved_codebook(codebook)),
        "codebook",
    ),
    "binary scale halved": Fault(
        "nutlet.constraints.binary_ternary:Binarizer.refit", after(lambda r, q, w: q.scale.data.div_(2)), "binary"
    ),
    "activation zero point off by one": Fault(
        "nutlet.methods.quantization.integers:calibrate",
        _scales(lambda entry: entry.update(zero_point=min(entry["zero_point"] + 1, 255))),
        "int8",
    ),
    "activation zero points of two minds": Fault(
        "nutlet.graph.activation_quantizers:ActivationQuantizer.forward", lambda original: _other_zero, "int8"
    ),
    "activation range halved": Fault(
        "nutlet.methods.quantization.integers:calibrate",
        _scales(lambda entry: entry.update(scale=entry["scale"] / 2)),
        "int8",
    ),
    "activation quantizers at the wrong sites": Fault(
        "nutlet.methods.quantization.integers:calibrate", after(_elsewhere), "int8"
    ),
    "activation quantizers carried to other sites": Fault(
        "nutlet.methods.base:reattach", after(_moved_quantizers), "int8, masked"
    ),
    "activation quantizers carried with half the scale": Fault(
        "nutlet.methods.base:reattach", after(_halved_quantizers), "int8, masked"
    ),
    "equalization not compensated": Fault(
        "nutlet.methods.quantization.equalize:Link", lambda _: _Uncompensated, "equalized"
    ),
    "smoothing forgets the inverse": Fault(
        "nutlet.methods.quantization.smooth:links", after(_uncompensated), "smoothed"
    ),
    "factors in another order": Fault("nutlet.methods.low_rank.decompositions:svd", after(_reordered), "factorized"),
    "factors of kernels in another order": Fault(
        "nutlet.methods.low_rank.decompositions:tucker", after(_reordered), "factorized kernels"
    ),
    "another block dropped": Fault(
        "nutlet.methods.pruning.drop_blocks:DropBlocks.apply", first(_another_block), "shallower"
    ),
    "learned scale lost after training": Fault(
        "nutlet.compression.verify:sync_dense", after(_halved_learned), "trained"
    ),
    "mask lost in training": Fault(
        "nutlet.methods.fine_tune:FineTune.train", after(lambda r, s, model, c: _unmasked(r, model)), "trained"
    ),
    "packed codes shifted": Fault(
        "nutlet.formats.packed.pack:pack_integers",
        first(lambda places, levels: ((places + 1) % levels, levels)),
        "int4",
    ),
    "unpacked in another order": Fault(
        "nutlet.formats.packed.pack:unpack_integers", after(lambda places, *args: places[::-1]), "int4"
    ),
    "bias lost in the file": Fault("nutlet.formats.onnx.export:slim", after(_bias_lost), "int8, dense"),
    "two weights of the file mixed": Fault("nutlet.formats.onnx.export:slim", after(_mixed), "int8"),
    "codes shifted in the file": Fault(
        "nutlet.graph.finalize:_stored", after(lambda stored, *args, **kw: (stored[0].roll(1, 0), stored[1])), "int8"
    ),
    "scale halved in the file": Fault(
        "nutlet.graph.finalize:IntegerWeight.__init__", first(lambda s, scale, axis: (s, scale / 2, axis)), "int8"
    ),
    "activation scale lost in the file": Fault(
        "nutlet.graph.activation_quantizers:ActivationQuantizer.frozen",
        lambda _: lambda self: ActivationQuantizer(self.step / 2, self.zero_point),
        "int8",
    ),
}
"""By name. A new fault is one entry."""


@contextlib.contextmanager
def planted(fault: Fault | None) -> Iterator[None]:
    """Replace, for the block, what the fault replaces."""
    if fault is None:
        yield
        return
    place, _, name = fault.target.partition(":")
    *holders, attribute = name.split(".")
    owner: Any = __import__(place, fromlist=["_"])
    for holder in holders:
        owner = getattr(owner, holder)
    mutant = fault.mutant(getattr(owner, attribute))
    static = isinstance(owner, type) and isinstance(vars(owner).get(attribute), staticmethod)
    with mock.patch.object(owner, attribute, staticmethod(mutant) if static else mutant):
        yield


_MADE: dict[str, tuple[nn.Module, nl.Data]] = {}


def caught(recipe: str, fault: Fault | None = None) -> str:
    """Return the message by which a comparison finds the fault; an empty text where none does."""
    kind, steps = RECIPES[recipe]
    model, data = _MADE.setdefault(kind, tiny.tiny(kind))
    with planted(fault), warnings.catch_warnings(record=True) as told, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        try:
            result = nl.compress(copy.deepcopy(model), steps, data)
            result.save(Path(folder) / "saved")
            result.export(Path(folder) / "model.onnx")
        except nl.NutletError as error:
            return f"{type(error).__name__}: {error}"
    said = [note for step in result.steps for note in step.notes] + [str(warning.message) for warning in told]
    return next((text for text in said if any(sign in text for sign in SAID)), "")


def main() -> None:
    torch.set_num_threads(1)
    chosen = sys.argv[1:]
    rows = Rows("planted_faults", "all", [0])
    false = {recipe: text for recipe in RECIPES if not chosen and (text := caught(recipe))}
    for recipe, text in false.items():
        print(f"FALSE ALARM {recipe}: {text}")
    found = {}
    for name, fault in FAULTS.items():
        if not chosen or name in chosen:
            found[name] = text = caught(fault.recipe, fault)
            print(f"{'caught' if text else 'MISSED'}  {name} ({fault.recipe}): {text[:200]}", flush=True)
    print(f"{sum(map(bool, found.values()))} of {len(found)} caught, {len(false)} false alarms")
    if not chosen:
        rows.add("faults", len(found), "faults", None)
        rows.add("caught", sum(map(bool, found.values())), "faults", len(found))
        rows.add("recipes", len(RECIPES), "recipes", None)
        rows.add("false_alarms", len(false), "recipes", 0)
        rows.write()


if __name__ == "__main__":
    main()
