"""One entry point under trial: what it may do with an input, and what counts against it."""

from __future__ import annotations

import contextlib
import hashlib
import resource
import sys
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from entries import ENTRIES

from vggdeploy.errors import VggdeployError

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 1.0
"""Of one input at most; processor time, since others use the machine too."""

GROWTH = 200 << 20
"""Bytes that memory may grow by, over all inputs."""

_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass
class Tally:
    """What was seen.

    Attributes:
        refused: inputs that ended in an error of the tree.
        slowest_s: processor time of the slowest input.
        growth_bytes: of the most memory that the process ever held.
        found: what was against the rules, with the file that did it.
    """

    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    growth_bytes: int = 0
    found: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Harness:
    """Feeds an entry point, in a folder of its own."""

    def __init__(self, name: str, folder: Path, kept: Path | None = None) -> None:
        self.entry, self.folder, self.kept, self.name = ENTRIES[name], folder, kept, name
        self.tally = Tally()
        self._places: set[str] = set()
        # What is imported late, and what is kept for good, counts for nobody.
        self.seeds = list(self.entry.seeds(folder))
        for seed in self.seeds * 2:
            with contextlib.suppress(VggdeployError):
                self.entry.read(seed, folder)
        self._before = _peak()

    def feed(self, content: bytes) -> str | None:
        """Read an input; what is against the rules, or None."""
        self.tally.inputs += 1
        wrong, seconds = self._read(content)
        if seconds > SECONDS:  # once more: the first time may have been for something else
            seconds = min(seconds, self._read(content)[1])
        self.tally.slowest_s = max(self.tally.slowest_s, seconds)
        grown = _peak() - self._before
        if wrong is None and seconds > SECONDS:
            wrong = f"took {seconds:.2f} s"
        if wrong is None and self.tally.growth_bytes <= GROWTH < grown:
            wrong = f"memory grew by {grown >> 20} MiB"
        self.tally.growth_bytes = max(self.tally.growth_bytes, grown)
        if wrong is not None:
            self._keep(content, wrong)
        return wrong

    def _read(self, content: bytes) -> tuple[str | None, float]:
        start = time.process_time()
        wrong = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.entry.read(content, self.folder)
        except VggdeployError as error:
            self.tally.refused += 1
            if "\n" in str(error):
                wrong = f"says more than a line: {error}"
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "/tests/" not in frame.filename] or list(frames)
            wrong = f"{type(error).__name__} at {_place(own[-1])} by {_place(own[0])}: {error}"[
                :400
            ]
        return wrong, time.process_time() - start

    def _keep(self, content: bytes, wrong: str) -> None:
        place = wrong.split(": ")[0] if " at " in wrong else wrong[:8]
        if place in self._places:
            return
        self._places.add(place)
        said = {"wrong": wrong, "file": ""}
        if self.kept is not None:
            self.kept.mkdir(parents=True, exist_ok=True)
            file = self.kept / f"{self.name}-{hashlib.sha256(content).hexdigest()[:12]}"
            file.write_bytes(content)
            said["file"] = str(file)
        self.tally.found.append(said)


def _place(frame: traceback.FrameSummary) -> str:
    return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
