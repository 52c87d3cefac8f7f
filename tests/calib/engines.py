"""Engines that run a Q/DQ graph, and whether what they give is what the graph means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import reach
from networks import FORMS

from vggdeploy import machine
from vggdeploy.contracts import DIALECTS, RunOptions
from vggdeploy.targets.openvino import OpenVINO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import float64
    from numpy.typing import NDArray

    from vggdeploy.contracts import Dialect

    Array = NDArray[Any]


def _onnxruntime(
    path: Path, image: Array, taps: Sequence[str], optimized: bool = False
) -> dict[str, Array]:
    import onnx

    onnxruntime = pytest.importorskip("onnxruntime")
    model = onnx.load(path)
    names = [*(value.name for value in model.graph.output), *taps]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
    model = onnx.shape_inference.infer_shapes(model)
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Products of dequantized weights in float32; by default they are approximated with 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (port,) = session.get_inputs()
    return dict(zip(names, session.run(None, {port.name: image}), strict=True))


def _onnxruntime_optimized(path: Path, image: Array, taps: Sequence[str]) -> dict[str, Array]:
    return _onnxruntime(path, image, taps, optimized=True)


class _Kernels(OpenVINO):
    """OpenVINO without roundings of its own: products of floats stay such."""

    def configuration(self, options: RunOptions) -> dict[str, Any]:
        return {**super().configuration(options), "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


class _FloatKernels(_Kernels):
    """And without its low-precision transformations: Q/DQ pairs round in float32."""

    def configuration(self, options: RunOptions) -> dict[str, Any]:
        return {**super().configuration(options), "LP_TRANSFORMS_MODE": "NO"}


def _openvino(
    path: Path, image: Array, taps: Sequence[str], kind: type[OpenVINO] = _Kernels
) -> dict[str, Array]:
    target = kind("ov-int8", "int8", DIALECTS["openvino"])
    with target.open_graph(path, taps, RunOptions(batch=len(image))) as runner:
        return {name: array.copy() for name, array in runner.infer(image).items()}


def _openvino_float(path: Path, image: Array, taps: Sequence[str]) -> dict[str, Array]:
    return _openvino(path, image, taps, _FloatKernels)


@dataclass(frozen=True)
class Engine:
    """A way to run a graph.

    Attributes:
        run: from an ONNX file, an image and names of tensors to show, to outputs by name.
        shows: whether it can show integers without computing otherwise.
        integers: whether sums of 8-bit products are made of integers.
        integer_bias: whether biases are rounded to the step of those sums.
        roundings: which float16 tensors are rounded to float16; of several, any may hold for a
            layer.
    """

    run: Callable[[Path, Array, Sequence[str]], dict[str, Array]]
    shows: bool = True
    integers: bool = False
    integer_bias: bool = False
    roundings: tuple[reach.Rounds, ...] = (reach.nowhere,)

    def saturates(self, dialect: Dialect) -> bool:
        """Whether integers overflow here: x86 without VNNI adds pairs of 8-bit products in 16
        bits, which hold 2 * 255 * 64 and not 2 * 255 * 127."""
        return self.integers and dialect.weight.qmax > 64 and machine.saturates()


ENGINES = {
    # Every node as it stands. Nodes without a float16 kernel are given float32, which is carried on
    # to the next QuantizeLinear, and back to the last DequantizeLinear unless a Flatten is between.
    "onnxruntime": Engine(
        _onnxruntime, roundings=(reach.weights_and_quantized, reach.all_but_products)
    ),
    "onnxruntime optimized": Engine(_onnxruntime_optimized, integers=True, integer_bias=True),
    # float16 is a matter of constants alone, and whether a layer's weights are multiplied out in
    # float16 or kept as integers and scales depends on the layer.
    "openvino float": Engine(_openvino_float, roundings=(reach.nowhere, reach.weights)),
    # What OpenVINO is to show is no longer fused, and other kernels run.
    "openvino integers": Engine(_openvino, shows=False, integers=True),
}


RUNS = [
    (name, form)
    for name, engine in ENGINES.items()
    for form, dialect in FORMS.items()
    # A float16 graph is for TensorRT, whose integers nothing here runs.
    if not (engine.integers and dialect.high_precision == "float16")
]
"""Engine and form, by name, of every graph that an engine here can be asked to run."""


def exact(name: str, form: str) -> Engine:
    """The engine; skips the test where this CPU's integers overflow."""
    if ENGINES[name].saturates(FORMS[form]):
        pytest.skip("this CPU's 8-bit products saturate at 16 bits with 8-bit weights")
    return ENGINES[name]


@dataclass(frozen=True)
class Verdict:
    """How what an engine gave lies in its intervals.

    Attributes:
        wrong: tensors with elements outside, and what is wrong with them.
        undecided: share of the integers that may be one of several.
        widest: the most steps that an integer's interval spans.
    """

    wrong: dict[str, str]
    undecided: float
    widest: int


def hold(engine: Engine, path: Path, image: Array, meant: float64.Graph) -> Verdict:
    """Run a graph and hold every tensor that the engine shows against what the graph means.

    Args:
        engine: what runs it.
        path: the graph to run.
        image: what to feed.
        meant: the graph to judge by; the one at `path`, unless that has been tampered with.
    """
    quantizers = [node.output for node in meant.nodes if node.operator == "QuantizeLinear"]
    given = engine.run(path, image, quantizers if engine.shows else ())
    wrongs = []
    for rounds in engine.roundings:
        intervals = reach.reach(meant, image, given, rounds, engine.integer_bias)
        wrongs.append(_outside(intervals, given))
    # Each layer is judged on what the engine itself fed to it, so layers are right or wrong apart.
    wrong = {name: what for name, what in wrongs[0].items() if all(name in w for w in wrongs)}
    spans = np.concatenate(
        [(intervals[name].high - intervals[name].low).ravel() for name in quantizers]
    )
    return Verdict(wrong, float((spans > 0).mean()), int(spans.max()))


def _outside(intervals: Mapping[str, reach.Interval], given: Mapping[str, Array]) -> dict[str, str]:
    wrong = {}
    for name, array in given.items():
        interval = intervals[name]
        if array.shape != interval.low.shape:
            wrong[name] = f"shape {array.shape}, not {interval.low.shape}"
            continue
        found = array.astype(np.float64)
        off = interval.misses(found)
        if off.any():
            beyond = np.maximum(interval.low - found, found - interval.high).max()
            wrong[name] = f"{off.sum()} of {off.size} elements outside, by up to {beyond:.3g}"
    return wrong
