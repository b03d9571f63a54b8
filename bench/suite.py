"""What `make test-all` says: every test, every ordered pair of methods among them, on this state of the code.

    python bench/suite.py

Takes more than an hour on two cores. What the tests print is passed on; the rows count them by outcome.
"""

from __future__ import annotations

import re
import subprocess
import sys

from rows import ROOT, Rows


def main() -> None:
    rows = Rows("suite", "test-all", [0])
    process = subprocess.Popen(["make", "test-all"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line if " passed" in line else last
    process.wait()
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error|skipped)", last)}
    if "passed" not in counts:
        sys.exit("make test-all gave no summary: no rows were written")
    for outcome in ("passed", "failed", "error", "skipped"):
        rows.add(outcome, counts.get(outcome, 0), "tests", 0 if outcome in ("failed", "error") else None)
    rows.write()


if __name__ == "__main__":
    main()
