"""State dicts read from files without executing anything in them, and fitted to a model."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nutlet.errors import ModelError, StorageError, first_line, nearest, shown
from nutlet.loading.checkpoint import check_checkpoint, check_header, check_tensor
from nutlet.loading.pickled import refusal

__all__ = ["check_finite_weights", "load_into", "read_weights"]

_NESTED = ("state_dict", "model_state_dict", "model", "net")
_WRAPPERS = ("_orig_mod", "module")
"""Parts of names that come from wrappers: of ``torch.compile``, and of parallel training and weight averaging."""
_SHOWN = 4


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors``, ``.pt`` or ``.pth`` file by name.

    A checkpoint that nests its tensors (``{"state_dict": ...}``) is unwrapped.

    Raises:
        StorageError: no such file, another kind of file, or a pickle that holds code (which is not executed).
    """
    if not path.is_file():
        raise StorageError(f"found no file {path}; expected the weights as .safetensors, .pt or .pth")
    if path.suffix == ".safetensors":
        loaded = _read_safetensors(path)
    elif path.suffix in (".pt", ".pth"):
        loaded = _read_checkpoint(path)
    else:
        raise StorageError(
            f"{path} ends in {path.suffix or 'nothing'!r}; expected weights as .safetensors, .pt or .pth"
        )
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        raise StorageError(f"{path} holds a {type(loaded).__name__}; expected a state dict, names mapped to tensors")
    odd = [key for key, value in loaded.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if odd or not loaded:
        found = f"the entry {shown(odd[0])}, which is no named tensor" if odd else "no tensors"
        raise StorageError(f"{path} holds {found}; expected a state dict, as `torch.save(model.state_dict(), path)`")
    for name, tensor in loaded.items():
        check_tensor(name, tensor, path)
    return dict(loaded)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise StorageError(
            f"{path} is not a safetensors file or is damaged: {first_line(error)}; write or copy it anew"
        ) from error


def _read_checkpoint(path: Path) -> Any:
    check_checkpoint(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said in our own words below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may raise anything
        code = isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower()
        if code or "TorchScript" in str(error):
            raise StorageError(refusal(path)) from error
        raise StorageError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); expected a file written by "
            "`torch.save(model.state_dict(), path)`: it may be cut short or of another kind"
        ) from error


def load_into(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load ``weights`` into ``model``; names and shapes must agree.

    The parts of names that wrappers add (``_orig_mod`` of ``torch.compile``, ``module`` of ``DataParallel``) are looked
    over on both sides, wherever they stand. Lazy layers take their sizes from the weights.

    Raises:
        ModelError: the first missing and unexpected names, each with its nearest counterpart, or differing shapes.
    """
    own = model.state_dict()
    weights = _named_as(own, weights)
    # Counters of batch norms are of no consequence, and old checkpoints have none.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    if missing or unexpected:
        parts = []
        if missing:
            hints = [_hint(name, unexpected) for name in missing[:_SHOWN]]
            parts.append(f"{len(missing)} weights of the model are missing: {', '.join(hints)}{_more(missing)}")
        if unexpected:
            hints = [_hint(name, missing) for name in unexpected[:_SHOWN]]
            parts.append(f"{len(unexpected)} have no place in the model: {', '.join(hints)}{_more(unexpected)}")
        raise ModelError(
            f"{source} does not fit the model: {'; '.join(parts)}; expected the same names. Name the factory (and its "
            "arguments) that the weights were trained with"
        )
    differing = [
        f"{name} is {_size(weights[name])} in the file and {_size(own[name])} in the model"
        for name in weights
        if not is_lazy(own[name]) and weights[name].shape != own[name].shape
    ]
    if differing:
        raise ModelError(
            f"{source} does not fit the model: {'; '.join(differing[:_SHOWN])}{_more(differing)}; expected equal "
            "shapes. Check the factory's arguments (classes, width, input channels)"
        )
    model.load_state_dict(dict(weights), strict=False)


def _named_as(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return ``weights`` under the names of the model, where they differ only by what wrappers add."""
    if not set(weights) - set(own):
        return weights
    ours = {_unwrapped(name): name for name in own}
    theirs = {_unwrapped(name): tensor for name, tensor in weights.items()}
    if len(ours) < len(own) or len(theirs) < len(weights):  # two names would become one
        return weights
    return {ours.get(name, name): tensor for name, tensor in theirs.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def check_finite_weights(model: nn.Module) -> None:
    """Raise ModelError naming the parameters and buffers of ``model`` that hold NaN or infinity.

    Infinity is what a mask of attention holds: only parameters and running statistics may not.
    """
    tensors = [(name, t) for name, t in (*model.named_parameters(), *model.named_buffers()) if not is_lazy(t)]
    masks = {name for name, _ in model.named_buffers() if not name.endswith(("running_mean", "running_var"))}
    bad = [
        name
        for name, t in tensors
        if t.is_floating_point() and bool((t.detach().isnan() if name in masks else ~t.detach().isfinite()).any())
    ]
    if bad:
        raise ModelError(
            f"found NaN or infinity in {', '.join(bad[:_SHOWN])}{_more(bad)}; expected finite weights: training has "
            "diverged, so take an earlier checkpoint"
        )


def _hint(name: str, others: list[str]) -> str:
    guess = nearest(name, others)
    return f"{name} ({guess})" if guess.startswith("did") else name


def _more(names: list[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
