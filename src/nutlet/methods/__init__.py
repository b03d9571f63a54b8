"""Compression methods, one to a file, in a folder for each family."""

from nutlet.methods import distillation, low_rank, pruning, quantization
from nutlet.methods.distillation import *  # noqa: F403
from nutlet.methods.fine_tune import FineTune
from nutlet.methods.low_rank import *  # noqa: F403
from nutlet.methods.pruning import *  # noqa: F403
from nutlet.methods.quantization import *  # noqa: F403

__all__ = ["FineTune"]
__all__ += distillation.__all__
__all__ += low_rank.__all__
__all__ += pruning.__all__
__all__ += quantization.__all__
