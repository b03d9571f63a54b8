"""What anybody can read in the shipped file as it lies there, without running it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nutlet.attacks.base import EVERY_TASK, Attack, AttackerKnowledge, AttackResult, Goal, register_attack
from nutlet.formats import format_of
from nutlet.formats.base import Contents, StoredTensor
from nutlet.oracle import Access, Oracle
from nutlet.storage import packed_size

__all__ = ["FileLeaks"]

_EXAMPLE = 80
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
    whole file. Of packed weights it is what they unpack to. What the file says on purpose, how inputs are prepared and
    what classes are called, is no leak: it is told apart, as ``input``, where there is any.
    """

    use_when: ClassVar[str] = "the first thing anybody does who has the file: look into it"
    goal: ClassVar[Goal] = "file"
    access: ClassVar[Access] = "file"
    needs: ClassVar[tuple[str, ...]] = ("file",)
    measure: ClassVar[str] = "what can be read in the file, of a fixed list"
    tasks: ClassVar[tuple[str, ...]] = EVERY_TASK
    source: ClassVar[str] = "Sun et al. 2021, Mind Your Weight(s), arXiv:2002.07687"

    def run(self, oracle: Oracle, knowledge: AttackerKnowledge, budgets: Sequence[int]) -> Iterator[AttackResult]:
        """Yield once what is readable; nothing is asked.

        Raises:
            ModelError: the format of the file has no reader.
            StorageError: see :meth:`nutlet.formats.base.Reader.inspect`.
        """
        assert knowledge.file is not None
        form = format_of(knowledge.file)
        contents = form.need_reader().inspect(knowledge.file)
        parameters = sum(tensor.values.size for tensor in contents.tensors)
        items = _items(contents, parameters)
        facts = {
            "items": items,
            "parameters": parameters,
            "bits_per_parameter": sum(t.values.size * t.bits for t in contents.tensors) / max(1, parameters),
            "zeros": sum(int((t.values == t.zero).sum()) for t in contents.tensors) / max(1, parameters),
            "bytes_zstd": packed_size(form.read(knowledge.file)),
        }
        if told := [_short(text.text) for text in contents.texts if text.kind == "input"]:
            facts["input"] = told
        found = sum(item["found"] for item in items) / len(items)
        yield AttackResult(queries=oracle.queries, share=found, facts=facts)


def _items(contents: Contents, parameters: int) -> list[dict[str, Any]]:
    """Return the list: what was looked for, whether it is there, and the first example."""

    def of(kind: str) -> list[str]:
        return [text.text for text in contents.texts if text.kind == kind]

    # Classes may be called anything, Dataset or St.Bernard too; a path of a file is one wherever it stands.
    everything = [text.text for text in contents.texts if text.kind != "input"]
    layers = contents.operators
    found: dict[str, list[str]] = {
        "architecture": [f"{len(layers)} layers: {', '.join(layers[:8])}"] if layers else [],
        "weights": _readable(contents.tensors, parameters),
        "module paths": [text for text in of("name") if _MODULE_PATH.match(text)],
        "class names, stack traces, metadata": of("metadata")
        or [text for text in everything if _CLASS_OR_TRACE.search(text)],
        "doc strings": of("doc"),
        "file paths": [match[0] for text in contents.texts if (match := _FILE_PATH.search(text.text))],
        "producer": [contents.producer] if contents.producer else [],
        "training traces": [*contents.training, *(text for text in everything if _TRAINING.search(text))],
    }
    return [
        {"item": item, "found": bool(examples), "example": _short(examples[0]) if examples else ""}
        for item, examples in found.items()
    ]


def _short(text: str) -> str:
    """Return the text on one line, cut to the length of an example and without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(line.split())
    if len(line) <= _EXAMPLE:
        return line
    half = (_EXAMPLE - 3) // 2
    return f"{line[:half]}...{line[-half:]}"  # of a path, the end says most


def _readable(tensors: Sequence[StoredTensor], parameters: int) -> list[str]:
    """Return an example of numbers that are plain to read; none where they are not."""
    # Integers always pass, and are readable as they are: their scale is beside them.
    plain = 0
    for tensor in tensors:
        size = np.abs(tensor.values)
        plain += int(((size == 0) | ((size > _MAGNITUDES[0]) & (size < _MAGNITUDES[1]))).sum())
    if plain <= 0.99 * parameters:
        return []
    return [", ".join(f"{number:.4g}" for number in t.values.flatten()[:6]) for t in tensors if t.values.size][:1]
