"""What anybody can read in the shipped file as it lies there, without running it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.formats.onnx.packing import load_unpacked
from nutlet.formats.onnx.session import read_onnx
from nutlet.oracle import Access, Oracle
from nutlet.storage import packed_size

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

__all__ = ["FileLeaks"]

_MOST_TEXTS = 50_000
_LONGEST_TEXT = 500
_EXAMPLE = 80
_LAYERS = frozenset({"Conv", "ConvInteger", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "MatMulInteger",
                     "QLinearConv", "QLinearMatMul", "RNN"})  # fmt: skip
_WEIGHT_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 10: 16, 11: 64, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4,
                23: 4}  # fmt: skip
"""Bits of one number by its ONNX type: floats, and the integers that weights are quantized to."""
_INTEGER_TYPES = {2, 3, 4, 5, 21, 22}
_MAGNITUDES = 1e-30, 1e6
"""Weights lie between; half of all random 32-bit patterns, as encryption leaves them, do not."""

_MODULE_PATH = re.compile(r"^/?[A-Za-z_]\w*(?:[./]\w+)*[./][A-Za-z_]\w*$")
_CLASS_OR_TRACE = re.compile(r'File "[^"]+", line \d+|\w\.[A-Z]\w{0,60}[a-z]|Traceback')
# All repetitions are bounded: the text comes from outside.
_FILE_PATH = re.compile(
    r"(?:[A-Za-z]:\\|/)(?:[\w.+-]{1,60}[/\\]){0,12}[\w.+-]{1,60}\.(?:py|ipynb|pth?|ckpt|onnx|h5|json|ya?ml|csv|np[yz]|safetensors)\b"
    r"|/(?:home|root|Users|mnt)/\w+|[A-Za-z]:\\Users\\\w+"
)
_TRAINING = re.compile(
    r"\bepochs?\b|optimi[sz]er|learning[_ ]rate|weight[_ ]decay|\bdata_?set|\btrain(?:ing)?[_ ](?:loss|acc|data)"
    r"|\b(?:adamw?|sgd|cifar|imagenet|mnist)\b",
    re.IGNORECASE,
)


@register_attack
@dataclass(frozen=True, kw_only=True)
class FileLeaks(Attack):
    """Read the file against a fixed list of what it may give away (Sun et al. 2021, Mind Your Weight(s)).

    The facts hold ``items``, one per entry of the list with ``found`` and an example, and what the
    stored weights come to: ``parameters``, ``bits_per_parameter``, the share of ``zeros``, and ``bytes_zstd`` of the
    whole file. Weights are the stored tensors of floats and of integers up to 16 bits, without scales and zero points.
    """

    use_when: ClassVar[str] = "the first thing anybody does who has the file: look into it"
    goal: ClassVar[Goal] = "file"
    access: ClassVar[Access] = "file"
    needs: ClassVar[tuple[str, ...]] = ("file",)
    measure: ClassVar[str] = "what can be read in the file, of a fixed list"
    source: ClassVar[str] = "Sun et al. 2021, Mind Your Weight(s), arXiv:2002.07687"

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield once what is readable; nothing is asked.

        Raises:
            StorageError: see :func:`~nutlet.formats.onnx.session.read_onnx`.
        """
        assert knowledge.file is not None
        content = read_onnx(knowledge.file)
        model = load_unpacked(content)
        weights = _Weights.of(model)
        items = _items(model, weights)
        facts = {
            "items": items,
            "parameters": weights.parameters,
            "bits_per_parameter": weights.bits / max(1, weights.parameters),
            "zeros": weights.zeros / max(1, weights.parameters),
            "bytes_zstd": packed_size(content),
        }
        found = sum(item["found"] for item in items) / len(items)
        yield AttackResult(queries=oracle.queries, share=found, facts=facts)


def _items(model: onnx.ModelProto, weights: _Weights) -> list[dict[str, Any]]:
    """Return the list: what was looked for, whether it is there, and the first example."""
    texts = list(islice(_texts(model, ""), _MOST_TEXTS))
    docs = [text for place, text in texts if place.endswith(".doc_string")]
    extra = [(place, text) for place, text in texts if ".metadata_props." in place]
    names = [text for place, text in texts if place.rpartition(".")[2] in ("name", "input", "output")]
    producer = f"{model.producer_name} {model.producer_version}".strip()
    notes = [text for place, text in extra if place.endswith(".value")]
    everything = [text for _, text in texts]
    training = [f"training_info of {len(model.training_info)} entries"] if model.training_info else []
    found: dict[str, list[str]] = {
        "architecture": weights.layers,
        "weights": weights.readable,
        "module paths": [text for text in names if _MODULE_PATH.match(text)],
        "class names, stack traces, metadata": notes or [text for text in everything if _CLASS_OR_TRACE.search(text)],
        "doc strings": docs,
        "file paths": [match[0] for text in everything if (match := _FILE_PATH.search(text))],
        "producer": [producer] if producer else [],
        "training traces": training + [text for text in everything if _TRAINING.search(text)],
    }
    return [
        {"item": item, "found": bool(examples), "example": _short(examples[0]) if examples else ""}
        for item, examples in found.items()
    ]


