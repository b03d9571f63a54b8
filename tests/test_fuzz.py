"""A few mutations of each kind of file; bench/fuzz.py tries hundreds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks of memory are read from /proc")
def test_mutated_files_end_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "fuzz.py"), "all", "--random", "2", "--structured", "3", "--dry"]
    search = os.pathsep.join([str(ROOT / "src"), str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "NUTLET_TRIAL_SECONDS": "3"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count(" 0 failed,") == 14
