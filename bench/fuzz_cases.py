"""Files to start from, how each kind is read, and how its fields are changed to extreme and wrong-typed values."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import nutlet as nl
from nutlet.compression.compressed import Compressed
from nutlet.compression.recipe import load_recipe
from nutlet.formats.onnx.reader import load_onnx
from nutlet.loading import load_data, load_model
from nutlet.loading.data import load_examples
from nutlet.measurement import Runtime
from nutlet.oracle import CachedSource, Endpoint, load_endpoint
from nutlet.report.load import load_report

CANARY = "executed"
EXTREME: list[Any] = [
    None, True, False, -1, 0, 1, 7, 2**31, 2**32 - 1, 2**62, 2**63, 2**64, -(2**63), 10**30, 1e308, -1e-320,
    float("nan"), float("inf"), "", "x", "x" * 5000, "../../etc/passwd", "\x1b[2J", "true",
    [], {}, [0], [[]], [2**31] * 4,
    [-1, -1], [1] * 500, {"a": {"b": {}}}, "torch.ops.aten.relu.default", "float32", "__import__('os')",
]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """One kind of file: ``make`` writes a good one into a folder and returns what is mutated; ``read`` reads it."""

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    change: Callable[[random.Random, Path], None]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def arrays() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).random((40, 1, 6, 6), dtype=np.float32), np.arange(40) % 3


def data() -> nl.Data:
    return nl.split(nl.Examples.from_arrays(*arrays()), calibration=8)


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return every (container, key) of nested lists and dicts."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        places(value[key], found)
    return found


def change_tree(rng: random.Random, value: Any) -> Any:
    """Change one to three places of plain data."""
    for _ in range(rng.randint(1, 3)):
        spots = places(value, [])
        if not spots:
            return copy.deepcopy(rng.choice(EXTREME))
        holder, key = rng.choice(spots)
        kind = rng.random()
        if kind < 0.75:
            holder[key] = copy.deepcopy(rng.choice(EXTREME))
        elif kind < 0.9 and isinstance(holder, dict):
            del holder[key]
        elif isinstance(holder, list):
            holder += [holder[key]] * rng.choice([1, 100, 10_000])
        else:
            for _ in range(rng.choice([10, 200, 3000])):
                holder[key] = [holder[key]]
            return value  # too deep to be walked through again
    return value


def dumps(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 100_000 + "]" * 100_000


def change_json(rng: random.Random, path: Path) -> None:
    path.write_text(dumps(change_tree(rng, json.loads(path.read_text()))))


HOSTILE_YAML = [
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b]\nsteps: [*c, *c, *c, *c]",
    "a: &a {x: 1}\nb: {<<: [*a, *a]}",
    "steps: [2024-99-99]",
    "steps: 2024-01-01T99:99:99",
    "steps: " + "[" * 50_000,
    "steps: " + "{a: " * 5000,
    "- " * 20_000 + "x",
    "steps: [{Quantize: {bits: " + "9" * 100_000 + "}}]",
    "steps: [{Quantize: {bits: " + ":".join(["1"] * 50_000) + "}}]",
    f"steps: [!!python/object/apply:os.system ['touch {CANARY}']]",
    "steps: !!binary " + "A" * 1000,
    "? [a, b]\n: c",
    "steps: " + "x" * 300_000,
    "url: " + "x" * 200_000 + "\nclasses: 3",
    "\x00",
    "%YAML 9.9\n---\na",
]


def change_yaml(rng: random.Random, path: Path) -> None:
    if rng.random() < 0.4:
        path.write_text(rng.choice(HOSTILE_YAML))
        return
    value = change_tree(rng, yaml.safe_load(path.read_text()))
    path.write_text(
        dumps(value) if rng.random() < 0.5 else yaml.safe_dump(value, width=10**6) if flat(value) else "- " * 9
    )


def flat(value: Any, depth: int = 0) -> bool:
    """Whether PyYAML itself can write ``value``."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 50 and all(flat(item, depth + 1) for item in inner)


def make_recipe(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        "steps:\n- PruneWeights: {sparsity: 0.5}\n- Quantize: {include: ['*'], bits: 8}\nrecover: FineTune\n"
    )
    return path


def make_endpoint(folder: Path) -> Path:
    path = folder / "endpoint.yaml"
    path.write_text(
        "url: https://models.example.org/a\nclasses: 3\noutputs: probabilities\nheaders: {X-A: b}\n"
        "batch: 8\nrequest: a.b\nresponse: c.0\ntimeout: 3.5\nretries: 2\npause: 0\n"
    )
    return path


