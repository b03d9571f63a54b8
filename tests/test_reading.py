"""YAML of unknown origin: what would grow, call or confuse is refused in one sentence, quickly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nutlet.compression.recipe import load_recipe
from nutlet.errors import ConfigError
from nutlet.oracle import load_endpoint
from nutlet.reading import LARGEST_YAML

ALIASES = "a: &a [x, x]\n" + "".join(f"b{k}: &b{k} [*{'a' if k == 0 else f'b{k - 1}'}, *a]\n" for k in range(30))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ALIASES, "anchor or alias 'a', which is not read"),
        ("steps: &s [Quantize]", "anchor or alias 's'"),
        ("steps: [Quantize]\n<<: {recover: FineTune}", "unknown key '<<'"),
        ("steps: !!set {a, b}", "the tag 'tag:yaml.org,2002:set', which is not read"),
        ("steps: [!!timestamp 2024-99-99]", "the tag"),
        ("steps: " + "[" * 5000, "nested more than 16 levels deep"),
        ("- " * 5000 + "x", "nested more than 16 levels deep"),
        ("steps: [{Quantize: {bits: " + "9" * 5000 + "}}]", "number '9+.* of 5,000 characters"),
        ("steps: [{Quantize: {bits: 1" + ":59" * 5000 + "}}]", "of 15,001 characters"),
        ("steps: [Quantize]\nsteps: [FineTune]", "line 2: found the key 'steps' twice"),
        ("? [a]\n: b", "a list or a mapping where a key should be"),
        ("steps: [2024-99-99]", "'2024-99-99', which does not exist"),
        ("steps: [" + "x" * 200_000 + "]", r"xx…, which does not exist"),
        ("#" * (LARGEST_YAML + 1), "more than 262,144 bytes"),
    ],
)
def test_hostile_recipes(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=says) as refusal:
        load_recipe(path)
    assert len(str(refusal.value)) < 2000
    assert time.process_time() - start < 3


def test_endpoints_are_read_with_the_same_limits(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text("url: &u https://models.example.org/a\nclasses: 3\nresponse: *u")
    with pytest.raises(ConfigError, match="line 1: found the anchor"):
        load_endpoint(path, i_own_this_endpoint=True)
    path.write_text("url: https://models.example.org/a\nclasses: " + "3" * 1000)
    with pytest.raises(ConfigError, match="of 1,000 characters"):
        load_endpoint(path, i_own_this_endpoint=True)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_recipe(tmp_path / "recipe.yaml")
