"""Numbers that a user may give: what is none, or not finite, is refused in a sentence wherever it is given."""

from __future__ import annotations

import numpy as np
import pytest

import nutlet as nl
from job import invoke
from nutlet.attacks.extraction.surrogate import Surrogate
from nutlet.data.examples import Examples
from nutlet.errors import ConfigError, DataError, printable


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("audit", "--queries", "nan"), ("audit", "--queries", "1e3"), ("audit", "--queries", "-5"),
        ("audit", "--queries", "10,,20"), ("audit", "--queries", "\u00b2"), ("audit", "--effort", "inf"),
        ("audit", "--effort", "nan"), ("audit", "--answers", "top-\u00b2"), ("audit", "--answers", "rounded-\u0663"),
        ("audit", "--answers", "top-0"), ("audit", "--price", "nan"), ("audit", "--price", "inf"),
        ("audit", "--seeds", "0"), ("audit", "--shadow-models", "1"), ("audit", "--seed", "-1"),
        ("measure", "--mean", "nan"), ("measure", "--std", "inf"), ("measure", "--std", "-1"),
        ("measure", "--std", "0"), ("measure", "--batches", "0"), ("measure", "--batches", "1.5"),
        ("measure", "--seconds", "nan"), ("measure", "--seconds", "inf"),
    ],
)  # fmt: skip
def test_the_command_line(
    command: str, option: str, value: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    np.savez("data.npz", x=np.zeros((20, 4), "float32"), y=np.arange(20) % 2)
    result = invoke(command, "model.onnx", "--data", "data.npz", option, value)
    assert result.exit_code in (2, 3), result.output
    assert isinstance(result.exception, SystemExit)
    assert "expected" in result.output or "is not in the range" in result.output or "greater than" in result.output
    assert "does not exist" not in result.output


@pytest.mark.parametrize("wrong", [{"mean": (float("nan"),)}, {"std": (float("inf"),)}, {"std": (-1.0,)}])
def test_examples(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(DataError, match="expected"):
        Examples.from_arrays(np.zeros((4, 3), "float32"), np.arange(4), **wrong)


@pytest.mark.parametrize("wrong", [{"effort": float("nan")}, {"temperature": float("inf")}])
def test_a_thief(wrong: dict[str, float]) -> None:
    import torch

    with pytest.raises(ConfigError, match="expected"):
        Surrogate(architecture=torch.nn.Identity(), **wrong)  # type: ignore[arg-type]


def test_options_of_methods() -> None:
    with pytest.raises(ConfigError, match="expected a learning rate"):
        nl.FineTune(lr=float("nan"))


def test_errors_show_nothing_that_a_terminal_obeys() -> None:
    hostile = "a\x1b[2Jb\u202ec\r\x07"
    assert str(ConfigError(hostile)) == printable(hostile) == r"a\x1b[2Jb\u202ec\r\x07"
    assert len(str(ConfigError("x" * 10**6))) < 10_000
