"""Small networks that show what OpenVINO attains on a device: MAC rates and bandwidth."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy.contracts import Probe
from vggdeploy.machine import caches
from vggdeploy.targets import openvino_module
from vggdeploy.targets.openvino import OpenVINO, OpenVINORunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.contracts import RunOptions

_CONVOLUTIONS = ((128, 112, 2), (256, 56, 2), (512, 28, 2), (512, 14, 4))
"""Channels, side and number of 3x3 convolutions: the shapes of VGG at 224 pixels that a layer's MACs
are largest in. Which of them a device is fastest at differs with its caches and its kernels."""

_FLOAT_CONVOLUTIONS = _CONVOLUTIONS[1:3]
"""Where float is not what most of the network is computed in."""

_MATRIX_ROWS = 64
"""Rows of a matrix product that is bound by arithmetic: each weight serves all of them."""

_WIDTH = 4096
"""Outputs of the fully connected probes, as VGG has them."""

_CACHES = 4
"""Last-level caches that the weights of a bandwidth probe would fill: what is left in them from the
query before is a quarter at most, and in practice nothing, since they are read from end to end."""

_LEAST_BYTES, _UNKNOWN_BYTES = 32 << 20, 128 << 20
"""Weights of a bandwidth probe at least, and where the size of the cache is not known."""


def probes(target: OpenVINO, options: RunOptions) -> Sequence[Probe]:
    """Networks for every precision that layers of `target` are computed in, and for bandwidth."""
    ov = openvino_module.load()
    options = replace(options, batch=1, goal="latency")
    single = OpenVINO("ov-fp32", "fp32", None)
    # A quantized network has float layers too, with narrow weights at least.
    main = "int8" if target.dialect else target.precision
    found = convolutions(target, main, options, _CONVOLUTIONS)
    if target.dialect:
        found += convolutions(target, "fp32", options)
    model, macs, _ = _matrix(ov, main, _MATRIX_ROWS, _WIDTH)
    name = f"{main} matrix product"
    float_too = "fp32" if target.dialect else main
    found.append(
        Probe(
            name,
            OpenVINORunner(target, model, (), replace(options, batch=_MATRIX_ROWS), name=name),
            macs=macs,
            precision=float_too,
        )
    )
    # Bandwidth is the device's, whatever the precision, and products with narrow weights may be
    # bound by the arithmetic that widens them.
    weights = _weight_bytes()
    for of, kind in {main: (target, main), "fp32": (single, "fp32")}.values():
        model, _, size = _matrix(ov, kind, 1, weights // _bytes(kind) // _WIDTH)
        name = f"{kind} matrix-vector product"
        found.append(Probe(name, OpenVINORunner(of, model, (), options, name=name), bytes=size))
    return found


def convolutions(
    target: OpenVINO,
    precision: str,
    options: RunOptions,
    shapes: Sequence[tuple[int, int, int]] = _FLOAT_CONVOLUTIONS,
) -> list[Probe]:
    """Networks for the MAC rate of a precision alone."""
    ov = openvino_module.load()
    found = []
    for shape in shapes:
        model, macs = _convolutions(ov, precision, *shape)
        name = f"{precision} conv {shape[0]}x{shape[1]}x{shape[1]}"
        runner = OpenVINORunner(target, model, (), options, name=name)
        found.append(Probe(name, runner, macs=macs, precision=precision))
    return found


def _weight_bytes() -> int:
    """Of a bandwidth probe: far more than the last-level cache, far less than the memory."""
    cache = caches.last_level_bytes()
    if cache is None:
        return _UNKNOWN_BYTES
    wanted = max(_LEAST_BYTES, _CACHES * cache)
    if not hasattr(os, "sysconf"):
        return wanted
    return min(
        wanted, max(_UNKNOWN_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16)
    )


def _bytes(precision: str) -> int:
    return {"int8": 1, "fp32": 4}.get(precision, 2)


def _quantized(value: Any, precision: str) -> Any:
    """An activation as an INT8 target has it: unsigned 8 bits of 0 to 4."""
    ops = openvino_module.load().opset13
    if precision != "int8":
        return value
    low, high = np.float32(0), np.float32(4)
    return ops.fake_quantize(value, low, high, low, high, 256)


def _weights(shape: tuple[int, ...], precision: str) -> Any:
    """Random weights of a target's type, dequantized where they are integers."""
    ops = openvino_module.load().opset13
    # A block of them again and again: the time that a draw of all would take is better spent.
    rng = np.random.default_rng(0)
    if precision != "int8":
        return ops.constant(np.resize(rng.standard_normal(65_521, np.float32) * 0.02, shape))
    integers = np.resize(rng.integers(-127, 128, 65_521, np.int8), shape)
    scale = np.full((shape[0], *(1,) * (len(shape) - 1)), 2e-4, np.float32)
    return ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(scale))


def _convolutions(ov: Any, precision: str, channels: int, side: int, count: int) -> tuple[Any, int]:
    """3x3 convolutions, one after the other, and their MACs: what VGG does most."""
    ops = openvino_module.load().opset13
    image = ops.parameter([1, channels, side, side], np.float32, name="image")
    value: Any = image
    for _ in range(count):
        value = ops.convolution(
            _quantized(value, precision),
            _weights((channels, channels, 3, 3), precision),
            [1, 1],
            [1, 1],
            [1, 1],
            [1, 1],
        )
        value = ops.relu(value)
    # Pooled and quantized, so that no time goes into writing wide floats.
    value = ops.max_pool(
        _quantized(value, precision),
        [side, side],
        [1, 1],
        [0, 0],
        [0, 0],
        [side, side],
    ).output(0)
    return ov.Model([value], [image], "convolutions"), count * side**2 * channels**2 * 9


def _matrix(ov: Any, precision: str, rows: int, inputs: int) -> tuple[Any, int, int]:
    """One fully connected layer, its MACs and the bytes of its weights."""
    ops = openvino_module.load().opset13
    vector = ops.parameter([rows, inputs], np.float32, name="image")
    value = ops.matmul(vector, _weights((_WIDTH, inputs), precision), False, True)
    macs = rows * inputs * _WIDTH
    return ov.Model([value], [vector], "matrix"), macs, inputs * _WIDTH * _bytes(precision)
