"""Builds that are killed, bundles with a bit flipped, and many builds at once, counted:
``python tests/faults/accidents.py [--kills 500] [--flips 2000] [--together 16] [--weights FILE]``.

A kill comes at a random moment of a build that begins with nothing or with what the kill before it
left; then there is no bundle, or the whole one, and in the end a build succeeds with what all of them
left, to the same digest. A flip is of one bit of a tuned bundle, and `bundle.open_bundle` has to find
it, in a process that cannot run engines. The exit code is 1 when one of the bounds, of no corrupt
bundle, no failed build and no flip that passes, is not kept.

Of the whole network (``--weights demo``) 500 kills take hours of a core. Two runs of other seeds, one
a core, share them.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from doomed import Doomed, Reply
from rich.console import Console
from rich.progress import Progress

from vggdeploy import bundle, demo
from vggdeploy.demo import digits
from vggdeploy.errors import BundleError

HERE = Path(__file__).parent

_KILLS_A_BUILD = 3
"""Enough that builds go on with what others left, few enough that the longest stage is got over."""


class Trial:
    """The forking process, and a build to try it with."""

    def __init__(self, doomed: Doomed, folder: Path, options: dict[str, Any], seed: int) -> None:
        self.doomed, self.folder, self.options = doomed, folder, options
        self.random = random.Random(seed)
        self._roots = 0

    def root(self) -> Path:
        self._roots += 1
        root = self.folder / str(self._roots)
        root.mkdir()
        return root

    def request(self, root: Path, **how: Any) -> Reply:
        return {"job": "build", "root": str(root), "arguments": self.options, **how}

    def build(self, root: Path, **how: Any) -> Reply:
        (reply,) = self.doomed.run([self.request(root, **how)])
        return reply


def opens(path: Path, digest: str) -> bool:
    """Whether a bundle is whole, and the one that it should be."""
    try:
        return bool(bundle.open_bundle(path).manifest["digest"] == digest)
    except BundleError:
        return False


def left(root: Path) -> list[Path]:
    """What a build should have cleared away."""
    return [place for place in root.rglob("*") if place.suffix in (".partial", ".old")]


def kills(trial: Trial, count: int) -> tuple[str, bool]:
    """Kill builds `count` times, at moments that fall alike on all of a build.

    They are those of a Poisson process with `_KILLS_A_BUILD` in the time of one build, so that a
    build goes on with what several kills left.
    """
    start = time.monotonic()
    first = trial.build(trial.root())
    seconds = time.monotonic() - start
    digest = first["made"]["digest"]
    killed = built = corrupt = failed = littered = 0
    # Stopped early, it says how far it came, which is not far enough.
    with contextlib.suppress(KeyboardInterrupt), Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("kills", total=count)
        while killed < count:
            root = trial.root()
            path = root / "place/bundle"
            while True:
                moment = trial.random.expovariate(_KILLS_A_BUILD / seconds)
                reply = trial.build(root, **({"after": moment} if killed < count else {}))
                if reply.get("signal") != signal.SIGKILL:
                    break
                killed += 1
                corrupt += path.exists() and not opens(path, digest)
                bar.update(task, completed=killed)
            built += 1
            failed += reply.get("made", {}).get("digest") != digest
            corrupt += not opens(path, digest)
            littered += bool(left(root))
            shutil.rmtree(root)
    said = (
        f"{killed} of {count} kills, over {built} builds of {seconds:.2f} s: {corrupt} corrupt bundles, "
        f"{failed} failed builds, {littered} left litter"
    )
    return said, killed >= count and not (corrupt or failed or littered)


def flips(trial: Trial, count: int) -> tuple[str, bool]:
    """Flip one bit `count` times, spread over all files of a tuned bundle."""
    root = trial.root()
    trial.build(root)
    trial.doomed.run([{"job": "record", "root": str(root), "arguments": {"goal": "latency"}}])
    path = root / "place/bundle"
    bundle.open_bundle(path)
    files = sorted(path.iterdir())
    passed = []
    for number in range(count):
        file = files[number % len(files)]
        at, bit = trial.random.randrange(file.stat().st_size), trial.random.randrange(8)
        with file.open("r+b") as stream:
            stream.seek(at)
            (whole,) = stream.read(1)
            stream.seek(at)
            stream.write(bytes([whole ^ 1 << bit]))
            stream.flush()
            try:
                bundle.open_bundle(path)
                passed.append(f"{file.name}, byte {at}, bit {bit}")
            except BundleError:
                pass
            stream.seek(at)
            stream.write(bytes([whole]))
    bundle.open_bundle(path)
    parsed = [name for name in ("openvino", "torch") if name in sys.modules]
    said = (
        f"{count} flips over {len(files)} files: {count - len(passed)} found "
        f"{'with ' + ', '.join(parsed) + ' at hand' if parsed else 'before any engine was parsed'}"
        f"{'; passed: ' + '; '.join(passed[:5]) if passed else ''}"
    )
    return said, not passed and not parsed


def together(trial: Trial, count: int) -> tuple[str, bool]:
    """`count` builds of one bundle at once, with an empty cache."""
    root = trial.root()
    start = time.monotonic()
    replies = trial.doomed.run([trial.request(root)] * count)
    seconds = time.monotonic() - start
    found = {reply.get("made", {}).get("digest") for reply in replies}
    errors = [str(reply)[:300] for reply in replies if "made" not in reply]
    whole = len(found) == 1 and opens(root / "place/bundle", str(next(iter(found))))
    said = (
        f"{count} builds at once in {seconds:.1f} s: {len(found)} digest{'s'[: len(found) != 1]}, "
        f"{len(errors)} errors, {len(left(root))} left over{' ' + errors[0] if errors else ''}"
    )
    return said, whole and not errors and not left(root)


def options_of(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What is built: the weights that were named, or a graph of five layers."""
    if given.weights:
        said = {"weights": str(given.weights)}
    else:
        sys.path += [str(HERE.parent / "fuzz"), str(HERE.parent / "vggdeploy")]
        from small_graph import SIDE, graph

        (folder / "small.onnx").write_bytes(graph())
        recipe = f'size = [{SIDE}, {SIDE}]\nresize = "stretch"\n'
        (folder / "small.toml").write_text(recipe)
        said = {
            "model": str(folder / "small.onnx"),
            "preprocess": str(folder / "small.toml"),
        }
    digits.write("heldout", folder / "digits")
    said |= {"calib_data": str(folder / "digits"), "calib_images": 4}
    # How much faster bfloat16 would be takes as long to find out as the rest.
    return {"target": given.target, "calib_precision": "fp32", **said}


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill builds, flip bits, build at once.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--together", type=int, default=16)
    parser.add_argument("--weights", help=f"a checkpoint, such as {demo.CHECKPOINT.name}, or demo")
    parser.add_argument("--target", default="ov-int8")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    modules = ("torch", "torch.onnx", "onnxscript") if given.weights else ()
    kept = True
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch, Doomed(*modules) as doomed:
        folder = Path(scratch)
        trial = Trial(doomed, folder, options_of(given, folder), given.seed)
        for run, count in ((flips, given.flips), (together, given.together), (kills, given.kills)):
            if count:
                said, good = run(trial, count)
                print(f"{'kept  ' if good else 'BROKEN'}  {said}", flush=True)
                kept &= good
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
