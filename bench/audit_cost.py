"""What a default audit of the demo's model costs, from the command line to the page.

python bench/audit_cost.py demo
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import Rows

BAR = 120.0
"""Seconds on two cores."""


def main() -> None:
    rows = Rows("audit_cost", "demo", seeds=[0])
    with tempfile.TemporaryDirectory() as scratch:
        demo, out = Path(scratch) / "demo", Path(scratch) / "audit"
        run("demo", "--out", str(demo))
        files = [str(demo / "model.onnx"), "--against", str(demo / "original.onnx"), "--data", "nutlet.cli.demo:digits"]
        start = time.perf_counter()
        run("audit", *files, "--out", str(out))
        rows.add("seconds", time.perf_counter() - start, "s", BAR)
        start = time.perf_counter()
        run("audit", *files, "--out", str(out))
        rows.add("seconds_again", time.perf_counter() - start, "s")
    rows.write()


def run(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("nutlet")), *arguments, "--quiet"], check=True)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["demo"]):
        sys.exit(f"found {' '.join(sys.argv[1:])}; expected the case demo")
    main()
