"""What TensorRT's profiler tells of an execution context: the time of each of the engine's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggdeploy.contracts import LayerTime
from vggdeploy.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Profiler:
    """Hears of the layers of each execution of one context.

    It has to be asked for after each execution and before the next, once that has ended: a context
    that reports by itself does it inside of `execute_async_v3`, which then waits for the device.

    Args:
        module: the package of TensorRT.
        context: the execution context; it keeps a reference to what is made here.
    """

    def __init__(self, module: Any, context: Any) -> None:
        self._context = context
        self._heard: list[tuple[str, float]] = []
        context.profiler = _listener(module, self._heard)
        # Present from 8.2 on (release notes); before, contexts always report by themselves.
        self._asked = hasattr(context, "report_to_profiler")
        if self._asked:
            context.enqueue_emits_profile = False

    def seconds(self) -> list[tuple[str, float]]:
        """Name and seconds of each layer of the last execution, in its order.

        Raises:
            RunnerError: when TensorRT does not tell.
        """
        if self._asked:
            self._heard.clear()
            if not self._context.report_to_profiler():
                raise RunnerError(
                    "TensorRT does not tell what its layers took",
                    got="no report",
                    expected="the times of the last query",
                    fix="run a query first; if one was, run without --layers",
                )
        return list(self._heard)

    def forget(self) -> None:
        """Before an execution: what was heard was of the one before."""
        self._heard.clear()


def _listener(module: Any, heard: list[tuple[str, float]]) -> Any:
    """An object of TensorRT's own base class, which counts in milliseconds."""

    class Listener(module.IProfiler):  # type: ignore[misc]  # of a package that is not typed
        def __init__(self) -> None:
            # TensorRT asks for the base class by name: its bindings do not follow super().
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            heard.append((layer_name, ms * 1e-3))

    return Listener()


def joined(
    times: Iterable[tuple[str, float]], layers: Iterable[Mapping[str, Any]]
) -> list[LayerTime]:
    """The profiler's times with what the inspector says of the same layers (`trt_layers.parse`).

    A layer's precision is that of its first input, which is what its products are made of; the
    inspector writes it before the layout where it has no field of its own (``Int8 NC/32HW32``).
    """
    said = {layer["name"]: layer for layer in layers}
    found = []
    for name, seconds in times:
        layer = said.get(name, {})
        inputs = layer.get("inputs") or [{}]
        kind = inputs[0].get("type") or str(inputs[0].get("format") or "").partition(" ")[0]
        found.append(
            LayerTime(
                name, tuple(layer.get("nodes") or ()), layer.get("type") or "", kind or "", seconds
            )
        )
    return found
