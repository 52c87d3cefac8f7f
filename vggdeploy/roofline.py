"""The roofline, layer by layer: what each layer of a network took against its own floors.

A layer can be no faster than its multiply-accumulates at the peak rate of the precision that it
was computed in, nor than the bytes that it must fetch from memory at the attainable bandwidth
(Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009, whose operational intensity counts
the traffic between the caches and memory, as is done here).

What must come from memory:

- weights, once a query, where those of the whole network are more than the last-level cache holds:
  by the time that a layer comes round again, all others have passed through. Where they all fit,
  they stay, and need not come from memory at all.
- of a layer's input and output, what exceeds that cache: the input has just been written, the
  output is read next. Where the size of the cache is not known, they are taken to fit.

Both are the least that must move, so a floor is never above what is possible.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from vggdeploy.budget import Device, row_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from vggdeploy.contracts import LayerTime

Seconds = dict[tuple[str, ...], float]

REST = "in no layer"
"""The row of what the engine does besides the network's layers: reorders, conversions."""

CLASSES = {
    "f32": "fp32", "fp32": "fp32", "float": "fp32", "float32": "fp32", "tf32": "fp32",
    "f16": "fp16", "fp16": "fp16", "half": "fp16", "float16": "fp16",
    "bf16": "bf16", "bfloat16": "bf16",
    "i8": "int8", "u8": "int8", "int8": "int8", "uint8": "int8",
}  # fmt: skip
"""What backends call precisions, in small letters."""


def precision_class(said: str) -> str | None:
    """One of ``fp32``, ``fp16``, ``bf16``, ``int8``; None for a name that is none of them."""
    return CLASSES.get(said.lower())


@dataclass(frozen=True)
class Peaks:
    """What a device can attain.

    Attributes:
        macs_per_s: the peak rate of each precision that is known, at least one.
        bytes_per_s: from memory; 0 where it is not known.
        cache_bytes: of the last-level cache; None where it is not known.
    """

    macs_per_s: Mapping[str, float]
    bytes_per_s: float
    cache_bytes: int | None = None

    def rate(self, precision: str | None) -> float:
        """The peak rate of a precision; the highest of all where that one is not known."""
        known = self.macs_per_s.get(precision or "")
        return max(self.macs_per_s.values()) if known is None else known

    def device(self, precision: str) -> Device:
        """The two roofs for a network at a precision of `budget.PRECISIONS`."""
        return Device(self.rate(precision.split("-")[0]), self.bytes_per_s)


@dataclass(frozen=True)
class Layer:
    """A layer of the budget, for the whole batch of a query.

    Attributes:
        weight_bytes: of its parameters.
        activation_bytes: of its input and output, as far as they are known.
    """

    name: str
    kind: str
    macs: int
    weight_bytes: float
    activation_bytes: float


@dataclass(frozen=True)
class Row:
    """One layer of the network and what it took. Layers that the engine executes in one of its own
    are one row, whose names are joined with `` + ``.

    Attributes:
        engine_layers: the engine's layers that execute it; none where it was optimized away.
        precision: what it was computed in, by this project's names or else by the backend's.
        seconds: median over the queries.
        share: of all rows' seconds.
        macs: of the query.
        bytes: what must come from memory, see the module.
        activation_bytes: of its input and output; those of the largest in a joined row.
        intensity: MACs a byte from memory; None where there are none of either.
        floor_s: the higher of the two floors; 0 where it has none.
        of_floor: `seconds` over `floor_s`; None without a floor.
        bound: which floor that is; None without a floor.
        utilisation: of the peak rate; above 1 is possible (Winograd) and is shown.
    """

    name: str
    kind: str
    engine_layers: tuple[str, ...]
    precision: str | None
    seconds: float
    share: float
    macs: int
    bytes: float
    weight_bytes: float
    activation_bytes: float
    intensity: float | None
    peak_macs_per_s: float | None
    compute_floor_s: float
    memory_floor_s: float | None
    floor_s: float
    of_floor: float | None
    bound: Literal["compute", "memory"] | None
    achieved_macs_per_s: float | None
    achieved_bytes_per_s: float | None
    utilisation: float | None


