"""nutlet: a small model in a hard shell.

Compress a trained model, ship it, and measure on the very file that ships what it costs. Names are loaded when they
are first used, so that importing nutlet is quick::

    import nutlet as nl

    small = nl.compress(model, [nl.PruneChannels(macs=0.5), nl.Quantize()], data, recover=nl.Distill(epochs=5))
    small.export("model.onnx")
    print(nl.measure("model.onnx", data, against=model))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nutlet.attacks.base import Attack, AttackerKnowledge, AttackResult, register_attack
    from nutlet.attacks.extraction.surrogate import Surrogate
    from nutlet.auditing import Audit, Protocol, audit, audit_files
    from nutlet.compression.check import Preflight, check
    from nutlet.compression.compressed import Compressed
    from nutlet.compression.diagnose import Diagnosis, diagnose
    from nutlet.compression.history import Step
    from nutlet.compression.pipeline import compress
    from nutlet.compression.recipe import load_recipe
    from nutlet.compression.ship import ship
    from nutlet.compression.suggest import Suggestion, suggest
    from nutlet.data.examples import Data, Examples, flip_and_crop
    from nutlet.data.streamed import Streamed
    from nutlet.errors import (
        BudgetError,
        ComparisonError,
        ConfigError,
        DataError,
        ExportError,
        MissingExtra,
        ModelError,
        NutletError,
        OracleError,
        StorageError,
    )
    from nutlet.formats import Format, register_format
    from nutlet.formats.onnx.export import export_onnx
    from nutlet.formats.onnx.fixed import fix_batch
    from nutlet.formats.onnx.metadata import describe, described
    from nutlet.loading import load_data, load_model, split
    from nutlet.measurement import Goal, Measurement, measure
    from nutlet.methods import (
        GPTQ,
        AdaRound,
        Binarize,
        Cluster,
        CorrectBias,
        Distill,
        DropBlocks,
        Equalize,
        Factorize,
        FineTune,
        FixedPoint,
        HalfPrecision,
        LotteryTicket,
        MixedPrecision,
        PruneChannels,
        PruneGradually,
        PruneHeads,
        PruneSecondOrder,
        PruneWeights,
        Quantize,
        ReestimateNorms,
        Smooth,
        Student,
        Ternarize,
        TrainSparse,
        method_from_dict,
    )
    from nutlet.methods.base import Method, register
    from nutlet.oracle import Disclosure, Endpoint, Oracle
    from nutlet.progress import Progress
    from nutlet.report.comparison import Comparison, compare, results
    from nutlet.tasks import (
        Classification,
        Embedding,
        LanguageModeling,
        MultiLabel,
        Regression,
        Segmentation,
        Task,
        register_task,
    )
    from nutlet.training.context import Context

_HOMES = {
    "nutlet.compression.compressed": ("Compressed",),
    "nutlet.attacks.base": ("Attack", "AttackResult", "AttackerKnowledge", "register_attack"),
    "nutlet.auditing": ("Audit", "Protocol", "audit", "audit_files"),
    "nutlet.training.context": ("Context",),
    "nutlet.data.examples": ("Data", "Examples", "flip_and_crop"),
    "nutlet.data.streamed": ("Streamed",),
    "nutlet.compression.ship": ("ship",),
    "nutlet.compression.suggest": ("Suggestion", "suggest"),
    "nutlet.compression.diagnose": ("Diagnosis", "diagnose"),
    "nutlet.errors": (
        "BudgetError",
        "ComparisonError",
        "ConfigError",
        "DataError",
        "ExportError",
        "MissingExtra",
        "ModelError",
        "NutletError",
        "OracleError",
        "StorageError",
    ),
    "nutlet.formats": ("Format", "register_format"),
    "nutlet.formats.onnx.export": ("export_onnx",),
    "nutlet.formats.onnx.fixed": ("fix_batch",),
    "nutlet.formats.onnx.metadata": ("describe", "described"),
    "nutlet.compression.history": ("Step",),
    "nutlet.loading": ("load_data", "load_model", "split"),
    "nutlet.measurement": ("Goal", "Measurement", "measure"),
    "nutlet.methods.base": ("Method", "register"),
    "nutlet.methods": (
        "AdaRound",
        "Binarize",
        "Cluster",
        "CorrectBias",
        "Distill",
        "DropBlocks",
        "Equalize",
        "Factorize",
        "FineTune",
        "FixedPoint",
        "GPTQ",
        "HalfPrecision",
        "LotteryTicket",
        "MixedPrecision",
        "PruneChannels",
        "PruneGradually",
        "PruneHeads",
        "PruneSecondOrder",
        "PruneWeights",
        "Quantize",
        "ReestimateNorms",
        "Smooth",
        "Student",
        "Ternarize",
        "TrainSparse",
        "method_from_dict",
    ),
    "nutlet.oracle": ("Disclosure", "Endpoint", "Oracle"),
    "nutlet.tasks": (
        "Classification",
        "Embedding",
        "LanguageModeling",
        "MultiLabel",
        "Regression",
        "Segmentation",
        "Task",
        "register_task",
    ),
    "nutlet.compression.pipeline": ("compress",),
    "nutlet.compression.check": ("Preflight", "check"),
    "nutlet.progress": ("Progress",),
    "nutlet.report.comparison": ("Comparison", "compare", "results"),
    "nutlet.compression.recipe": ("load_recipe",),
    "nutlet.attacks.extraction.surrogate": ("Surrogate",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "GPTQ",
    "AdaRound",
    "Attack",
    "AttackResult",
    "AttackerKnowledge",
    "Audit",
    "Binarize",
    "BudgetError",
    "Classification",
    "Cluster",
    "Comparison",
    "ComparisonError",
    "Compressed",
    "ConfigError",
    "Context",
    "CorrectBias",
    "Data",
    "DataError",
    "Diagnosis",
    "Disclosure",
    "Distill",
    "DropBlocks",
    "Embedding",
    "Endpoint",
    "Equalize",
    "Examples",
    "ExportError",
    "Factorize",
    "FineTune",
    "FixedPoint",
    "Format",
    "Goal",
    "HalfPrecision",
    "LanguageModeling",
    "LotteryTicket",
    "Measurement",
    "Method",
    "MissingExtra",
    "MixedPrecision",
    "ModelError",
    "MultiLabel",
    "NutletError",
    "Oracle",
    "OracleError",
    "Preflight",
    "Progress",
    "Protocol",
    "PruneChannels",
    "PruneGradually",
    "PruneHeads",
    "PruneSecondOrder",
    "PruneWeights",
    "Quantize",
    "ReestimateNorms",
    "Regression",
    "Segmentation",
    "Smooth",
    "Step",
    "StorageError",
    "Streamed",
    "Student",
    "Suggestion",
    "Surrogate",
    "Task",
    "Ternarize",
    "TrainSparse",
    "audit",
    "audit_files",
    "check",
    "compare",
    "compress",
    "describe",
    "described",
    "diagnose",
    "export_onnx",
    "fix_batch",
    "flip_and_crop",
    "load_data",
    "load_model",
    "load_recipe",
    "measure",
    "method_from_dict",
    "register",
    "register_attack",
    "register_format",
    "register_task",
    "results",
    "ship",
    "split",
    "suggest",
]


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'nutlet' has no attribute {name!r}{_meant(name)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def _meant(name: str) -> str:
    """Return a hint where a public name is close; tools ask for names that nobody wrote."""
    from difflib import get_close_matches  # a module of Python's own that only a typing error needs

    close = [] if name.startswith("_") else get_close_matches(name, __all__, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def __dir__() -> list[str]:
    return __all__
