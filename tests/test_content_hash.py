"""What makes a piece of work a different one, and what does not."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiny
from nutlet.attacks.extraction.surrogate import Surrogate, fresh
from nutlet.content_hash import fingerprint
from nutlet.data.examples import Examples, flip_and_crop
from nutlet.errors import ModelError
from nutlet.loading.factory import build


@dataclass(frozen=True)
class Setting:
    rate: float = 0.1
    name: str = "a"


DIFFERENT: list[tuple[Any, Any]] = [
    (1, 2),
    (1, 1.0),
    (1, True),
    (1, "1"),
    (None, "None"),
    ("ab", "ba"),
    (b"ab", "ab"),
    (0.1, 0.2),
    ([1, 2], [2, 1]),
    ([1, 2], (1, 2)),
    ([[1], 2], [1, [2]]),
    (["a", "b"], ["a;", "b"]),
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"b": 1}),
    ({"a": {"b": 1}}, {"a": {"b": 2}}),
    (np.zeros(2), np.ones(2)),
    (np.zeros(2), np.zeros(3)),
    (np.zeros((2, 3)), np.zeros((3, 2))),
    (np.zeros(2, "float32"), np.zeros(2, "int32")),
    (np.zeros(2), torch.zeros(2)),
    (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
    (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
    (torch.tensor(True), torch.tensor(False)),
    (torch.arange(6).view(2, 3), torch.arange(6).view(3, 2)),
    (Setting(), Setting(rate=0.2)),
    (Setting(), Setting(name="b")),
    (flip_and_crop(), flip_and_crop(padding=2)),
    (functools.partial(max, 1), functools.partial(max, 2)),
    (functools.partial(max, key=abs), functools.partial(min, key=abs)),
    (F.relu, F.gelu),
    (nn.ReLU, nn.GELU),
    (lambda x: x + 1, lambda x: x + 2),
    (lambda x: x.real, lambda x: x.imag),
]


@pytest.mark.parametrize("number", range(len(DIFFERENT)))
def test_a_change_of_any_part_changes_it(number: int) -> None:
    one, other = DIFFERENT[number]
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint({"in": [one]}) != fingerprint({"in": [other]})
    assert fingerprint(one) == fingerprint(one)


def test_what_is_the_same_has_the_same() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({1: 1, "1": 2}) == fingerprint({"1": 2, 1: 1})
    assert fingerprint(np.arange(12).reshape(3, 4).T) == fingerprint(
        np.ascontiguousarray(np.arange(12).reshape(3, 4).T)
    )
    assert fingerprint(torch.arange(6).view(2, 3).T) == fingerprint(torch.arange(6).view(2, 3).T.contiguous())
    assert fingerprint(torch.ones(2, requires_grad=True)) == fingerprint(torch.ones(2))
    assert fingerprint(Setting(0.1)) == fingerprint(Setting())


def test_where_one_value_ends_and_the_next_begins() -> None:
    assert fingerprint(1, 2) != fingerprint([1, 2])
    assert fingerprint("a", "b") != fingerprint("ab")
    assert fingerprint([], [1]) != fingerprint([1], [])
    assert fingerprint() != fingerprint(None)


def test_modules_of_the_same_weights_are_one() -> None:
    model, _ = tiny.tiny("cnn")
    same = tiny.TinyCNN().eval()
    same.load_state_dict(model.state_dict())
    assert fingerprint(same) == fingerprint(model)
    with torch.no_grad():
        next(same.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(same) != fingerprint(model)


class Scaled(nn.Module):
    """A module whose plain attributes do something, and are shown by nothing."""

    def __init__(self, scale: float = 1.0, shift: torch.Tensor | None = None, activation: Any = F.relu) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.scale = scale
        self.shift = [shift]
        self.activation = activation
        self.lock = threading.Lock()  # what cannot be told is left out


def test_modules_differ_by_what_their_weights_do_not_show() -> None:
    state = nn.Linear(2, 2).state_dict()

    def made(*arguments: Any) -> str:
        module = Scaled(*arguments)
        module.fc.load_state_dict(state)
        return fingerprint(module)

    assert made() == made(1.0)
    variants = [made(), made(2.0), made(1.0, torch.ones(2)), made(1.0, torch.zeros(2)), made(1.0, None, F.gelu)]
    variants += [
        made(1.0, None, lambda x: x),
        made(1.0, None, lambda x: -x),
        fingerprint(nn.Conv2d(1, 2, 3, padding=1)),
    ]
    assert len(set(variants)) == len(variants)
    convolutions = {fingerprint(fresh(nn.Conv2d(2, 2, 3, **more), 0)) for more in ({}, {"padding": 1}, {"stride": 2})}
    assert len(convolutions) == 3


def test_a_thief_is_told_by_all_of_it() -> None:
    architecture = nn.Linear(4, 2)
    surrogate = Surrogate(architecture=architecture, augment=flip_and_crop())
    variants = [
        surrogate, Surrogate(architecture=architecture), Surrogate(architecture=fresh(architecture, 1),
        augment=flip_and_crop()), Surrogate(architecture=architecture, augment=flip_and_crop(), effort=0.5),
    ]  # fmt: skip
    assert len({fingerprint(variant) for variant in variants}) == 4
    assert fingerprint(Surrogate(architecture=architecture, augment=flip_and_crop())) == fingerprint(surrogate)


def test_examples_are_told_by_all_of_them() -> None:
    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4)
    examples = Examples(x, y)
    variants = [
        examples,
        Examples(x + 1, y),
        Examples(x, y.flip(0)),
        Examples(x, y, mean=(0.5,)),
        examples.subset(y[:3]),
    ]
    assert len({fingerprint(variant) for variant in variants}) == 5


def test_a_path_is_told_by_what_is_in_the_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    missing = fingerprint(one)
    one.write_text("a")
    other.write_text("a")
    before = fingerprint(one)
    assert before == fingerprint(other) != missing
    one.write_text("b")
    assert fingerprint(one) != before


def test_closures_defaults_and_methods() -> None:
    def adds(count: int) -> Any:
        def add(x: int, more: int = 1) -> int:
            return x + count + more

        return add

    class Adder:
        def __init__(self, count: int) -> None:
            self.count = count

        def add(self, x: int) -> int:
            return x + self.count

        def fingerprint(self) -> str:
            return f"adder of {self.count}"

    assert fingerprint(adds(1)) == fingerprint(adds(1)) != fingerprint(adds(2))
    changed = adds(1)
    changed.__defaults__ = (2,)
    assert fingerprint(changed) != fingerprint(adds(1))
    assert fingerprint(Adder(1).add) == fingerprint(Adder(1).add) != fingerprint(Adder(2).add)
    assert fingerprint(Adder(1)) == fingerprint(Adder(1)) != fingerprint(Adder(2))


USER = """
from dataclasses import dataclass
from torch import nn

