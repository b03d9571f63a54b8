"""File formats, a folder or a file for each: how a module is written, run, and read back."""

from nutlet.formats.base import Contents, Format, Session, StoredTensor, TensorSpec, Text, register_format
from nutlet.formats.known import DEFAULT, format_for, format_named, format_of, is_model_file, known_formats
from nutlet.formats.runtime import Runtime

__all__ = [
    "DEFAULT",
    "Contents",
    "Format",
    "Runtime",
    "Session",
    "StoredTensor",
    "TensorSpec",
    "Text",
    "format_for",
    "format_named",
    "format_of",
    "is_model_file",
    "known_formats",
    "register_format",
]
