"""Jobs in processes of their own: what they are given, what they came to, and how they are run.

`competitors` is what runs in such a process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import dataset
from vggdeploy import preprocess as preprocessing
from vggdeploy.errors import ModelError
from vggdeploy.inputs import BuildOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from vggdeploy.dataset import Dataset
    from vggdeploy.sources import Source

EXPORT, COLLECT = "export", "collect"
"""Steps that are no competitors: our FP32 graph, and our collection alone."""

_OPTIONS = (
    "weights", "arch", "num_classes", "preprocess", "calib_data", "calib_images", "seed", "cpu_isa",
)  # fmt: skip
"""What a build needs to know of the options of a comparison, besides ``model``."""


@dataclass(frozen=True)
class Job:
    """What a child does.

    Attributes:
        name: the competitor, or a step.
        onnx: the FP32 graph; empty where `options` name it.
        out: a folder of its own.
        options: of `BuildOptions`, JSON-ready: network, images and seed are there.
        preprocess: what images go through, as `Preprocess.to_json` says it.
        kept_images: how many images at most calibrate a method that keeps every activation.
    """

    name: str
    onnx: str
    out: str
    options: dict[str, Any]
    preprocess: dict[str, Any] = field(default_factory=dict)
    kept_images: int | None = None

    def build_options(self, **changes: Any) -> BuildOptions:
        """`options` as a build takes them."""
        model = self.options.get("model")
        given = {**self.options, "model": Path(model) if model else None}
        return BuildOptions(**{**given, "out": Path(self.out) / "bundle", **changes})

    def images(self) -> Images:
        """The calibration images, the same for every competitor."""
        folder = dataset.scan(Path(self.options["calib_data"]))
        chosen = folder.choose(self.options["calib_images"], self.options["seed"])
        return Images(chosen, preprocessing.from_mapping(self.preprocess, where="the job"))


@dataclass(frozen=True)
class Images:
    """Network inputs float32 ``[1, 3, H, W]``, decoded ahead; iterated as often as a tool likes."""

    chosen: Dataset
    recipe: preprocessing.Preprocess

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for pixels in self.chosen.pixels(self.recipe):
            yield self.recipe.arithmetic(pixels[None])


@dataclass(frozen=True)
class Outcome:
    """What a child came to. None and empty stand for what it has not; `error` for all of it.

    Attributes:
        graph: the quantized graph, to be judged as it is defined.
        engine: what runs on this machine.
        engine_bytes: the engine's files.
        images: how many calibrated.
        seconds: from the FP32 graph to the quantized model on the disk.
        collect_seconds: of these, running the float network on the images and observing it.
        peak_bytes: the process's peak resident memory.
        note: what to know about it.
        error: why there is nothing.
    """

    graph: str = ""
    engine: str = ""
    engine_bytes: int | None = None
    images: int | None = None
    seconds: float | None = None
    collect_seconds: float | None = None
    peak_bytes: int | None = None
    note: str = ""
    error: str = ""


class Children:
    """Runs jobs on one network, one process each, in folders of their own below `scratch`.

    The FP32 graph of our weights is exported once, in a process of its own, and lies in the stage
    cache of every other; nothing else is in there. A foreign graph is there already.
    """

    def __init__(self, scratch: Path, options: BuildOptions, source: Source) -> None:
        self.scratch = scratch
        self.source = source
        said: dict[str, Any] = {name: getattr(options, name) for name in _OPTIONS}
        self._options = {**said, "model": str(options.model) if options.model else None}
        self._onnx = ""

    def float_graph(self) -> Path:
        """The FP32 graph that everyone starts from.

        Raises:
            ModelError: when our weights cannot be exported.
        """
        if self.source.model is not None:
            return self.source.model
        if not self._onnx:
            made = spawn(Job(EXPORT, "", str(self.scratch / EXPORT), self._options), self._cache())
            if made.error:
                raise ModelError(
                    f"the FP32 graph of {self.source.name} cannot be made",
                    got=made.error,
                    expected="an ONNX graph to start from",
                    fix="see what 'vggdeploy export' says of these weights",
                )
            self._onnx = made.graph
        return Path(self._onnx)

    def run(
        self,
        name: str,
        *,
        place: str | None = None,
        cached_by: str | None = None,
        kept_images: int | None = None,
        **options: Any,
    ) -> Outcome:
        """The outcome of one job.

        Args:
            name: the competitor or step.
            place: its folder, `name` when None.
            cached_by: the place of a job that is done, whose stage cache this one goes on with.
            kept_images: see `Job`.
            options: changes of the build's options, JSON-ready.
        """
        onnx = str(self.float_graph())
        job = Job(
            name,
            onnx,
            str(self.scratch / (place or name)),
            {**self._options, **options},
            self.source.preprocess.to_json(),
            kept_images,
        )
        return spawn(job, self._cache(cached_by or place or name))

    def _cache(self, place: str = EXPORT) -> Path:
        cache = self.scratch / "caches" / place
        exported = self.scratch / "caches" / EXPORT / EXPORT
        if not cache.exists():
            cache.mkdir(parents=True)
            if exported.exists():
                (cache / EXPORT).symlink_to(exported)
        return cache


def spawn(job: Job, cache: Path) -> Outcome:
    """Do a job in a process of its own, with the stage cache `cache`.

    What it prints goes to a file in the job's folder, since standard output is for results and
    standard error for ours.
    """
    place = Path(job.out)
    place.mkdir(parents=True)
    given, result, log = (place / name for name in ("job.json", "result.json", "log.txt"))
    given.write_text(json.dumps(asdict(job)))
    command = [sys.executable, "-m", "vggdeploy.benchmarks.competitors", str(given), str(result)]
    with log.open("wb") as printed:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VGGDEPLOY_CACHE": str(cache)},
            check=False,
        )
    if done.returncode == 0:
        return Outcome(**json.loads(result.read_text()))
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = ", as when memory runs out" if name == "SIGKILL" else ""
        return Outcome(error=f"its process was ended by {name}{why}")
    said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
    return Outcome(error=f"its process ended with {done.returncode} and said: {said[-1][:200]}")