def _texts(message: Message, place: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a message that is not empty, with the names of the fields that lead to it.

    The depth is that of the message, which the parser has bounded.
    """
    for field, value in message.ListFields():
        here = f"{place}.{field.name}"
        if field.type == field.TYPE_MESSAGE:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                yield from _texts(inner, here)
        elif field.type == field.TYPE_STRING or here.endswith((".attribute.s", ".attribute.strings")):
            for text in (value,) if isinstance(value, (str, bytes)) else value:
                if text:
                    text = text[:_LONGEST_TEXT]
                    yield here, text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _short(text: str) -> str:
    """Return the text on one line, cut to the length of an example and without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(line.split())
    if len(line) <= _EXAMPLE:
        return line
    half = (_EXAMPLE - 3) // 2
    return f"{line[:half]}...{line[-half:]}"  # of a path, the end says most


@dataclass(frozen=True)
class _Weights:
    """The trained numbers in a file.

    Args:
        parameters: how many.
        bits: that they take, before any packing.
        zeros: how many are zero.
        layers: operators with weights, and the shapes of these.
        readable: an example of numbers that are plain to read; empty where there are none.
    """

    parameters: int
    bits: int
    zeros: int
    layers: list[str]
    readable: list[str]

    @staticmethod
    def of(model: onnx.ModelProto) -> _Weights:
        nodes = list(model.graph.node)
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        stored |= {
            node.output[0]: attribute.t
            for node in nodes
            for attribute in node.attribute
            if node.op_type == "Constant" and node.output and attribute.name == "value"
        }
        grids = [node for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        settings = {name for node in grids for name in node.input[1:]}
        zero_points = {
            node.input[0]: (node.input[2], next((a.i for a in node.attribute if a.name == "axis"), 1))
            for node in grids
            if len(node.input) > 2
        }
        parameters = bits = zeros = plain = 0
        readable: list[Any] = []
        for name, tensor in stored.items():
            if tensor.data_type not in _WEIGHT_BITS or not tensor.dims or name in settings:
                continue
            numbers = _numbers(tensor)
            if numbers is None:
                continue
            parameters += numbers.size
            bits += numbers.size * _WEIGHT_BITS[tensor.data_type]
            zero, axis = zero_points.get(name, ("", 1))
            zeros += int((numbers == _aligned(stored.get(zero), numbers.shape, axis)).sum())
            size = np.abs(numbers)
            # Integers always pass, and are readable as they are: their scale is beside them.
            plain += int(((size == 0) | ((size > _MAGNITUDES[0]) & (size < _MAGNITUDES[1]))).sum())
            if not readable and numbers.size:
                readable = [", ".join(f"{number:.4g}" for number in numbers.flatten()[:6])]
        return _Weights(parameters, bits, zeros, _layers(nodes, stored), readable if plain > 0.99 * parameters else [])


def _numbers(tensor: onnx.TensorProto) -> np.ndarray[Any, Any] | None:
    """Return the values of a tensor, or None where the file does not hold those it announces."""
    import onnx

    count = 1
    for size in tensor.dims:
        count *= size
    # Half a byte is the least that a number takes; dims are not to be trusted with an allocation.
    if min(tensor.dims, default=0) < 0 or count > 2 * tensor.ByteSize():
        return None
    try:
        array = onnx.numpy_helper.to_array(tensor)
        with np.errstate(all="ignore"):
            return np.asarray(array).astype(np.int32 if tensor.data_type in _INTEGER_TYPES else np.float32)
    except (TypeError, ValueError):
        return None


def _aligned(zero_point: onnx.TensorProto | None, shape: tuple[int, ...], axis: int) -> np.ndarray[Any, Any]:
    """Return the stored number that stands for zero, to be compared with a tensor of ``shape``."""
    zeros = None if zero_point is None else _numbers(zero_point)
    if zeros is not None and zeros.size == 1:
        return zeros.reshape(1)
    if zeros is not None and -len(shape) <= axis < len(shape) and zeros.shape == (shape[axis],):
        along = [1] * len(shape)
        along[axis] = zeros.size
        return zeros.reshape(along)
    return np.zeros(1)


def _layers(nodes: list[onnx.NodeProto], stored: dict[str, onnx.TensorProto]) -> list[str]:
    """Return a line for all operators with weights, in the order of the file, or none where there are none."""
    shapes = {name: tuple(tensor.dims) for name, tensor in stored.items()}
    lines = []
    for node in nodes:
        if node.op_type in ("DequantizeLinear", "Reshape", "Transpose", "Identity", "Cast"):
            if node.input and node.output and node.input[0] in shapes:
                shapes[node.output[0]] = shapes[node.input[0]]
        elif node.op_type in _LAYERS:
            own = [shapes[name] for name in node.input if len(shapes.get(name, ())) > 1]
            if own:
                lines.append(f"{node.op_type} {'x'.join(map(str, own[0]))}")
    return [f"{len(lines)} layers: {', '.join(lines[:8])}"] if lines else []