def make_npz(folder: Path) -> Path:
    path = folder / "data.npz"
    np.savez_compressed(path, x=arrays()[0], y=arrays()[1])
    return path


DTYPES = [
    "<f4",
    ">f8",
    "<f2",
    "|u1",
    "<u2",
    ">u4",
    "<u8",
    "<i8",
    "|b1",
    "<c8",
    "<f16",
    "|O",
    "<U3",
    "<M8[s]",
    "|V4",
    "|S2",
]
SHAPES = [
    "(40,)",
    "(40, 36)",
    "(2**40,)",
    "(10**30, 0)",
    "(-1,)",
    "()",
    "(0, 5)",
    "(40, 1, 6, 6)",
    "(1000000000,)",
    "'x'",
]


def change_npz(rng: random.Random, path: Path) -> None:
    """Write arrays whose header says anything, packed so that little becomes much."""
    with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name in ("x", "y"):
            if rng.random() < 0.3:
                choices = [np.arange(40).astype(kind) for kind in ("u2", "u8", "g", "?", "i1", "f4", "c8", ">i4")]
                values = rng.choice([*choices, np.full(40, 10**9), -np.arange(40), np.full(40, 2**64 - 1, "u8"),
                                     np.zeros(40, "i4,f4"), arrays()[0],
                                     np.asfortranarray(arrays()[0][:, 0])])  # fmt: skip
                buffer = io.BytesIO()
                np.save(buffer, values)
                archive.writestr(f"{name}.npy", buffer.getvalue())
                continue
            shape = eval(rng.choice(SHAPES))
            order = rng.choice([True, False, "x"])
            text = (
                f"{{'descr': {rng.choice(DTYPES)!r}, 'fortran_order': {order!r}, 'shape': {shape!r}}}".ljust(117) + "\n"
            )
            content = (
                b"\x93NUMPY" + bytes([rng.choice([1, 1, 1, 2, 9]), 0]) + struct.pack("<H", len(text)) + text.encode()
            )
            archive.writestr(f"{name}.npy", content + bytes(rng.choice([0, 160, 5760, 10**6, 400 * 10**6])))


def make_image(folder: Path) -> Path:
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(np.full((6, 6), 40 * k, np.uint8)).save(folder / "images" / label / f"{k}.png")
    return folder / "images" / "a" / "0.png"


def change_image(rng: random.Random, path: Path) -> None:
    wide, high = rng.choice([(6, 6), (0, 6), (2**31 - 1, 1), (60_000, 60_000), (5000, 5000), (30_000, 1000)])
    header = struct.pack(">IIBBBBB", wide, high, *rng.choice([(8, 0), (16, 6), (8, 3), (1, 0), (99, 9)]), 0, 0, 0)
    rows = zlib.compress(bytes(rng.choice([0, 42, 10**7, 150 * 10**6])))
    chunks = [(b"IHDR", header), (rng.choice([b"IDAT", b"zTXt", b"iCCP"]), rows), (b"IDAT", rows), (b"IEND", b"")]
    png = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n(%pipe%touch {CANARY}) (w) file\n".encode()
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 10**9, 0, 0, 54, 40, wide % 2**31, -high, 1, 24, 0, 0, 0, 0, 0, 0)
    ppm = f"P6 {wide} {high} 255\n".encode() + bytes(100)
    path.write_bytes(rng.choice([b"\x89PNG\r\n\x1a\n" + png] * 4 + [eps, bmp, ppm]))


class Evil:
    def __reduce__(self) -> Any:
        return exec, (f"open({CANARY!r}, 'w')",)


class Fat:
    def __reduce__(self) -> Any:
        return bytearray, (3 * 10**9,)


def make_pt(folder: Path) -> Path:
    torch.save({"state_dict": net().state_dict(), "epoch": 3}, folder / "w.pt")
    return folder / "w.pt"


def repack(path: Path, method: int, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, change(name, content))


def change_pt(rng: random.Random, path: Path) -> None:
    state: dict[Any, Any] = dict(net().state_dict())
    name = rng.choice(list(state))
    shape = state[name].shape
    odd = [
        lambda: torch.zeros(shape, dtype=torch.complex64), lambda: torch.zeros(shape).to_sparse(),
        lambda: torch.zeros(1).expand(10**rng.randint(1, 12)), lambda: torch.zeros(shape, device="meta"),
        lambda: torch.zeros(10**8), lambda: torch.zeros(shape, dtype=torch.int8),
        lambda: torch.full(shape, float("nan")), Evil, Fat, lambda: "x" * 10**6, lambda: {"a": [1] * 10**5},
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), lambda: torch.ones(4, 4).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ]  # fmt: skip
    state[name if rng.random() < 0.8 else rng.choice([3, (1,), "x" * 10**5])] = rng.choice(odd)()
    torch.save(state, path, _use_new_zipfile_serialization=rng.random() < 0.6)
    if zipfile.is_zipfile(path) and rng.random() < 0.4:
        numbers = [b"K\x04", b"K$", b"J\xff\xff\xff\x7f", b"M\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f"]
        old, new = rng.sample(numbers, 2)
        method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        repack(path, method, lambda name, content: content.replace(old, new, 2) if name.endswith("pkl") else content)


