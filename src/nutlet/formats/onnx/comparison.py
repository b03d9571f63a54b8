"""The exported bytes run in ONNX Runtime, optimised and not, and compared with the module they came from."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from nutlet.errors import ExportError, first_line
from nutlet.graph.comparison import answers, difference, plain, run
from nutlet.graph.finalize import finalize
from nutlet.graph.trace import InstrumentedModel, Record, trace
from nutlet.tasks.inputs import Inputs, as_tensors

__all__ = ["agreeing", "disagreement"]

FLOATS = 10.0
"""How many times the rounding of single precision two runtimes may be apart, which sum in another order."""
NOISE = 1.5
"""How much of the noise that quantized activations add a file may differ by: of two values that are nearly a tie, one
runtime rounds up and the other down."""
TRIES = 4
"""How often a site is left in floating point before the export is given up."""

STORED = "the weights as they are stored"
"""Said in the place of a call where the file does what its module does, which is not what the model does."""

APART = (1e-3, 0.05)
"""Of the largest value, how far a result inside may be apart without, and with, activation quantizers: a dozen steps of
8 bits."""

Export = Callable[[nn.Module, Inputs], bytes]
"""``(module, example inputs) -> content of a file``."""


def agreeing(model: nn.Module, x: Inputs, export: Export) -> bytes:
    """Return the content of a file that answers as ``model`` does, whether the runtime optimises it or not.

    Where the file differs by more than rounding, the first call that does is found by exporting the model up to it.
    Activation quantizers there are left out, with a warning that says so.

    Args:
        model: not changed.
        x: inputs to compare with, real ones, batch first.
        export: makes the content.

    Raises:
        ExportError: the file answers otherwise, and no activation quantizer is to blame.
    """
    for _ in range(TRIES):
        content = export(model, x)
        problem = disagreement(content, model, x)
        if not problem:
            return content
        site, apart = _first_apart(model, x, export)
        around = _quantizers_at(model, site)
        if not around or not isinstance(model, InstrumentedModel):
            break
        warnings.warn(
            f"{problem}, first at {site} ({apart}): the activations at {', '.join(around)} are left in floating "
            "point in this file",
            stacklevel=3,
        )
        model = _without(model, around)
    raise ExportError(
        f"{problem}, first at {site} ({apart}); expected the same answers within rounding. Change that part of the "
        "model, or leave it out of the compression (`exclude`), and please report it"
    )


def disagreement(content: bytes, model: nn.Module, x: Inputs) -> str:
    """Return in words how the file differs from ``model`` on ``x`` by more than rounding; nothing where it does not."""
    expected = run(model, x)
    allowed = _allowed(model, x, expected)
    for how, found in _in_runtime(content, x):
        if not bool(torch.isfinite(found).all()) and bool(torch.isfinite(expected).all()):
            return f"the exported file, {how}, gives NaN or infinity"
        apart = _size(found - expected) if found.shape == expected.shape else float("inf")
        if not apart <= allowed:
            return (
                f"the exported file, {how}, is {apart / max(_size(expected), 1e-30):.2g} of its answers away from the "
                f"model, where rounding makes {allowed / max(_size(expected), 1e-30):.2g}"
            )
    return ""


def _allowed(model: nn.Module, x: Inputs, expected: Tensor) -> float:
    """Return the root mean square of what rounding may move the answers by."""
    exact = plain(model, quantized=True)
    noise = NOISE * _size(run(exact, x) - expected) if isinstance(model, InstrumentedModel) else 0.0
    return noise + FLOATS * answers(exact, x).tolerance * float(expected.abs().max())


def _size(values: Tensor) -> float:
    return float(torch.nan_to_num(values.double()).square().mean().sqrt())


def _in_runtime(content: bytes, x: Inputs) -> Iterable[tuple[str, Tensor]]:
    from nutlet.formats.onnx.ort import open_session

    for how, optimized in (("optimised", True), ("not optimised", False)):
        try:
            session = open_session(content, torch.get_num_threads(), optimized=optimized)
            (found,) = session.run(None, {name: tensor.numpy() for name, tensor in as_tensors(x).items()})
        except Exception as error:  # the runtime's exceptions have no common base
            raise ExportError(
                f"ONNX Runtime does not run the exported file, {how}: {first_line(error)}; expected operations it "
                "knows: write that part of the forward in another way"
            ) from error
        yield how, torch.from_numpy(found)


class _Tap(nn.Module):
    """Hands on what passes, after the quantizer that was there, and keeps it where no tracer looks."""

    def __init__(self, edit: nn.Module | None, seen: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.edit = edit or nn.Identity()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.edit(x)
        self.seen(values)
        return values


class _Until(nn.Module):
    """A model that returns the result of one of its calls."""

    def __init__(self, model: nn.Module, record: Record, site: str) -> None:
        super().__init__()
        edits = dict(model.by_site) if isinstance(model, InstrumentedModel) else {}
        body = model.unwrap() if isinstance(model, InstrumentedModel) else model
        kept: list[Tensor] = []
        self.values: Callable[[], Tensor] = kept.pop
        edits[site] = _Tap(edits.get(site), kept.append)
        self.model = InstrumentedModel(body, record, edits)

    def forward(self, x: Inputs) -> Tensor:
        self.model(x)
        return self.values()


def _first_apart(model: nn.Module, x: Inputs, export: Export) -> tuple[str, str]:
    """Return the first call whose result differs in a file of the model up to it, by bisection, and how."""
    final = finalize(model)
    record = trace(final, x)
    sites = [name for name, site in record.sites.items() if site.op != "input" and len(site.shape) > 1]
    told = {}

    def apart(k: int) -> bool:
        short = _Until(copy.deepcopy(final), record, sites[k]).eval()
        try:
            (_, found), *_ = _in_runtime(export(short, x), x)
        except ExportError:  # what cannot stand at the end of a file says nothing
            return False
        told[k] = difference(found.double(), run(short, x).double())
        return told[k] > APART[isinstance(model, InstrumentedModel)]

    low, high = -1, len(sites) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if apart(middle) else (middle, high)
    if high not in told and not apart(high):
        return STORED, "every call of the stored model is exported as it is"
    return sites[high], f"{told[high]:.2g} of the largest value"


def _quantizers_at(model: nn.Module, site: str) -> list[str]:
    """Return the sites with activation quantizers on the result of ``site``, or else on what it reads."""
    if not isinstance(model, InstrumentedModel):
        return []
    quantized = model.by_site
    todo, found = [site], []
    while todo:
        name = todo.pop()
        if name in quantized:
            found.append(name)
        elif name in model.record.sites:
            todo += model.record.sites[name].inputs
    return sorted(set(found))


def _without(model: InstrumentedModel, sites: Iterable[str]) -> nn.Module:
    trial, gone = copy.deepcopy(model), set(sites)
    kept = {name: edit for name, edit in trial.by_site.items() if name not in gone}
    return InstrumentedModel(trial.unwrap(), trial.record, kept).eval()