def layers(
    said: Mapping[str, Any], precision: str, batch: int = 1, kept: Collection[str] = ()
) -> list[Layer]:
    """The layers of a bundle's ``layers.json`` for a query of `batch` images.

    Args:
        said: the budget, in the form of `budget.Budget.to_json` or `budget.from_rows`.
        precision: of the target.
        kept: names of the layers that were kept in FP32.
    """
    found = []
    for row in said["layers"]:
        # A network known by its graph alone has rows for layers with weights, without bytes.
        weights = row.get("weight_bytes")
        found.append(
            Layer(
                row["name"],
                row.get("kind") or ("conv" if len(row["output"]) == 3 else "linear"),
                batch * row["macs"],
                row_bytes(row, precision, kept) if weights is None else weights,
                batch / said.get("batch", 1) * row.get("activation_bytes", 0),
            )
        )
    return found


class Owners:
    """Which of the network's layers an engine's layer executes.

    Args:
        said: a bundle's ``layers.json``: ``nodes`` and ``tensors``, for each layer the node of the
            graph and the tensor that it writes, and ``engine_layers`` where a build could tell.
    """

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._engine = {
            layer["name"]: tuple(layer["budget"]) for layer in said.get("engine_layers") or ()
        }
        # A backend may name what a node became after its output; the node's own name goes first.
        self._of: dict[str, str] = {
            name: layer
            for key in ("tensors", "nodes")
            for layer, name in (said.get(key) or {}).items()
        }

    @property
    def known(self) -> bool:
        """Whether anything can be told."""
        return bool(self._of or self._engine)

    def of(self, time: LayerTime) -> tuple[str, ...]:
        """Names of the layers, in their order in `time`; none for what belongs to no layer."""
        if self._engine.get(time.name):
            return self._engine[time.name]
        found = (self._layer(node) for node in time.nodes)
        return tuple(dict.fromkeys(layer for layer in found if layer is not None))

    def _layer(self, node: str) -> str | None:
        """The layer of a node, or of a part that a backend made of it (``conv/WithoutBiases``)."""
        while node:
            if node in self._of:
                return self._of[node]
            node = node.rpartition("/")[0]
        return None


def rows(
    budget: Sequence[Layer],
    owners: Owners,
    queries: Sequence[Sequence[LayerTime]],
    peaks: Peaks,
    default: str,
) -> list[Row]:
    """Every layer of the budget, then what belongs to none, each with its time and floors.

    Args:
        budget: of `layers`.
        owners: of the same bundle.
        queries: the engine's layers in each of the queries, at least one.
        peaks: what the device can attain.
        default: what a layer is computed in where the backend does not say.
    """
    groups = _groups(budget, owners, queries)
    seconds = [_seconds(groups, owners, query) for query in queries]
    typical = {names: median(query.get(names, 0.0) for query in seconds) for names in groups}
    rest = median(query.get((), 0.0) for query in seconds)
    total = sum(typical.values()) + rest
    all_weights = sum(layer.weight_bytes for layer in budget)
    by_name = {layer.name: layer for layer in budget}
    found = []
    for names, took in typical.items():
        inside = _engine_layers(owners, queries[0], names)
        found.append(
            _row(
                [by_name[name] for name in names], inside, took, total, all_weights, peaks, default
            )
        )
    others = [time for time in queries[0] if not _known(owners.of(time), by_name)]
    if others:
        found.append(_row([], others, rest, total, all_weights, peaks, default))
    return found


def _known(names: Iterable[str], budget: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in budget)


def _groups(
    budget: Sequence[Layer], owners: Owners, queries: Sequence[Sequence[LayerTime]]
) -> list[tuple[str, ...]]:
    """The layers, joined where one of the engine's layers executes several, in their order."""
    group = {layer.name: {layer.name} for layer in budget}
    for query in queries:
        for time in query:
            names = _known(owners.of(time), group)
            joined = set().union(*(group[name] for name in names))
            for name in joined:
                group[name] = joined
    order = [layer.name for layer in budget]
    return list(dict.fromkeys(tuple(n for n in order if n in group[name]) for name in order))


def _seconds(
    groups: Sequence[tuple[str, ...]], owners: Owners, query: Sequence[LayerTime]
) -> Seconds:
    """What each group took in a query; the rest is that of the empty group."""
    of_name = {name: names for names in groups for name in names}
    found: Seconds = {}
    for time in query:
        names = _known(owners.of(time), of_name)
        key = of_name[names[0]] if names else ()
        found[key] = found.get(key, 0.0) + time.seconds
    return found


