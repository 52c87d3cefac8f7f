"""2:4 sparsity: of every 4 successive inputs of a layer, 2 have weights that are not zero.

Sparse tensor cores multiply such weights at twice the rate (A. Mishra et al., "Accelerating Sparse
Deep Neural Networks", 2021). TensorRT asks for the pattern along the input channels, for each output
channel and each position of the kernel ("TensorRT Documentation", Structured Sparsity).

The 2 weights of the smallest magnitude go. What that does to the layer's outputs over the inputs
``x`` seen in calibration is ``(w - v)^T H (w - v)``, ``H = E[x x^T]``, and the weights that are left
can make good for much of it: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be
Accurately Pruned in One-Shot", 2023, whose section 3.2 has the exact answer, a least squares of its
own for each row. Rows differ in what they lost, so none of them shares a factor with another; what
they share is the product with H, and that is all that conjugate gradients ask for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vggdeploy import graphs
from vggdeploy.calib.covariance import Wanted, wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir

    from vggdeploy.calib.covariance import Moments
    from vggdeploy.contracts import Reporter
    from vggdeploy.graphs import WeightedNode

Array = NDArray[np.float32]

PATTERN = "2:4"
"""What ``--sparsity`` takes."""

_LEFT, _OF = 2, 4

_STEPS = 60
_ENOUGH = 1e-3
"""Conjugate gradients end where the gradient is this share of what it was, or after `_STEPS`."""

_BLOCK_ELEMENTS = 1 << 22
"""Weights are worked on 16 MiB at a time: the largest layer has 411 MB of them."""


@dataclass(frozen=True)
class Pruned:
    """What pruning did to one layer.

    Attributes:
        name: of the layer.
        weight_error: ``|w - v| / |w|`` of the weights before and after.
        output_error: the same of the layer's outputs, without its bias, over the inputs that were
            seen; None where none were.
    """

    name: str
    weight_error: float
    output_error: float | None


@dataclass(frozen=True)
class Sparse:
    """What became of a network's layers.

    Attributes:
        layers: those that have the pattern now.
        dense: (name, reason) of those that have not.
        weight_error: of the weights of all layers in `layers` together.
    """

    layers: tuple[Pruned, ...]
    dense: tuple[tuple[str, str], ...]
    weight_error: float


def positions(found: WeightedNode) -> int:
    """Weights of one output for each input channel: the kernel's positions, 1 of a matrix."""
    assert found.weight.const_value is not None
    shape = found.weight.const_value.numpy().shape
    return math.prod(shape[2:]) if found.convolution else 1


def unfit(found: WeightedNode) -> str:
    """Why a layer cannot have the pattern; empty where it can."""
    channels = graphs.rows(found).shape[1] // positions(found)
    return f"{channels} inputs, no multiple of {_OF}" if channels % _OF else ""


def largest(rows: Array, taps: int) -> NDArray[np.bool_]:
    """Which weights ``[outputs, inputs]`` stay: of every 4 successive input channels, for each
    output and kernel position, the 2 largest by magnitude; of equal ones the first.

    Args:
        rows: channel by channel, a multiple of 4 of them.
        taps: `positions` of each channel.
    """
    groups = np.abs(rows).reshape(len(rows), -1, _OF, taps)
    stays = np.empty(groups.shape, np.bool_)
    for own in range(_OF):
        beaten = np.zeros(groups[:, :, own].shape, np.int8)
        for other in range(_OF):
            if other < own:
                beaten += groups[:, :, other] >= groups[:, :, own]
            elif other > own:
                beaten += groups[:, :, other] > groups[:, :, own]
        stays[:, :, own] = beaten < _LEFT
    return stays.reshape(rows.shape)


def holds(found: WeightedNode) -> bool:
    """Whether a layer's weights have the pattern, as they are."""
    if unfit(found):
        return False
    taps = positions(found)
    blocks = (np.not_equal(block, 0) for _, block in _blocks(graphs.rows(found)))
    return all((block.reshape(len(block), -1, _OF, taps).sum(2) <= _LEFT).all() for block in blocks)


def wanted_inputs(model: ir.Model) -> list[Wanted]:
    """What pruning needs to know of each layer whose weights that are left can make good for the
    others; not of weights that several nodes read, each of which has inputs of its own."""
    found = []
    for node in graphs.weighted(model):
        source = node.node.inputs[0]
        if source is None or unfit(node) or len(node.weight.uses()) > 1:
            continue
        layer = wanted(node, source, None, None, None)
        if layer is not None:
            found.append(layer)
    return found


