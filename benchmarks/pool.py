"""Runners that are kept open between their turns, as many as memory is spent on."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from vggdeploy.benchmarks.search import Candidate
    from vggdeploy.contracts import Runner

KEPT_OPEN = 3
"""Runners that are open at once: one of VGG16 takes 140 to 400 MB."""


class Pool:
    """Open runners by candidate, the `KEPT_OPEN` used last.

    Args:
        opener: gives a candidate's runner, not yet open.

    Attributes:
        opened: how often one was opened.
    """

    def __init__(self, opener: Callable[[Candidate], Runner]) -> None:
        self.opened = 0
        self._opener = opener
        self._open: OrderedDict[Candidate, Runner] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._open:
            self._open.popitem()[1].__exit__(kind, error, trace)

    def close(self, candidate: Candidate) -> None:
        """Close the candidate's runner."""
        self._open.pop(candidate).__exit__(None, None, None)

    def get(self, candidate: Candidate) -> Runner:
        """The candidate's runner."""
        if candidate in self._open:
            self._open.move_to_end(candidate)
            return self._open[candidate]
        while len(self._open) >= KEPT_OPEN:
            self._open.popitem(last=False)[1].__exit__(None, None, None)
        runner = self._opener(candidate).__enter__()
        self._open[candidate] = runner
        self.opened += 1
        return runner
