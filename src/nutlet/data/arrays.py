"""Arrays of users as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nutlet.errors import DataError, printable, shown

__all__ = ["as_tensor"]


def as_tensor(values: object, what: str) -> Tensor:
    """Return an array as a tensor, in the byte order of this machine.

    Args:
        values: an array, a tensor, or a list of numbers.
        what: they are, for messages: ``labels``.

    Raises:
        DataError: it holds what a tensor cannot (text, records, dates, objects, long doubles).
    """
    try:
        if isinstance(values, np.ndarray) and not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if (text := _text(values)) is not None:
            mend = (
                "number the classes, y = numpy.unique(y, return_inverse=True)[1]"
                if what == "labels"
                else "give a pandas DataFrame, or a .csv or .parquet file, with label=, whose texts are encoded"
            )
            raise DataError(f"{what} hold texts, as {printable(text)!r}; expected numbers: {mend}") from error
        kind = f"dtype {shown(values.dtype)}" if isinstance(values, np.ndarray) else f"type {type(values).__name__}"
        raise DataError(f"{what} have {kind}; expected numbers of up to 64 bits: convert them first") from error
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        raise DataError(f"{what} are a sparse, quantized, nested or empty (meta) tensor; expected a dense one")
    return tensor


def _text(values: object) -> str | None:
    """Return the first text among values, if there is one."""
    flat = values.flat if isinstance(values, np.ndarray) else values if isinstance(values, (list, tuple)) else ()
    return next((str(value) for value in flat if isinstance(value, str)), None)
