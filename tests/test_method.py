"""The registry, and options as dataclasses allow them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nutlet.methods import base as method
from nutlet.methods import known_methods, method_from_dict
from nutlet.methods.base import Method


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
