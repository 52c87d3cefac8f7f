"""A queue of queries for OpenVINO: threads that wait, each for a request of its own.

OpenVINO's own queue calls Python from the threads of its streams, and one of them may still hold such
a callback, which it can let go of only with Python's lock, when a model is closed by a thread that
holds that lock and waits for the streams to end: on a busy machine, often. A thread that waits for a
request needs nothing of the kind, and while it waits others run.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Work = Callable[[int], None]


class Lanes:
    """As many threads as there are requests.

    Args:
        count: queries in flight at most.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._places = threading.Semaphore(count)
        self._waiting: SimpleQueue[Work | None] = SimpleQueue()
        self._failures: list[BaseException] = []
        self._threads: Sequence[threading.Thread] = [
            threading.Thread(target=self._serve, args=(lane,), name=f"lane {lane}", daemon=True)
            for lane in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, work: Work) -> None:
        """Do `work` in a lane, whose number it is given; waits while all are taken."""
        self._places.acquire()
        self._waiting.put(work)

    def drain(self) -> list[BaseException]:
        """Wait for all that was begun; what failed since the last time."""
        for _ in range(self._count):
            self._places.acquire()
        self._places.release(self._count)
        failures, self._failures = self._failures, []
        return failures

    def close(self) -> None:
        """Wait for all that was begun, and end the threads."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, lane: int) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                work(lane)
            except BaseException as error:  # kept for `drain`
                self._failures.append(error)
            finally:
                # Held no longer than it takes: a batch may be large.
                work = None
                self._places.release()
