"""Run by :mod:`nutlet.formats.onnx.limited` in a process of its own: open a file from stdin under limits, and run it.

It imports nothing of nutlet, so that it starts quickly: how a session is made is read from the file beside it. It ends
with 0 and one line of JSON where no limit was met, even if the file is refused for another reason: that is found again,
and said, by who opens it.
"""

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

_EXHAUSTED = ("alloc", "memory", "Memory")
_MOST_THREADS_BYTES = 64 * 2**20


def limit(memory: int, seconds: float) -> None:
    """Let this process take so many bytes more than now, and so many seconds, where the system knows such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    except (OSError, StopIteration):
        used = 0
    for kind, most in ((resource.RLIMIT_DATA, used + memory + _MOST_THREADS_BYTES), (resource.RLIMIT_CPU, seconds)):
        _, hard = resource.getrlimit(kind)
        wanted = int(most) + 1
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def messages(message: Any) -> Any:
    """Yield every message inside a protobuf message, however deep."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if hasattr(value, "__len__") else [value]:
                yield item
                yield from messages(item)


def attempt(ort: dict[str, Any], content: bytes, shapes: dict[str, list[int]] | None) -> dict[str, Any]:
    """Parse, open (by ``ort.py``) and run the file on zeros; say the shapes it ran on, and the seconds of a run."""
    import numpy as np
    import onnx

    model = onnx.load_model_from_string(content)
    if any(getattr(item, "external_data", None) for item in messages(model)):
        return {}  # it would read other files
    del model
    session = ort["open_session"](content)
    if shapes is None:
        shapes = {}
        for given in session.get_inputs():
            first, *rest = given.shape
            if not all(isinstance(size, int) for size in rest):
                return {}  # tried when the shape of an example is known
            shapes[given.name] = [first if isinstance(first, int) else 1, *rest]
    feed = {given.name: np.zeros(shapes[given.name], ort["NUMBERS"][given.type]) for given in session.get_inputs()}
    start = time.process_time()
    session.run(None, feed)
    rows = max(1, *(shape[0] for shape in shapes.values()))
    return {"ran": shapes, "seconds": (time.process_time() - start) / rows}


def main() -> None:
    """Do what the argument (JSON) says with the file on stdin."""
    wanted = json.loads(sys.argv[1])
    import numpy as np  # noqa: F401  imported before memory is counted, as the others are
    import onnx  # noqa: F401

    ort = runpy.run_path(str(Path(__file__).with_name("ort.py")))
    content = sys.stdin.buffer.read()
    limit(wanted["memory"], wanted["seconds"])
    found: dict[str, Any] = {"exhausted": False}
    try:
        found |= attempt(ort, content, wanted["shapes"])
    except MemoryError:
        found["exhausted"] = True
    except Exception as error:  # the runtime's exceptions have no common base
        found["exhausted"] = any(word in str(error) for word in _EXHAUSTED)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
