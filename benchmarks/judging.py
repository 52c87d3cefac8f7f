"""Judging quantized models: their outputs, and their latency measured in turn."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy.contracts import Runner, RunOptions, TensorSpec
from vggdeploy.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vggdeploy.contracts import GraphTarget, Outputs, Reporter
    from vggdeploy.dataset import Dataset
    from vggdeploy.preprocess import Preprocess

WARMUP = 5
"""Queries of each engine before any is measured."""


class OnnxRuntimeRunner(Runner):
    """Runs an ONNX graph in onnxruntime, on the CPU, with its own defaults but one: its threads do
    not spin on after a query, where they would take time from the engine that is next."""

    def __init__(self, onnx: Path, batch_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.name = f"onnxruntime runner of {onnx.name}"
        self._onnx = onnx
        self.input = TensorSpec("image", batch_shape)
        self.outputs = (TensorSpec("scores", (None,)),)
        self._session: Any = None

    def _start(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                str(self._onnx), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise ModelError(
                f"onnxruntime does not take {self._onnx.name}",
                got=error,
                expected="operators that onnxruntime has",
                fix="leave its rows out with --only",
            ) from error
        self._input = self._session.get_inputs()[0].name

    def _stop(self) -> None:
        self._session = None

    def _infer(self, batch: NDArray[np.float32]) -> Outputs:
        return {self.outputs[0].name: self._session.run(None, {self._input: batch})[0]}


def scores(
    target: GraphTarget,
    graph: Path,
    images: Dataset,
    recipe: Preprocess,
    reporter: Reporter,
    label: str,
) -> NDArray[np.float32]:
    """The first output of a graph for each image, ``[N, values]``.

    Raises:
        ModelError: when the target does not take the graph, or gives NaN or infinity.
    """

    def queries() -> Iterator[NDArray[np.float32]]:
        for image in images.pixels(recipe):
            yield recipe.arithmetic(image[None])

    with target.open_graph(graph, (), RunOptions(goal="throughput")) as runner:
        name = runner.outputs[0].name
        found = np.concatenate(
            [
                outputs[name].reshape(1, -1).copy()
                for outputs in reporter.track(runner.infer_many(queries()), len(images), label)
            ]
        )
    if not np.isfinite(found).all():
        raise ModelError(
            f"{label}: its outputs are not finite",
            got=f"{int((~np.isfinite(found)).any(1).sum())} of {len(found)} images with NaN or infinity",
            expected="finite scores",
            fix="check the weights and --preprocess",
        )
    return found


def interleave(
    runners: Sequence[Runner], batch: NDArray[np.float32], runs: int
) -> list[list[float]]:
    """Seconds of `runs` queries of each open runner, one of each in turn.

    The order moves on by one each turn, and every second round is backwards: what runs next finds
    the caches as the one before has left them. No runners, no samples.
    """
    count = len(runners)
    samples: list[list[float]] = [[] for _ in runners]
    for turn in range(WARMUP + runs):
        order = [(turn + step) % count for step in range(count)]
        backwards = turn // max(count, 1) % 2
        for index in reversed(order) if backwards else order:
            start = time.perf_counter()
            runners[index].infer(batch)
            if turn >= WARMUP:
                samples[index].append(time.perf_counter() - start)
    return samples


def requantized(runner: Any) -> list[str]:
    """Names of executed FakeQuantize nodes of an OpenVINO runner: a second quantize between a pool
    and its reader, say."""
    return [
        layer["name"]
        for layer in runner.executed_layers()
        if layer["type"] in ("FakeQuantize", "Quantize")
    ]
