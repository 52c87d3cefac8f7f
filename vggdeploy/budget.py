"""The budget: what a network costs, and what a measurement is judged against.

A query can be no faster than its multiply-accumulates at the device's attainable rate, nor than
the bytes it must read at the device's attainable bandwidth (the roofline model: Williams, Waterman
and Patterson, CACM 52(4), 2009).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from vggdeploy import topology
from vggdeploy.contracts import INT4_GROUPS
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from vggdeploy.topology import Network, Row


@dataclass(frozen=True)
class Precision:
    """Bytes an element takes: weights, activations, and biases, which stay in high precision.

    `matrix` gives the precision of a fully connected layer by its inputs, where it is another.
    """

    name: str
    weight_bytes: float
    activation_bytes: int
    bias_bytes: int
    matrix: Callable[[int], Precision] | None = None

    def of(self, layer: str, *, inputs: int | None, kept: Collection[str] = ()) -> Precision:
        """What a layer is in: a fully connected one of so many inputs, a convolution where that is
        None, or one that was `kept` in FP32."""
        if layer in kept:
            return PRECISIONS["fp32"]
        return self if inputs is None or self.matrix is None else self.matrix(inputs)

    def parameters(self, weights: int, biases: int) -> float:
        """The bytes of a layer's parameters."""
        return weights * self.weight_bytes + biases * self.bias_bytes


def _grouped(inputs: int) -> Precision:
    """4 bits a weight, a float16 scale for each group of them, and float activations; 8 bits where
    no group fits."""
    group = INT4_GROUPS.fitting(inputs)
    if group is None:
        return Precision("w8", 1, 4, 4)
    return Precision("w4", 0.5 + 2 / group, 4, 4)


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision("fp32", 4, 4, 4),
    "fp16": Precision("fp16", 2, 2, 2),
    "bf16": Precision("bf16", 2, 2, 2),
    "int8": Precision("int8", 1, 1, 4),
    "int8-w4": Precision("int8-w4", 1, 1, 4, _grouped),
}


@dataclass(frozen=True)
class LayerBudget:
    """What one layer costs at a precision, for a batch.

    Attributes:
        macs: for one image.
        weight_bytes: parameters, read once a batch.
        activation_bytes: input read and output written, for the whole batch.
        intensity: MACs of the batch a byte moved.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    params: int
    macs: int
    receptive_field: int
    weight_bytes: int
    activation_bytes: int
    intensity: float


@dataclass(frozen=True)
class Budget:
    """A network's layers and totals; ``flops`` counts multiply and add apart."""

    arch: str
    precision: str
    batch: int
    layers: tuple[LayerBudget, ...]
    params: int
    macs: int
    weight_bytes: int
    activation_bytes: int

    @property
    def flops(self) -> int:
        return 2 * self.macs

    def to_json(self) -> dict[str, Any]:
        """The JSON form that scripts rely on."""
        return {
            "schema": 1,
            "kind": "budget",
            "arch": self.arch,
            "precision": self.precision,
            "batch": self.batch,
            "total": {
                "params": self.params,
                "macs": self.macs,
                "flops": self.flops,
                "weight_bytes": self.weight_bytes,
                "activation_bytes": self.activation_bytes,
            },
            "layers": [asdict(layer) for layer in self.layers],
        }


