"""Second moments of layers' inputs as the engine will see them, for second-order rounding.

Each image gives some of its output positions, drawn anew for each, so that a layer's matrix is
filled by a fixed number of patches whatever the size of its map.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import graphs
from vggdeploy.calib.collect import passes
from vggdeploy.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from vggdeploy.contracts import IntegerType, Reporter, Runner
    from vggdeploy.dataset import Dataset
    from vggdeploy.graphs import WeightedNode
    from vggdeploy.preprocess import Preprocess

WIDEST = 8192
"""Inputs of a convolution whose matrix is kept: 268 MB of float32."""

PATCHES_PER_INPUT = 6
FEWEST_PATCHES = 8192

_BUFFER = 512
"""Patches that are multiplied at once, or a few more: 9 MB of the widest layer's."""


@dataclass(frozen=True)
class Wanted:
    """A layer whose inputs' second moments are asked for.

    Attributes:
        name: of the weight.
        tensor: the layer's float input.
        kernel: height and width; None for a matrix product.
        strides: of a convolution.
        dilations: of a convolution.
        pads: top, left, bottom, right.
        factors: what each input channel, or each input, is multiplied by; None for 1.
        scale: the quantization step of the input once multiplied; None where it is not quantized.
        limits: smallest and largest integer of the input.
        inputs: columns of the layer's weights.
    """

    name: str
    tensor: str
    kernel: tuple[int, int] | None
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    factors: NDArray[np.float32] | None
    scale: float | None
    limits: tuple[int, int]
    inputs: int


@dataclass(frozen=True)
class Moments:
    """What is known of a layer's quantized inputs.

    Attributes:
        covariance: float32 ``[inputs, inputs]``, the mean of ``x x^T``, not centred; None for a
            matrix product, which has fewer samples than inputs.
        samples: float32 ``[images, inputs]``, the inputs themselves; None for a convolution.
        quantized: float64 ``[inputs]``, the mean of ``x``.
        exact: float64 ``[inputs]``, the mean of the inputs before they are quantized.
    """

    covariance: NDArray[np.float32] | None
    samples: NDArray[np.float32] | None
    quantized: NDArray[np.float64]
    exact: NDArray[np.float64]


def wanted(
    found: WeightedNode,
    source: ir.Value,
    factors: NDArray[np.float32] | None,
    scale: float | None,
    kind: IntegerType | None,
) -> Wanted | None:
    """What to ask for to round `found`; None where it is too wide, grouped, or padded by rule."""
    inputs = graphs.rows(found).shape[1]
    shape = graphs.static_shape(source)
    if shape is None or None in shape[1:]:
        return None
    kernel, node = None, found.node
    strides = dilations = (1, 1)
    pads = (0, 0, 0, 0)
    if found.convolution:
        if not found.plain or inputs > WIDEST:
            return None
        assert found.weight.const_value is not None
        sides = found.weight.const_value.numpy().shape
        kernel = sides[2], sides[3]
        strides = tuple(graphs.attribute(node, "strides", strides))
        dilations = tuple(graphs.attribute(node, "dilations", dilations))
        pads = tuple(graphs.attribute(node, "pads", pads))
    elif len(shape) != 2:
        return None
    limits = (kind.qmin, kind.qmax) if kind else (0, 0)
    return Wanted(
        str(found.weight.name), str(source.name), kernel, strides, dilations, pads, factors, scale,
        limits, inputs,
    )  # fmt: skip


