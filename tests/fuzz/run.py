"""Long fuzzing: ``python tests/fuzz/run.py --inputs 100000 [--only NAME] [--engine own]``.

Every entry point has a process of its own, and one that dies or hangs is told by its parent, which
goes on behind the input that did it. Inputs are those of `mutations`, from seeds made in code; with
atheris installed its coverage chooses which of them to change further. The exit code is 1 when
anything was against the rules, and what did it lies in the folder that is named.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

HUNG_S = 60.0
"""Wall time after which an input hangs, on a machine however busy."""

EVERY = 50
"""Inputs between two notes of the tally."""


def child(name: str, inputs: int, first: int, folder: Path, kept: Path, engine: str) -> None:
    """Feed one entry point, in this process."""
    import mutations
    from harness import Harness

    harness = Harness(name, folder, kept)
    harness.tally.inputs = first

    def feed(content: bytes) -> None:
        # Had it died of this, the parent would find it here.
        (folder / "current").write_bytes(content)
        harness.feed(content)
        if harness.tally.inputs % EVERY == 0 or harness.tally.inputs >= inputs:
            (folder / "tally.json").write_text(json.dumps(harness.tally.to_json()))

    if engine != "atheris":
        for number in range(first, inputs):
            feed(mutations.mutate(harness.seeds, harness.entry.mutation, random.Random(number)))
        return

    import atheris

    # Not its hook of imports, which does not see an editable installation.
    for one in gc.get_objects():
        if isinstance(one, types.FunctionType) and str(one.__module__).startswith("vggdeploy"):
            atheris.instrument_func(one)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(harness.seeds):
        (corpus / f"seed{number}").write_bytes(seed)

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        begin = bytes(data) if rng.random() < 0.5 else None
        return mutations.mutate(harness.seeds, harness.entry.mutation, rng, begin)[:most]

    longest = 2 * max(map(len, harness.seeds)) + 20_000
    atheris.Setup(
        [sys.argv[0], f"-runs={inputs - first}", f"-max_len={longest}", "-verbosity=0", "-timeout=0",
         "-rss_limit_mb=0", f"-seed={first + 1}", str(corpus)],
        feed,
        custom_mutator=mutator,
    )  # fmt: skip
    atheris.Fuzz()


def run(name: str, inputs: int, kept: Path, engine: str) -> dict[str, Any]:
    """Feed one entry point, in processes until all inputs were read."""
    began, first = time.monotonic(), 0
    found: list[dict[str, str]] = []
    total: dict[str, Any] = {"refused": 0, "slowest_s": 0.0, "growth_bytes": 0}
    while first < inputs:
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as scratch:
            folder = Path(scratch)
            died = _watch(name, inputs, first, folder, kept, engine)
            tally = json.loads(_read(folder / "tally.json") or "{}")
            found += tally.get("found", [])
            total["refused"] += tally.get("refused", 0)
            for key in ("slowest_s", "growth_bytes"):
                total[key] = max(total[key], tally.get(key, 0))
            if died:
                kept.mkdir(parents=True, exist_ok=True)
                file = kept / f"{name}-died-{first}"
                file.write_bytes(_read(folder / "current"))
                found.append({"wrong": died, "file": str(file)})
            reached = tally.get("inputs", first)
        if reached <= first and died:
            reached = first + EVERY  # what was not noted is not read again
        if not died and reached < inputs:
            found.append({"wrong": f"ended after {reached} inputs", "file": ""})
            break
        first = reached
    seconds = time.monotonic() - began
    return {"name": name, "inputs": min(first, inputs), "seconds": seconds, **total, "found": found}


def _watch(name: str, inputs: int, first: int, folder: Path, kept: Path, engine: str) -> str:
    """Run a child to its end; why it was a bad one, or nothing."""
    command = [sys.executable, __file__, "--child", name, "--inputs", str(inputs), "--first",
               str(first), "--folder", str(folder), "--kept", str(kept), "--engine", engine]  # fmt: skip
    log = folder / "log"
    environment = {**os.environ, "VGGDEPLOY_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, stdout=stream, stderr=stream, env=environment) as process,
    ):
        seen, since = -1, time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            current = folder / "current"
            now = current.stat().st_mtime_ns if current.exists() else -1
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > HUNG_S:
                process.kill()
                return f"hung for {HUNG_S:.0f} s"
    if process.returncode < 0:
        return f"died of {signal.Signals(-process.returncode).name}"
    if process.returncode:
        return "ended in an error: " + _read(log).decode("utf-8", "replace")[-600:]
    return ""


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def main() -> int:
    from entries import ENTRIES

    has_atheris = importlib.util.find_spec("atheris") is not None
    parser = argparse.ArgumentParser(description="Fuzz what reads files of others.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--only", choices=sorted(ENTRIES), action="append")
    parser.add_argument(
        "--engine", choices=("atheris", "own"), default="atheris" if has_atheris else "own"
    )
    parser.add_argument("--kept", type=Path, default=Path("results/fuzz"))
    for hidden in ("--child", "--first", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(
            given.child,
            given.inputs,
            int(given.first),
            Path(given.folder),
            given.kept,
            given.engine,
        )
        return 0
    bad = False
    for name in given.only or ENTRIES:
        one = run(name, given.inputs, given.kept.absolute(), given.engine)
        print(
            f"{name:<16}{one['inputs']:>8,} inputs  {one['refused']:>8,} refused  "
            f"slowest {one['slowest_s']:.3f} s  grew {one['growth_bytes'] / 2**20:.0f} MiB  "
            f"{one['seconds']:.0f} s  {len(one['found'])} findings ({given.engine})",
            flush=True,
        )
        for each in one["found"]:
            print(f"    {each['wrong']}\n      {each['file']}", flush=True)
        bad |= bool(one["found"])
    print(f"what was found lies in {given.kept}" if bad else "nothing was found")
    return int(bad)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "vggdeploy"))
    raise SystemExit(main())