class Base(nn.Module):
    def forward(self, x):
        return x * 2

class Net(Base):
    pass

@dataclass(frozen=True)
class Noise:
    size: float = 1.0
    def __call__(self, x, generator):
        return x + self.size

def augment(x, generator):
    return x + 1
"""


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("augment", "x + 1", "x + 2"), ("Net", "x * 2", "x * 3"), ("Noise", "x + self.size", "x - self.size")],
)
def test_code_of_the_user_is_told_by_its_source(tmp_path: Path, name: str, old: str, new: str) -> None:
    found = []
    for number, text in enumerate((USER, USER.replace(old, new), USER + "\n# something else")):
        path = tmp_path / f"{number}" / "user_of_fingerprint.py"
        path.parent.mkdir()
        path.write_text(text)
        sys.modules.pop("user_of_fingerprint", None)
        made = build(f"{path}:{'Net' if name == 'Net' else 'Noise'}", ModelError)
        found.append(fingerprint(sys.modules["user_of_fingerprint"].augment if name == "augment" else made))
        sys.path.remove(str(path.parent))
    sys.modules.pop("user_of_fingerprint", None)
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("value", [object(), {1, 2}, [object()], {"a": object()}, np.array([object()]), 1j])
def test_what_cannot_be_told_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be told"):
        fingerprint(value)


def test_another_process_finds_the_same() -> None:
    code = """
import torch
from torch import nn
from torch.nn import functional as F
from nutlet.content_hash import fingerprint
from nutlet.attacks.extraction.surrogate import fresh
print(fingerprint({"b": [1, None, 0.1], "a": F.relu}, torch.arange(3), fresh(nn.Linear(3, 2), 0)))
"""
    here = fingerprint({"a": F.relu, "b": [1, None, 0.1]}, torch.arange(3), fresh(nn.Linear(3, 2), 0))
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
