"""A copy of the user's module that is ready for work: float32, on the CPU, with parameters that are parameters.

Nothing here changes the user's module. What is taken off the copy (hooks that make a weight anew in every forward,
wrappers of compilers and of parallel training) leaves its outputs in evaluation mode as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from nutlet.errors import ModelError, first_line
from nutlet.graph.detaching import Detaching
from nutlet.tasks.inputs import Inputs, cast, shapes_of

__all__ = ["clean_copy"]

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def clean_copy(model: nn.Module, example: Inputs | None = None) -> tuple[nn.Module, list[str]]:
    """Return a copy of ``model`` that every method can work on, in evaluation mode, and notes on what was changed.

    Args:
        model: any module; it is not changed.
        example: inputs ``(B, ...)`` that give lazy layers their sizes; without, such layers stay as they are.

    Raises:
        ModelError: it cannot be copied or followed: a compiled script, a module quantized by torch, without values.

    >>> net = nn.Linear(2, 3).half()
    >>> ready, notes = clean_copy(net)
    >>> ready.weight.dtype, len(notes), net.weight.dtype
    (torch.float32, 1, torch.float16)
    """
    _refuse(model)
    notes: list[str] = []
    ready = _copied(model).cpu().eval()
    if example is not None and any(isinstance(module, LazyModuleMixin) for module in ready.modules()):
        notes += _initialised(ready, example)
    notes += _plain_weights(ready)
    notes += _in_float32(ready)
    for tensor in (*ready.parameters(), *ready.buffers()):
        if not is_lazy(tensor):  # sums round differently in another memory format
            tensor.data = tensor.data.contiguous()
    return ready, notes


def _refuse(model: nn.Module) -> None:
    """Raise ModelError for modules whose forward is no Python that can be followed, or that have no values."""
    for name, module in model.named_modules():
        who = f"the module {name!r}" if name else "the model"
        kind = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{who} is TorchScript ({kind.__name__}), whose forward cannot be followed; expected the nn.Module it "
                "was made from: build that, and load_state_dict(scripted.state_dict()) into it"
            )
        if any(parent.__module__.startswith("torch.export") for parent in kind.__mro__):
            raise ModelError(
                f"{who} is a module from torch.export, which is fixed in one mode; expected the nn.Module it was "
                "exported from, or the program in a file: torch.export.save(program, 'model.pt2'), then "
                "nutlet.load_model('model.pt2')"
            )
        if kind.__module__.startswith(_QUANTIZED):
            raise ModelError(
                f"{who} is quantized already ({kind.__module__}.{kind.__name__}); expected weights in floating point: "
                "hand in the model as it was before"
            )
    empty = [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_meta]
    if empty:
        raise ModelError(
            f"{empty[0]} is on the meta device, which holds no values; expected a model with its weights: "
            "model.to_empty(device='cpu'), then load_state_dict"
        )


def _copied(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    try:
        with Detaching():
            # The innermost first: what is put into the memo takes the place of the wrapper in all that holds it.
            for module in reversed(list(model.modules())):
                inner = _inside(module)
                if inner is not None:
                    memo[id(module)] = copy.deepcopy(inner, memo)
            return copy.deepcopy(model, memo)
    except Exception as error:  # the user's objects decide how they are copied
        raise ModelError(
            f"{_culprit(model)} cannot be copied ({type(error).__name__}: {first_line(error)}); expected a model that "
            "copy.deepcopy can copy: keep files, locks and generators out of its attributes"
        ) from error


def _inside(module: nn.Module) -> nn.Module | None:
    """Return what ``torch.compile``, data parallelism or weight averaging has wrapped, if it is that."""
    compiled = module._modules.get("_orig_mod")
    if compiled is not None:
        return compiled
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    return module.module if isinstance(module, wrappers) else None


def _culprit(model: nn.Module) -> str:
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                with Detaching():
                    copy.deepcopy(value)
            except Exception:  # this is the one that is looked for
                return f"the attribute {f'{name}.{attribute}'.lstrip('.')!r} of the model"
    return "the model"


def _initialised(model: nn.Module, example: Inputs) -> list[str]:
    """Run lazy layers once, which gives them their sizes; values that they have not yet are drawn from seed 0."""
    without = [name for name, tensor in model.state_dict(keep_vars=True).items() if is_lazy(tensor)]
    kind = next((t.dtype for t in model.parameters() if not is_lazy(t)), torch.float32)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model(cast(example, kind))
    except Exception as error:  # the forward is the user's code
        raise ModelError(
            f"the model has lazy layers, and running it on a batch of shape {shapes_of(example)} to size them raised "
            f"{type(error).__name__}: {first_line(error)}; expected a forward that takes such a batch"
        ) from error
    uncalled = [name for name, module in model.named_modules() if isinstance(module, LazyModuleMixin)]
    if uncalled:
        raise ModelError(
            f"the lazy layer {uncalled[0]} was not called by the forward and has no size; expected every layer to be "
            "used, or one of a given size"
        )
    _complete_sizes(model)
    if not without:
        return []
    return [f"lazy layers without values were drawn at random from seed 0: {', '.join(without)}"]


def _complete_sizes(model: nn.Module) -> None:
    """Set the sizes that torch leaves at zero where weights were loaded before the first forward."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd) and not module.in_channels:
            rows, columns = module.weight.shape[:2]
            module.in_channels = rows if module.transposed else columns * module.groups
        elif isinstance(module, nn.modules.batchnorm._NormBase) and not module.num_features:
            values = module.weight if module.weight is not None else module.running_mean
            module.num_features = 0 if values is None else len(values)


def _plain_weights(model: nn.Module) -> list[str]:
    """Make parameters of what hooks make anew in every forward; exact in evaluation mode."""
    notes = []
    for path, module in model.named_modules():
        for hook in list(module._forward_pre_hooks.values()):
            for kind, name, remove_constraints, consequence in _makers(hook):
                source = getattr(module, name + ("_v" if kind == "weight_norm" else "_orig"))
                trained = source.requires_grad
                remove_constraints(module, name)
                getattr(module, name).requires_grad_(trained)
                where = f"{path}.{name}".lstrip(".")
                notes.append(f"{where}: {kind} was taken off the copy, its weight is a plain parameter; {consequence}")
    return notes


def _makers(hook: Any) -> Iterator[tuple[str, str, Callable[[nn.Module, str], Any], str]]:
    if isinstance(hook, WeightNorm):
        yield "weight_norm", hook.name, remove_weight_norm, "training moves it as one"
    elif isinstance(hook, SpectralNorm):
        yield "spectral_norm", hook.name, remove_spectral_norm, "training does not bound its norm any more"
    elif isinstance(hook, prune.BasePruningMethod):
        why = "training may move its zeros: PruneWeights as the first step holds them"
        yield "torch.nn.utils.prune", hook._tensor_name, prune.remove, why


def _in_float32(model: nn.Module) -> list[str]:
    tensors = (*model.parameters(), *model.buffers())
    kinds = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"}
    if any(t.is_complex() for t in model.parameters()):
        raise ModelError("the model has complex parameters; expected real ones: nothing here works on complex weights")
    if not kinds:
        return []
    model.float()
    return [f"values of {', '.join(sorted(kinds))} were converted to float32: everything here computes in it"]
