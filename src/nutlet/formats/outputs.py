"""Which output of a file holds the scores, where it gives several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nutlet.errors import ConfigError, ModelError, nearest, printable
from nutlet.formats.base import TensorSpec

__all__ = ["chosen_output"]


def chosen_output(path: Path, outputs: Sequence[TensorSpec], wanted: str | None = None) -> str:
    """Return the name of the output ``(N, classes)``: the one ``wanted``, or the only one that can be it.

    Args:
        path: of the file, for messages.
        outputs: as the runtime lists them.
        wanted: name of the one that holds the scores.

    Raises:
        ConfigError: there is no output ``wanted``.
        ModelError: no output can hold scores, or several can.
    """
    listed = printable(", ".join(f"{o.name!r}: {o.dtype} {list(o.shape)}" for o in outputs), 1_000)
    if wanted is not None:
        if wanted not in {output.name for output in outputs}:
            known = [printable(output.name) for output in outputs]
            raise ConfigError(f"{path} has no output {printable(wanted)!r}; {nearest(printable(wanted), known)}")
        outputs = [output for output in outputs if output.name == wanted]
    if len(outputs) == 1 and outputs[0].is_tensor:
        return outputs[0].name
    scores = [output for output in outputs if output.is_floating or output.is_scores_by_class]
    rows = [output for output in scores if len(output.shape) == 2 or output.is_scores_by_class] or scores
    if len(rows) == 1:
        return rows[0].name
    if rows:
        raise ModelError(
            f"{path} gives several outputs that may be the scores ({listed}); expected one (N, classes): name it with "
            f"output={rows[0].name!r}, on the command line --output {rows[0].name!r}"
        )
    raise ModelError(
        f"{path} gives no tensor of scores ({listed}); expected one of floating point, (N, classes): where the file "
        "gives labels alone, export it with its probabilities"
    )