def budget(
    network: Network, precision: str = "fp32", batch: int = 1, kept: Collection[str] = ()
) -> Budget:
    """The budget of `network`, one row for each layer that computes or reshapes.

    ReLU and dropout are left out: they are fused into, or removed from, every engine. Layers named
    in `kept` are in FP32.

    Raises:
        ConfigError: for an unknown precision or an impossible batch.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            "unknown precision",
            got=repr(precision),
            expected="one of " + ", ".join(PRECISIONS),
            fix="choose one with --precision",
        )
    if batch < 1:
        raise ConfigError(
            "the batch is too small", got=batch, expected="1 or more", fix="mend --batch"
        )
    size = PRECISIONS[precision]
    shown = [row for row in topology.rows(network) if row.layer.kind not in ("relu", "dropout")]
    layers = tuple(
        _layer(row, size.of(row.name, inputs=_inputs(row), kept=kept), batch) for row in shown
    )
    return Budget(
        network.arch,
        precision,
        batch,
        layers,
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        weight_bytes=sum(layer.weight_bytes for layer in layers),
        activation_bytes=sum(layer.activation_bytes for layer in layers),
    )


def _inputs(row: Row) -> int | None:
    """Of a fully connected layer; None for another."""
    return row.layer.in_channels if row.layer.kind == "linear" else None


def _layer(row: Row, size: Precision, batch: int) -> LayerBudget:
    elements = math.prod(row.input) + math.prod(row.output)
    weights = row.layer.weights
    weight_bytes = round(size.parameters(weights, row.params - weights))
    activation_bytes = batch * elements * size.activation_bytes
    return LayerBudget(
        row.name,
        row.layer.kind,
        row.output,
        row.params,
        row.macs,
        row.receptive_field,
        weight_bytes,
        activation_bytes,
        batch * row.macs / (weight_bytes + activation_bytes),
    )


def from_rows(
    name: str, rows: list[dict[str, Any]], precision: str, kept: Collection[str] = ()
) -> dict[str, Any]:
    """The JSON form of a budget for a network known by its graph alone (`graph_layers.rows`).

    Layers named in `kept` are in FP32.
    """
    params = sum(row["params"] for row in rows)
    macs = sum(row["macs"] for row in rows)
    return {
        "schema": 1,
        "kind": "budget",
        "arch": name,
        "precision": precision,
        "batch": 1,
        "total": {
            "params": params,
            "macs": macs,
            "flops": 2 * macs,
            "weight_bytes": round(sum(row_bytes(row, precision, kept) for row in rows)),
        },
        "layers": rows,
    }


def row_bytes(row: Mapping[str, Any], precision: str, kept: Collection[str] = ()) -> float:
    """Bytes of the parameters of a row of `graph_layers.rows`."""
    # Older bundles do not say which of the parameters are weights, nor the inputs.
    weights = row.get("weights", row["params"])
    # The output of a convolution has positions, that of a matrix product has none.
    linear = row.get("kind") == "linear" or len(row["output"]) == 1
    inputs = row.get("inputs", INT4_GROUPS.group) if linear else None
    size = PRECISIONS[precision].of(row["name"], inputs=inputs, kept=kept)
    return size.parameters(weights, row["params"] - weights)


@dataclass(frozen=True)
class Device:
    """What a device can attain at a precision, measured with the backend itself or from a table
    (`gpus`). A bandwidth of 0 is one that is not known."""

    macs_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Judgement:
    """A measured query against its two floors.

    Attributes:
        macs: multiply-accumulates of the query (all images of the batch).
        achieved_macs_per_s: `macs` over the measured time.
        utilisation: achieved over peak; above 1 is possible (Winograd) and is shown.
        compute_floor_s: `macs` at the peak rate.
        memory_floor_s: the weights' bytes at the attainable bandwidth; None, as the bandwidth,
            where that is not known.
        bound: which floor is the higher one.
    """

    macs: int
    achieved_macs_per_s: float
    peak_macs_per_s: float
    utilisation: float
    bytes: int
    peak_bytes_per_s: float | None
    compute_floor_s: float
    memory_floor_s: float | None
    bound: Literal["compute", "memory"]


def judge(macs: int, weight_bytes: int, seconds: float, device: Device) -> Judgement:
    """Judge a query of `macs` that reads `weight_bytes` and took `seconds`.

    Activations are left out of the bytes: on a CPU they stay in cache between layers, so counting
    them would raise the floor above what is possible.
    """
    compute = macs / device.macs_per_s
    memory = weight_bytes / device.bytes_per_s if device.bytes_per_s else None
    return Judgement(
        macs,
        macs / seconds,
        device.macs_per_s,
        macs / seconds / device.macs_per_s,
        weight_bytes,
        device.bytes_per_s or None,
        compute,
        memory,
        "compute" if memory is None or compute >= memory else "memory",
    )
