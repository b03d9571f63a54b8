"""Images from folders and from bytes, with Pillow, all of one size."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nutlet.errors import DataError, MissingExtra, first_line
from nutlet.findings import Finding
from nutlet.loading.npz import MAX_BYTES, Arrays, natural
from nutlet.reading import read_bytes

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["decode", "read_image_folder"]

_VALIDATION = ("val", "valid", "validation")
"""Folders that hold a validation set."""
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm"})
_GREY = frozenset({"1", "L", "LA"})
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM")
# Pillow goes by the content, not by the suffix, and for some other formats it starts programs (EPS: Ghostscript).
_MAX_PIXELS = 32 * 2**20
# Decoding takes up to 12 bytes for a pixel.
_MAX_FILE = 8 * _MAX_PIXELS


def read_image_folder(root: Path) -> Arrays:
    """Read ``root/train/CLASS/*.png`` and ``root/test/CLASS/*.png``, or ``root/CLASS/*.png`` without a test set.

    A folder ``val``, ``valid`` or ``validation`` beside ``train`` is the validation set. Classes are numbered in the
    order of their names; images that lie in ``root`` itself have none. Images are grey if all of them are, else RGB.

    Raises:
        DataError: no images, differing sizes, a class that the training set has not, several validation folders, or an
            image that cannot be read.
        MissingExtra: Pillow is not installed.
    """
    train = root / "train" if (root / "train").is_dir() else root
    classes = sorted((folder.name for folder in train.iterdir() if _images(folder)), key=lambda n: natural(Path(n)))
    if not classes and train == root and (files := _images(root)):
        return Arrays(decode(files, [str(file) for file in files]), None)
    if not classes:
        raise DataError(
            f"found no images in the folders of {train}; expected one folder per class with "
            f"{', '.join(sorted(_SUFFIXES))} files, below {root / 'train'} or {root} (or *.npz files)"
        )
    sets, findings = {"train": train}, []
    if train != root:
        others = sorted(folder.name for folder in root.iterdir() if folder != train and _holds_classes(folder))
        held = [name for name in others if name in _VALIDATION]
        if len(held) > 1:
            raise DataError(f"{root} holds the folders {' and '.join(held)}; expected one validation set: join them")
        sets |= {name: root / name for name in others if name in ("test", *held)}
        findings = _about_folders(held, [name for name in others if name not in sets], "test" in sets)
    parts = {name: _list(folder, classes) for name, folder in sets.items()}
    files = [file for part in parts.values() for file in part[0]]
    pixels, ends = decode(files, [str(file) for file in files]), np.cumsum([len(part[0]) for part in parts.values()])
    arrays = dict(zip(parts, np.split(pixels, ends[:-1]), strict=True))
    found: dict[str, Any] = {}
    for name in parts:
        prefix = "" if name == "train" else "test_" if name == "test" else "validation_"
        found |= {f"{prefix}x": arrays[name], f"{prefix}y": parts[name][1]}
    return Arrays(**found, findings=tuple(findings))


def _about_folders(held: list[str], unread: list[str], tested: bool) -> list[Finding]:
    """Say which folders beside the training set are used otherwise than a user may think."""
    found = []
    if held and not tested:
        found.append(
            Finding(
                "folder",
                f"The images in `{held[0]}` are the validation set, by which steps choose, and there is no test set.",
                "For figures of images that nothing was chosen by, add a folder `test`, or name one with --test.",
            )
        )
    if unread:
        found.append(
            Finding(
                "unread",
                f"Beside `train` there are images in {', '.join(f'`{name}`' for name in unread[:5])}, which were not "
                "read.",
                f"Name the folders train, test and {' or '.join(_VALIDATION)}, or name a test set with --test.",
            )
        )
    return found


def decode(sources: Sequence[Path | bytes], names: Sequence[str]) -> np.ndarray:
    """Return images as uint8, ``(N, H, W)`` or ``(N, H, W, 3)``; ``names`` are for messages.

    >>> decode([], [])
    Traceback (most recent call last):
    nutlet.errors.DataError: found no images; expected at least one
    """
    if not sources:
        raise DataError("found no images; expected at least one")
    # Headers first: sizes are known and bounded before a pixel is unpacked.
    heads = []
    for source, name in zip(sources, names, strict=True):
        with _open(source, name) as image:
            heads.append((image.size, image.mode))
    sizes = Counter(size for size, _ in heads)
    width, height = sizes.most_common(1)[0][0]
    if len(sizes) > 1:
        odd = next(k for k, (size, _) in enumerate(heads) if size != (width, height))
        wide, high = heads[odd][0]
        raise DataError(
            f"{names[odd]} is {wide}x{high} pixels, most images are {width}x{height}; expected one size: resize or "
            f"crop the {len(heads) - sizes[width, height]} odd ones"
        )
    grey = all(mode in _GREY for _, mode in heads)
    shape = (len(sources), height, width) + (() if grey else (3,))
    if width * height > _MAX_PIXELS or int(np.prod(shape, dtype=object)) > MAX_BYTES:
        raise DataError(
            f"{len(sources)} images of {width}x{height} pixels need more than {MAX_BYTES:,} bytes of memory, or one "
            f"has more than {_MAX_PIXELS:,} pixels; expected small images: resize them to the model's input"
        )
    pixels = np.empty(shape, np.uint8)
    for k, (source, name) in enumerate(zip(sources, names, strict=True)):
        with _open(source, name) as image:
            try:
                pixels[k] = np.asarray(image.convert("L" if grey else "RGB"))
            except Exception as error:  # decoders raise many kinds on damaged files
                raise DataError(
                    f"{name} cannot be decoded ({first_line(error)}); expected an intact image: replace it"
                ) from error
    return pixels


@contextmanager
def _open(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "images", "reading images") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warning of huge images: our own bound is lower
        try:
            # From memory: a file would be asked for as many bytes as a damaged chunk says it has.
            content = source if isinstance(source, bytes) else read_bytes(source, _MAX_FILE)[:_MAX_FILE]
            image: Any = Image.open(io.BytesIO(content), formats=_FORMATS)
        except Exception as error:
            raise DataError(
                f"{name} cannot be read as an image ({first_line(error)}); expected an intact one, "
                f"{', '.join(_FORMATS)}"
            ) from error
        with image:
            yield image


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES), key=natural)


def _holds_classes(folder: Path) -> bool:
    return folder.is_dir() and any(_images(inner) for inner in folder.iterdir())


def _list(root: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """Return the images of one set, by class, and their labels; a class that is not among ``classes`` is refused."""
    strange = sorted(folder.name for folder in root.iterdir() if folder.name not in classes and _images(folder))
    if strange:
        raise DataError(
            f"{root} has the class {strange[0]!r}, which {root.parent / 'train'} has not; expected the same classes"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images(root / name)
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, np.int64)