def make_safetensors(folder: Path) -> Path:
    save_file(net().state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


def change_safetensors(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = dumps(change_tree(rng, json.loads(content[8 : 8 + length]))).encode()
    declared = len(header) if rng.random() < 0.8 else rng.choice([0, 2**63, 2**64 - 1, 10**8, 10**9])
    path.write_bytes(declared.to_bytes(8, "little") + header + content[8 + length :])


def make_pt2(folder: Path) -> Path:
    path = folder / "m.pt2"
    batch = torch.export.Dim("n")
    program = torch.export.export(net(), (torch.zeros(2, 1, 6, 6),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def change_pt2(rng: random.Random, path: Path) -> None:
    target = rng.choice(["models/model.json", "models/model.json", "weights_config.json", "constants_config.json"])

    def change(name: str, content: bytes) -> bytes:
        return dumps(change_tree(rng, json.loads(content))).encode() if name.endswith(target) else content

    repack(path, zipfile.ZIP_STORED if rng.random() < 0.9 else zipfile.ZIP_DEFLATED, change)


def make_saved(folder: Path) -> Path:
    nl.compress(net(), [nl.PruneWeights(sparsity=0.5), nl.Quantize()], data()).save(folder / "saved")
    return folder / "saved" / "model.packed"


def sign(saved: Path) -> None:
    """Put the checksum right, as whoever forges the tensors would."""
    manifest = json.loads((saved / "compressed.json").read_text())
    import hashlib

    manifest["sha256"] = hashlib.sha256((saved / "model.packed").read_bytes()).hexdigest()
    (saved / "compressed.json").write_text(json.dumps(manifest))


def change_packed(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(16, len(content))
        content[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", bytes([rng.randrange(6)])])
    path.write_bytes(bytes(content) + bytes(rng.choice([0, 0, 0, 10**8, 800 * 10**6])))
    sign(path.parent)


def make_manifest(folder: Path) -> Path:
    return make_saved(folder).with_name("compressed.json")


def make_report(folder: Path) -> Path:
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    compressed = nl.compress(net(), [nl.Quantize()], data())
    nl.ship(compressed, net(), data(), folder / "out", seconds=0.01)
    return folder / "out" / "report.json"


def make_onnx(folder: Path) -> Path:
    w, b = np.random.default_rng(0).random((4, 1, 3, 3), np.float32), np.zeros(4, np.float32)
    dense = np.random.default_rng(1).random((144, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in (("w", w), ("b", b), ("d", dense))],
    )  # fmt: skip
    path = folder / "m.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


def fields(message: Any) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for item in value if hasattr(value, "__len__") else [value]:
                yield from fields(item)


def change_onnx(rng: random.Random, path: Path) -> None:
    model = onnx.load_model_from_string(path.read_bytes())
    graph = model.graph
    for _ in range(rng.randint(1, 3)):
        holder, field = rng.choice([(h, f) for h, f in fields(model) if f.message_type is None])
        numbers = [-1, 0, 1, 2**20, 50_000_000, 2**31 - 1, *([2**62] if field.cpp_type in (2, 4) else [])]
        value = getattr(holder, field.name)
        new = (
            rng.choice(["", "x", "Loop", "Exp", "../w.bin"]) if isinstance(value, (str, bytes)) else rng.choice(numbers)
        )
        new = new.encode() if isinstance(value, bytes) and isinstance(new, str) else new
        try:
            if hasattr(value, "append"):
                value[rng.randrange(len(value))] = new
            else:
                setattr(holder, field.name, new)
        except (TypeError, ValueError):
            continue
    if rng.random() < 0.3:
        size = numpy_helper.from_array(np.array([rng.choice([2**28, 2**34, 2**62, 10**6])]), "s")
        graph.initializer.append(size)
        graph.node.insert(0, helper.make_node("ConstantOfShape", ["s"], ["q"]))
        graph.node.append(helper.make_node("Sin", ["q"], ["z"]))
    if rng.random() < 0.15:
        graph.node.extend(helper.make_node("Sin", [f"v{k}" if k else "x"], [f"v{k + 1}"]) for k in range(20_000))
    path.write_bytes(model.SerializeToString())


def read_file(path: Path) -> object:
    return Runtime(path, threads=1).predict(nl.Examples.from_arrays(*arrays()))


ENDPOINT = {"url": "https://models.example.org/a", "classes": 3, "i_own_this_endpoint": True, "retries": 0}


def asked(x: torch.Tensor) -> torch.Tensor:
    return torch.full((len(x), 3), 1 / 3)


class Local(Endpoint):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return asked(x)


def make_answers(folder: Path) -> Path:
    kept = CachedSource(Local(**ENDPOINT), folder)  # type: ignore[arg-type]
    kept(torch.from_numpy(arrays()[0]))
    return kept.path


def read_answers(path: Path) -> object:
    found = CachedSource(Local(**ENDPOINT), path.parent)(torch.from_numpy(arrays()[0]))  # type: ignore[arg-type]
    assert found.shape == (40, 3)
    assert bool(((found.sum(1) - 1).abs() < 2e-3).all())
    return found


def change_answers(rng: random.Random, path: Path) -> None:
    with closing(sqlite3.connect(path)) as answers, answers:
        rows = answers.execute("SELECT input FROM answers").fetchall()
        for (key,) in rng.sample(rows, rng.randint(1, len(rows))):
            odd = [
                np.full(rng.choice([0, 2, 3, 4, 10**6]), v, "<f4").tobytes() for v in (np.nan, np.inf, -1, 0.5, 1e30)
            ]
            scores = rng.choice([*odd, b"x", b"", "text", 3, 1.5])
            checksum = (
                zlib.crc32(key + scores)
                if isinstance(scores, bytes) and rng.random() < 0.8
                else rng.choice([0, "x", -1])
            )
            answers.execute("UPDATE answers SET scores = ?, checksum = ? WHERE input = ?", (scores, checksum, key))
        if rng.random() < 0.2:
            answers.execute(rng.choice(["DROP TABLE answers", "CREATE TABLE other (a)", "DELETE FROM answers"]))


def make_cached(folder: Path) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (2000, 64, 64), np.uint8)
    np.savez(folder / "d.npz", x=x, y=np.arange(2000) % 3)
    load_data(str(folder / "d.npz"))
    return next((folder / "cache").rglob("y.npy"))


def change_cached(rng: random.Random, path: Path) -> None:
    shape, kind = eval(rng.choice(SHAPES)), rng.choice(DTYPES)
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape!r}}}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(16_000))


def read_cached(path: Path) -> object:
    """Read the data set after its entry in the cache, whose name depends on where the data set lies, was replaced."""
    source, cache = path.parents[3] / "d.npz", path.parents[2]
    changed = path.read_bytes()
    path.unlink()
    load_examples(str(source))
    (entry,) = cache.rglob("y.npy")
    entry.write_bytes(changed)
    return load_examples(str(source))


def weights_of(path: Path) -> object:
    return load_model(f"{Path(__file__)}:net", path)


READERS = [
    Reader("recipe", make_recipe, load_recipe, change_yaml),
    Reader("endpoint", make_endpoint, lambda p: load_endpoint(p, i_own_this_endpoint=True), change_yaml),
    Reader("npz", make_npz, lambda p: load_data(str(p), calibration=8), change_npz),
    Reader("npy", make_cached, read_cached, change_cached),
    Reader("image", make_image, lambda p: load_data(str(p.parents[1]), calibration=2), change_image),
    Reader("pt", make_pt, weights_of, change_pt),
    Reader("safetensors", make_safetensors, weights_of, change_safetensors),
    Reader("pt2", make_pt2, lambda p: load_model(str(p)), change_pt2),
    Reader("packed", make_saved, lambda p: Compressed.load(p.parent, net()), change_packed),
    Reader("manifest", make_manifest, lambda p: Compressed.load(p.parent, net()), change_json),
    Reader("report", make_report, load_report, change_json),
    Reader("answers", make_answers, read_answers, change_answers),
    Reader("onnx", make_onnx, read_file, change_onnx),
    Reader("onnx-weights", make_onnx, load_onnx, change_onnx),
]


def after_random(reader: Reader, path: Path) -> None:
    """Put the checksum right where it would hide everything else."""
    if reader.name == "packed":
        sign(path.parent)


def copy_of(path: Path, root: Path, target: Path) -> Path:
    """Copy a good file, with what lies beside it, and return where the file is now."""
    shutil.copytree(root, target, dirs_exist_ok=True)
    return target / path.relative_to(root)
