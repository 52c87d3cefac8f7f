"""What the machine was like around a measurement: heat, throttling, energy, and what else it did."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from vggdeploy import machine
from vggdeploy.benchmarks.energy import Meter
from vggdeploy.machine import files, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


class Conditions:
    """Made before anything runs; `window` goes around the samples; `to_json` joins the result.

    ::

        conditions = Conditions(options.device, target.device_facts(options.device))
        ...                          # open, warm up
        with conditions.window():
            ...                      # the samples
        reasons += conditions.throttled
        result = {..., **conditions.to_json(images)}

    Args:
        device: the backend's name of what is measured.
        facts: of the target's ``device_facts``.
        root: of the file system.
        clock: seconds.
        sleep: passes the time in which idle power is measured, where the machine tells its power.
    """

    def __init__(
        self,
        device: str = "CPU",
        facts: Mapping[str, Any] | None = None,
        *,
        root: Path = files.ROOT,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root = root
        self._load = limits.load(root)
        self._before = machine.temperatures(root)
        self._after: dict[str, float] = {}
        self._resident: int | None = None
        self._meter = Meter(device, facts, root=root, clock=clock)
        self._meter.idle(sleep=sleep)
        self.throttled: list[str] = []

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """The time of the samples: energy is counted in it, throttling looked for."""
        before = machine.state(self._root)
        try:
            with self._meter:
                yield
        finally:
            # Also of a measurement that was interrupted: its samples are kept.
            after = machine.state(self._root)
            self._after = dict(after.temperature_c)
            self._resident = machine.resident(self._root)
            self.throttled += machine.throttling(before, after)

    def to_json(
        self, images: int, begin: float | None = None, end: float | None = None
    ) -> dict[str, Any]:
        """What joins a result.

        Args:
            images: that were computed in the window.
            begin: of the samples, by the clock, where more than they were in the window.
            end: of the samples, likewise.

        Returns:
            ``energy`` (None where it is not told, ``energy_note`` says why then), ``temperature_c``
            ``before`` anything ran and ``after`` the samples, ``resident_bytes`` (the most memory
            that this process held until the samples were taken; None where it is not told), and
            ``system`` with the load average from before.
        """
        return {
            "energy": self._meter.result(images, begin, end),
            "energy_note": self._meter.note,
            "temperature_c": {"before": self._before, "after": self._after},
            "resident_bytes": self._resident,
            "system": {**machine.system(self._root), "load_average": self._load},
        }