def _engine_layers(
    owners: Owners, query: Sequence[LayerTime], names: Collection[str]
) -> list[LayerTime]:
    return [time for time in query if set(owners.of(time)) & set(names)]


def _row(
    members: Sequence[Layer],
    inside: Sequence[LayerTime],
    seconds: float,
    total: float,
    all_weights: float,
    peaks: Peaks,
    default: str,
) -> Row:
    macs = sum(layer.macs for layer in members)
    weights = sum(layer.weight_bytes for layer in members)
    # Between layers of one engine layer nothing need be written: the largest alone is certain.
    activations = max((layer.activation_bytes for layer in members), default=0.0)
    cache = peaks.cache_bytes
    size = weights if cache is None or all_weights > cache else 0.0
    size += max(0.0, activations - cache) if cache is not None else 0.0
    precision = _precision(inside, default) if inside else None
    # What was optimized away has no floor: nobody computes it.
    size = size if inside else 0.0
    peak = peaks.rate(precision) if macs and inside else None
    compute = macs / peak if peak else 0.0
    memory = size / peaks.bytes_per_s if peaks.bytes_per_s else None
    floor = max(compute, memory or 0.0)
    timed = seconds > 0
    return Row(
        " + ".join(layer.name for layer in members) or REST,
        " + ".join(dict.fromkeys(layer.kind for layer in members)) or "other",
        tuple(time.name for time in inside),
        precision,
        seconds,
        seconds / total if total else 0.0,
        macs,
        size,
        weights,
        activations,
        macs / size if macs and size else None,
        peak,
        compute,
        memory,
        floor,
        seconds / floor if floor else None,
        None if not floor else "compute" if compute >= (memory or 0.0) else "memory",
        macs / seconds if macs and timed else None,
        size / seconds if size and timed else None,
        macs / seconds / peak if peak and timed else None,
    )


def _precision(inside: Sequence[LayerTime], default: str) -> str:
    """What most of the time was computed in."""
    spent: dict[str, float] = {}
    for time in inside:
        said = time.precision or default
        spent[said] = spent.get(said, 0.0) + time.seconds
    most = max(spent, key=lambda said: spent[said])
    return precision_class(most) or most


def peak_check(found: Iterable[Row]) -> dict[str, Any]:
    """Whether the peaks bound every layer: ``ok``, and ``beaten_by`` with the name of each layer
    that beat one, which (``compute`` or ``memory``), and both figures.

    A layer that beats a measured peak shows that the measurement fell short of it; one that beats
    the compute peak may also have multiplied less often than the network does (Winograd).
    """
    beaten = []
    for row in found:
        bandwidth = row.bytes / row.memory_floor_s if row.memory_floor_s else None
        for roof, achieved, peak in (
            ("compute", row.achieved_macs_per_s, row.peak_macs_per_s),
            ("memory", row.achieved_bytes_per_s, bandwidth),
        ):
            if achieved is not None and peak is not None and achieved > peak:
                beaten.append({"name": row.name, "roof": roof, "achieved": achieved, "peak": peak})
    return {"ok": not beaten, "beaten_by": beaten}


def chart(found: Iterable[Row], peaks: Peaks) -> dict[str, Any]:
    """The roofline as data: the roofs, and a point for each layer that multiplies.

    Under the roofs a point of ``intensity`` can have at most
    ``min(macs_per_s[precision], intensity * bytes_per_s)`` MACs a second. ``intensity`` is None for
    a layer that needs nothing from memory: it lies right of every ridge.
    """
    return {
        "macs_per_s": dict(peaks.macs_per_s),
        "bytes_per_s": peaks.bytes_per_s or None,
        "cache_bytes": peaks.cache_bytes,
        "points": [
            {
                "name": row.name,
                "precision": row.precision,
                "intensity": row.intensity,
                "macs_per_s": row.achieved_macs_per_s,
                "seconds": row.seconds,
            }
            for row in found
            if row.achieved_macs_per_s is not None
        ],
    }


def to_json(found: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows' JSON form."""
    return [{**asdict(row), "engine_layers": list(row.engine_layers)} for row in found]
