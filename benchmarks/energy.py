"""Joules an image, over the same time as the samples, with what the machine draws idle taken off.

None where the machine does not tell its power, with the reason: a figure is never estimated.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy.benchmarks import power
from vggdeploy.machine import files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

IDLE_SECONDS = 1.0
"""How long idle power is measured: a thousand updates of RAPL, some ten of other sensors."""


_EARLY = 0.99
"""A sleep may end a little before its time."""


class Meter:
    """Energy between entering and leaving.

    ::

        meter = Meter("CPU")
        meter.idle()
        with meter:
            ...            # the samples
        result = meter.result(images=len(samples))

    Args:
        device: the backend's name of what is measured.
        facts: of the target's ``device_facts``; see `power.source`.
        root: of the file system.
        clock: seconds.
        watched: whether a thread reads the source at its interval. Without, it is read at both
            ends alone, and whenever `sample` is called.

    Attributes:
        note: why there is no figure; empty where there is one.
        idle_watts: what `idle` found; None before, and where nothing is told.
        idle_seconds: over how long.
    """

    def __init__(
        self,
        device: str = "CPU",
        facts: Mapping[str, Any] | None = None,
        *,
        root: Path = files.ROOT,
        clock: Callable[[], float] = time.perf_counter,
        watched: bool = True,
    ) -> None:
        self._open: Callable[[], Any] = lambda: power.source(device, facts, root)
        self._clock = clock
        self._watched = watched
        self._stack = contextlib.ExitStack()
        self._source: power.Source | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._points: list[tuple[float, float]] = []
        self._name = ""
        self._least = 0.0
        self.note = "nothing was measured"
        self.idle_watts: float | None = None
        self.idle_seconds = 0.0

    def idle(
        self, seconds: float = IDLE_SECONDS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Measure what the machine draws with nothing to do, for `seconds`; at once where it does
        not tell. Whatever else it does meanwhile counts as idle."""
        watched, self._watched = self._watched, False
        with self:
            if self._source is not None:
                turns = math.ceil(seconds / self._source.interval)
                for _ in range(turns):
                    sleep(seconds / turns)
                    self.sample()
        self._watched = watched
        joules, seconds = self._within(None, None)
        if not self.note and seconds > 0:
            self.idle_watts, self.idle_seconds = joules / seconds, seconds

    def __enter__(self) -> Self:
        self._stop.clear()
        self._source, self.note = self._stack.enter_context(self._open())
        begin = self._clock()
        self._points = [(begin, 0.0)]
        try:
            if self._source is not None:
                self._name, self._least = self._source.name, self._source.least_seconds
                self._source.start(begin)
        except power.PowerError as error:
            self._fail(error)
        if self._source is not None and self._watched:
            self._thread = threading.Thread(target=self._watch, name="power", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        thread, self._thread = self._thread, None
        self._stop.set()
        try:
            if thread is not None:
                thread.join()
            self.sample()
        finally:
            self._source = None
            self._stack.close()

    def sample(self) -> None:
        """Read the source now."""
        with self._lock:
            if self._source is None:
                return
            try:
                now = self._clock()
                used = self._source.advance(now)
                self._points.append((now, self._points[-1][1] + used))
            except power.PowerError as error:
                self._fail(error)

    def result(
        self, images: int, begin: float | None = None, end: float | None = None
    ) -> dict[str, Any] | None:
        """The figures of the last block, or of a part of it; None, with a `note`, where there are
        none.

        Args:
            images: that were computed in it.
            begin: of the part, on the meter's clock; the block's own if None. Between two readings
                the power is taken to be even.
            end: of the part, likewise.

        Returns:
            ``joules_per_image`` and ``watts`` of all that was drawn, ``idle_watts`` before and
            ``idle_seconds`` they were measured for, ``net_joules_per_image`` above idle (both None
            where idle was not measured), ``source``, ``seconds`` and ``images``.
        """
        joules, seconds = self._within(begin, end)
        if not self.note and not images:
            self.note = "no image was computed"
        if self.note:
            return None
        net = None
        if self.idle_watts is not None:
            net = (joules - self.idle_watts * seconds) / images
        return {
            "joules_per_image": joules / images,
            "watts": joules / seconds,
            "idle_watts": self.idle_watts,
            "idle_seconds": self.idle_seconds if self.idle_watts is not None else None,
            "net_joules_per_image": net,
            "source": self._name,
            "seconds": seconds,
            "images": images,
        }

    def _within(self, begin: float | None, end: float | None) -> tuple[float, float]:
        """Joules and seconds from `begin` to `end`; notes where they cannot be told."""
        if self.note:
            return 0.0, 0.0
        times, joules = zip(*self._points, strict=True)
        begin = times[0] if begin is None else begin
        end = times[-1] if end is None else end
        seconds = end - begin
        if not times[0] <= begin <= end <= times[-1]:
            self.note = "what was measured lies outside of what the meter saw"
        elif seconds <= 0 or seconds < _EARLY * self._least:
            self.note = (
                f"{seconds:.2g} s are too few for {self._name}, which takes {self._least:g} s"
            )
        used = np.interp(end, times, joules) - np.interp(begin, times, joules)
        return float(used), seconds

    def _fail(self, error: power.PowerError) -> None:
        self._source, self.note = None, str(error)

    def _watch(self) -> None:
        source = self._source
        while source is not None and not self._stop.wait(source.interval):
            self.sample()
            source = self._source
