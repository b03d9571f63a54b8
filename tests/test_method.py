"""The registry, and options as dataclasses allow them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

import nutlet as nl
from nutlet.attacks import RMIA
from nutlet.errors import ConfigError
from nutlet.methods import base as method
from nutlet.methods import known_methods, method_from_dict
from nutlet.methods.base import Method, register, sentence_of


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Method]]:
    monkeypatch.setattr(method.REGISTRY, "kinds", dict(known_methods()))
    return method.REGISTRY.kinds


def test_a_plugin_that_does_not_load_says_so_every_time(
    registry: dict[str, type[Method]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def load(self) -> object:
            raise ImportError("no module named parts")

    monkeypatch.setattr(method.REGISTRY, "plugins_loaded", False)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Broken()])
    for _ in range(2):
        with pytest.raises(ImportError, match="parts"):
            known_methods()


def test_an_option_with_a_default_factory_may_be_left_out(registry: dict[str, type[Method]]) -> None:
    @method.register
    @dataclass(frozen=True, kw_only=True)
    class Listed(Method):
        rates: tuple[float, ...] = field(default_factory=lambda: (0.5, 0.25))

    assert "Listed" in registry
    assert method_from_dict("Listed") == Listed()
    assert Listed().to_dict() == {"Listed": {}}
    assert Listed(rates=(1.0,)).to_dict() == {"Listed": {"rates": [1.0]}}


def test_a_class_that_is_defined_again_replaces_its_predecessor(registry: dict[str, type[Method]]) -> None:
    def cell(default: float) -> type[Method]:
        @method.register
        @dataclass(frozen=True, kw_only=True)
        class Tried(Method):
            share: float = default

        return Tried

    first, second = cell(0.5), cell(0.25)
    assert registry["Tried"] is second
    assert method_from_dict("Tried") == second() != first()
    with pytest.raises(ConfigError, match="a method named 'Quantize' is registered already; expected a new name"):
        method.register(type("Quantize", (Method,), {}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nl.Quantize(bit=4), "Quantize has no option 'bit'; did you mean 'bits'?"),  # type: ignore[call-arg]
        (lambda: nl.Protocol(seed=3), "Protocol has no option 'seed'; did you mean 'seeds'?"),  # type: ignore[call-arg]
        (lambda: nl.Endpoint(ulr="x"), "Endpoint has no option 'ulr'; did you mean 'url'?"),  # type: ignore[call-arg]
        (lambda: RMIA(model=4), "RMIA has no option 'model'; did you mean 'models'?"),  # type: ignore[call-arg]
    ],
)
def test_a_misspelt_option_in_python_is_told_as_in_yaml(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


def test_options_of_an_own_constructor_are_its_own() -> None:
    class Half(nl.PruneWeights):
        def __init__(self, **given: int) -> None:
            super().__init__(sparsity=given["percent"] / 100)

    assert Half(percent=50).sparsity == 0.5


def test_a_misspelt_name_is_told() -> None:
    with pytest.raises(AttributeError, match="'Quantise'; did you mean 'Quantize'"):
        nl.Quantise  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no attribute 'zzz'$"):
        nl.zzz  # noqa: B018


def test_a_method_is_told_in_one_sentence(registry: dict[str, type[Method]]) -> None:
    @register
    @dataclass(frozen=True, kw_only=True)
    class Silent(Method):
        use_when: ClassVar[str] = "nothing else helps"

    @register
    @dataclass(frozen=True, kw_only=True)
    class Told(Method):
        """Round ``x`` for :class:`~nutlet.Quantize` (twice,
        Nobody et al. 2020, arXiv:1).

        More.
        """

    assert sentence_of(Silent) == "nothing else helps"
    assert sentence_of(Told) == "Round x for Quantize."
    assert sentence_of(Method).endswith("YAML.")
    for kind in registry.values():
        if kind.__module__.startswith("nutlet."):
            assert sentence_of(kind).endswith("."), kind
            assert not re.search(r"`|arXiv|\n", sentence_of(kind)), kind
