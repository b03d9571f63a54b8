"""What `make test-all` says: every test, every ordered pair of methods among them, on this state of the code.

    python bench/suite.py                  all tests: more than an hour on two cores
    python bench/suite.py --last-failed    those that failed in that run once more, after they were mended

What the tests print is passed on. The rows count the tests by their last outcome; ``mended`` are those that failed at
first and passed in the second run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter

from rows import ROOT, Rows

OUTCOMES = ("passed", "failed", "error", "skipped")


def outcomes(arguments: str) -> Counter[str]:
    """Run the tests and return how many had which outcome."""
    command = ["make", "test-all", f"ARGS={arguments}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line if re.search(r"\d+ (passed|failed).* in ", line) else last
    process.wait()
    if not last:
        sys.exit("make test-all gave no summary: no rows were written")
    return Counter(
        {word.rstrip("s"): int(count) for count, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)}
    )


def main() -> None:
    rows = Rows("suite", "test-all", [0])
    found, mended = Counter[str](), 0
    if "--last-failed" in sys.argv[1:]:
        before = json.loads((ROOT / "bench" / "results" / "suite.json").read_text(encoding="utf-8"))
        found.update({row["metric"]: int(row["value"]) for row in before})
        rows.seconds = before[0]["seconds"]
        again = outcomes("--last-failed")
        mended = found.pop("mended", 0) + again["passed"]
        found["passed"] += again["passed"]
        found["failed"], found["error"] = again["failed"], again["error"]
    else:
        found = outcomes("")
    for outcome in OUTCOMES:
        rows.add(outcome, found[outcome], "tests", 0 if outcome in ("failed", "error") else None)
    rows.add("mended", mended, "tests")
    rows.write()


if __name__ == "__main__":
    main()
