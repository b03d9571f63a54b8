"""Run by :mod:`nutlet.measurement.memory` in a process of its own: load one file, run it, print the peak of memory.

It imports nothing of nutlet, whose own memory would hide that of the file.
"""

import json
import runpy
import sys


def peak_bytes() -> int:
    """Return the most memory this process ever held in RAM, in bytes.

    On Linux this is VmHWM: ``ru_maxrss`` starts at the peak of the *parent*, which it keeps through fork and exec.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(argument: str) -> None:
    """Load and run as ``argument`` (JSON) says; print the peak before and after as JSON."""
    import numpy as np

    wanted = json.loads(argument)
    open_bare = runpy.run_path(wanted["runtime"])["open_bare"]
    before = peak_bytes()
    run = open_bare(wanted["path"])
    for batch in wanted["batches"]:
        feed = {name: np.zeros((batch, *shape), dtype) for name, (shape, dtype) in wanted["inputs"].items()}
        for name, row in wanted["texts"].items():
            feed[name] = np.array([row] * batch, dtype=object)
        run(feed)
    print(json.dumps({"before": before, "after": peak_bytes()}))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # the runtime's exceptions have no common base
        sys.exit((str(error).splitlines() or [type(error).__name__])[0])