def covariances(
    runner: Runner,
    layers: Sequence[Wanted],
    images: Dataset,
    preprocess: Preprocess,
    seed: int,
    reporter: Reporter | None = None,
) -> dict[str, Moments]:
    """Run `images` through a float network and multiply up what its layers read.

    Args:
        runner: a float network, open, for batches of one image, with an output for every tensor
            that a layer reads, but for its own input.
        layers: what is asked for.
        images: what to run.
        preprocess: how an image becomes the network's input.
        seed: draws the positions.
        reporter: told the progress.

    Returns:
        Moments by the weight's name.

    Raises:
        DatasetError: naming an image that cannot be decoded.
        CalibrationError: naming a tensor that held a NaN or an infinity, and the image.
    """
    sums = {layer.name: _Sum(layer, len(images)) for layer in layers}
    outputs = passes(runner, images, preprocess, reporter, "observing layers' inputs")
    for index, (sample, held) in enumerate(zip(images.samples, outputs, strict=True)):
        for layer in layers:
            own = (seed < 0, abs(seed), index, zlib.crc32(layer.name.encode()))
            if not sums[layer.name].add(held[layer.tensor][0], np.random.default_rng(own)):
                raise CalibrationError(
                    f"tensor {layer.tensor!r} cannot be observed in image {sample.path}",
                    got="NaN or infinity",
                    expected="finite values",
                    fix="check the weights and --preprocess",
                )
    return {name: total.moments() for name, total in sums.items()}


class _Sum:
    """A layer's running sums."""

    def __init__(self, layer: Wanted, images: int) -> None:
        self.layer = layer
        goal = max(FEWEST_PATCHES, PATCHES_PER_INPUT * layer.inputs)
        self.share = -(-goal // images)
        self._matrix = None
        if layer.kernel is not None:
            self._matrix = np.zeros((layer.inputs, layer.inputs), np.float32)
        self._means = np.zeros((2, layer.inputs), np.float64)
        self._count = 0
        self._held: list[NDArray[np.float32]] = []

    def add(self, values: NDArray[np.float32], drawn: np.random.Generator) -> bool:
        """Take some patches of one image; False, and nothing taken, where they are not finite."""
        layer = self.layer
        if layer.factors is not None:
            sides = (1,) * (values.ndim - 1)
            values = values * layer.factors.reshape(-1, *sides)
        exact = _patches(values, layer, self.share, drawn)
        sums = exact.sum(0, np.float64)
        if not np.isfinite(sums).all():
            return False
        rows = exact
        if layer.scale is not None:
            scale = np.float32(layer.scale)
            rows = np.clip(np.rint(exact / scale), *layer.limits) * scale
        self._means += np.stack([rows.sum(0, np.float64), sums])
        self._count += len(rows)
        self._held.append(rows)
        if self._matrix is not None and sum(map(len, self._held)) >= _BUFFER:
            self._multiply(self._matrix)
        return True

    def _multiply(self, matrix: NDArray[np.float32]) -> None:
        rows = np.concatenate(self._held)
        matrix += rows.T @ rows
        self._held = []

    def moments(self) -> Moments:
        quantized, exact = self._means / self._count
        if self._matrix is None:
            return Moments(None, np.concatenate(self._held), quantized, exact)
        if self._held:
            self._multiply(self._matrix)
        self._matrix /= self._count
        return Moments(self._matrix, None, quantized, exact)


def _patches(
    values: NDArray[np.float32], layer: Wanted, share: int, drawn: np.random.Generator
) -> NDArray[np.float32]:
    """Up to `share` patches ``[patches, inputs]`` of a map ``[C, H, W]`` or a vector."""
    if layer.kernel is None:
        return np.array(values[None])  # the runner may write over its own
    top, left, bottom, right = layer.pads
    padded = np.pad(values, ((0, 0), (top, bottom), (left, right)))
    spans = [(side - 1) * step for side, step in zip(layer.kernel, layer.dilations, strict=True)]
    rows = range(0, padded.shape[1] - spans[0], layer.strides[0])
    columns = range(0, padded.shape[2] - spans[1], layer.strides[1])
    places = len(rows) * len(columns)
    chosen = np.arange(places)
    if places > share:
        chosen = np.sort(drawn.choice(places, share, replace=False))
    y = chosen // len(columns) * layer.strides[0]
    x = chosen % len(columns) * layer.strides[1]
    down = np.arange(layer.kernel[0]) * layer.dilations[0]
    across = np.arange(layer.kernel[1]) * layer.dilations[1]
    found = padded[
        :, y[:, None, None] + down[None, :, None], x[:, None, None] + across[None, None, :]
    ]
    return np.ascontiguousarray(found.transpose(1, 0, 2, 3)).reshape(len(chosen), -1)