def prune(
    model: ir.Model, moments: dict[str, Moments], damping: float, reporter: Reporter
) -> Sparse:
    """Give every layer of a float graph the pattern; edited in place.

    Args:
        model: the graph.
        moments: of layers' inputs, by the weight's name; those layers are made good for what they
            lose. They are taken out one by one, so that memory is free again for the next.
        damping: share of the mean of H's diagonal that is added to it: what keeps the weights near
            to what they were where inputs say nothing.
        reporter: told the progress.
    """
    import onnx_ir

    nodes = {str(found.weight.name): found for found in graphs.weighted(model)}
    dense = tuple((found.name, reason) for found in nodes.values() if (reason := unfit(found)))
    fit = [name for name, found in nodes.items() if not unfit(found)]
    layers, lost, whole = [], 0.0, 0.0
    for name in reporter.track(fit, len(fit), "pruning weights"):
        found, known = nodes[name], moments.pop(name, None)
        rows = graphs.rows(found)
        made, off, size = _prune(rows, positions(found), _Products(known, damping))
        seen = None if known is None else _share(off[1], size[1])
        layers.append(Pruned(found.name, _share(off[0], size[0]), seen))
        lost, whole = lost + off[0], whole + size[0]
        tensor = found.weight.const_value
        assert tensor is not None
        turned = made.T if found.channel_axis == 1 else made
        array = np.ascontiguousarray(turned).reshape(tensor.numpy().shape)
        found.weight.const_value = onnx_ir.tensor(array, name=found.weight.name)
    return Sparse(tuple(layers), dense, _share(lost, whole))


def _prune(
    rows: Array, taps: int, products: _Products
) -> tuple[Array, NDArray[np.float64], NDArray[np.float64]]:
    """A layer's pruned weights; what was lost, squared, of the weights and of the outputs; and
    what there was."""
    made = np.empty(rows.shape, np.float32)
    off, size = np.zeros(2), np.zeros(2)
    for part, block in _blocks(rows):
        stays = largest(block, taps)
        made[part] = block * stays
        if products.known:
            made[part] = reconstruct(block, stays, products.damped, products.diagonal)
        for index, times in enumerate((_same, products.exact)):
            for sums, values in ((off, block - made[part]), (size, block)):
                sums[index] += np.einsum("ij,ij->", values, times(values), dtype=np.float64)
    return made, off, size


def reconstruct(
    weight: Array, stays: NDArray[np.bool_], times: Callable[[Array], Array], diagonal: Array
) -> Array:
    """The weights with zeros where they do not stay whose outputs are nearest to those of `weight`:
    for each row the least ``(w - v)^T A (w - v)``, by preconditioned conjugate gradients (Shewchuk,
    "An Introduction to the Conjugate Gradient Method Without the Agonizing Pain", 1994, B3), every
    row with steps of its own.

    Args:
        weight: ``[rows, columns]``.
        stays: of the same shape.
        times: multiplies rows with A, symmetric and positive definite ``[columns, columns]``.
        diagonal: of A.

    Returns:
        float32 of the shape of `weight`, never worse than `weight` with zeros in it.
    """
    found = weight * stays
    rest = times(weight - found) * stays
    step = rest / diagonal
    energy = _dot(rest, step)
    first = energy.copy()
    for _ in range(_STEPS):
        moving = energy > first * _ENOUGH**2
        if not moving.any():
            break
        pushed = times(step) * stays
        length = np.where(moving, energy / np.maximum(_dot(step, pushed), _TINY), 0)
        found += length * step
        rest -= length * pushed
        solved = rest / diagonal
        renewed = _dot(rest, solved)
        step = solved + renewed / np.maximum(energy, _TINY) * step
        energy = np.where(moving, renewed, energy)
    return found


_TINY = np.float32(np.finfo(np.float32).tiny)


def _dot(left: Array, right: Array) -> Array:
    found: Array = np.einsum("ij,ij->i", left, right)
    return found[:, None]


class _Products:
    """Products of rows with the second moments of a layer's inputs; with nothing, where these are
    not known."""

    def __init__(self, moments: Moments | None, damping: float) -> None:
        self.known = moments is not None
        self._covariance = moments.covariance if moments else None
        self._samples = moments.samples if moments else None
        energy = np.zeros(1, np.float32)
        if self._covariance is not None:
            energy = np.diagonal(self._covariance)
        elif self._samples is not None:
            energy = np.square(self._samples).mean(0)
        self._ridge = np.float32(damping * (float(energy.mean(dtype=np.float64)) or 1.0))
        self.diagonal: Array = energy + self._ridge

    def exact(self, rows: Array) -> Array:
        """``rows H``."""
        found = np.zeros_like(rows)
        if self._covariance is not None:
            found = rows @ self._covariance
        elif self._samples is not None:
            found = (rows @ self._samples.T / np.float32(len(self._samples))) @ self._samples
        return found

    def damped(self, rows: Array) -> Array:
        """``rows A``, with the damping in A."""
        found: Array = self.exact(rows) + self._ridge * rows
        return found


def _same(rows: Array) -> Array:
    return rows


def _share(off: float, size: float) -> float:
    return math.sqrt(off / size) if size else 0.0


def _blocks(rows: Array) -> Iterator[tuple[slice, Array]]:
    step = max(1, _BLOCK_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield part, np.asarray(rows[part], np.float32)
