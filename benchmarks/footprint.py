"""Time and memory of a whole build: ``python -m vggdeploy.benchmarks.footprint [BUILD FLAGS]``.

Runs ``vggdeploy build`` in a process of its own with an empty cache and prints each stage's wall
time, their sum, the whole process, and its peak resident memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vggdeploy.benchmarks import memory
from vggdeploy.machine import system
from vggdeploy.terminal import Terminal


def main(flags: list[str]) -> int:
    """Build once with `flags` and print what it took; the build's exit code."""
    terminal = Terminal()
    with tempfile.TemporaryDirectory(prefix="vggdeploy-") as scratch:
        result = Path(scratch) / "build.json"
        command = [sys.executable, "-m", "vggdeploy", "build", *flags]
        command += ["--out", str(Path(scratch) / "bundle"), "--json", str(result)]
        start = time.perf_counter()
        done = subprocess.run(
            command,
            env={**os.environ, "VGGDEPLOY_CACHE": str(Path(scratch) / "cache")},
            check=False,
        )
        wall = time.perf_counter() - start
        if done.returncode:
            return done.returncode
        built = json.loads(result.read_text())
    peak = memory.peak_of_children()
    stages = sum(stage["seconds"] for stage in built["stages"])
    terminal.table(
        ("build", ""),
        [
            ("calibration images", str(built["calibration_images"])),
            ("all stages", f"{stages:.1f} s"),
            ("whole process", f"{wall:.1f} s"),
            ("peak resident memory", f"{peak / 1e9:.2f} GB"),
            ("engine", f"{built['engine_bytes'] / 1e6:.2f} MB"),
            ("machine", f"{system()['cpu']}, {system()['cores']} cores"),
        ],
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
