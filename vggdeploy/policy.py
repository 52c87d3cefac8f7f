"""The policy of a gate: which figures are bounded, by how much, and for which target.

A figure has a bound of its own, or one beside a baseline's (``max_ratio``): how many times worse
than that it may be. ``[gate]`` in a settings file holds both, ``[gate.targets.NAME]`` what is
otherwise for a target; a flag comes before them.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from vggdeploy.config import require_known
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

HUGE = 1e30
"""More than any figure."""

WINOGRAD = 4.0
"""Times fewer multiplications that the fastest convolutions in use take, F(4x4, 3x3): by so much
their rate can be above the peak (A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016)."""

MAX_RATIO = "max_ratio"
TARGETS = "targets"


@dataclass(frozen=True)
class Metric:
    """A figure that a gate judges.

    Attributes:
        name: in ``max_ratio`` and in what a verdict says.
        bound: its key in a policy; ``min_`` where more is better.
        kind: of the result that has it; ``any`` for every kind.
        path: where in that result.
        unit: as a verdict prints it.
        low: the least that the figure can be.
        high: the most.
        asked: what a bound is below, where the figure may be above it.
        relative: whether a ratio to a baseline's means something.
    """

    name: str
    bound: str
    kind: Literal["verify", "bench", "any"]
    path: tuple[str, ...]
    unit: str = ""
    low: float = 0.0
    high: float = HUGE
    asked: float = HUGE
    relative: bool = True

    @property
    def more_is_better(self) -> bool:
        """Whether its bound is a least."""
        return self.bound.startswith("min_")

    def meets(self, value: float, bound: float) -> bool:
        """Whether a value keeps a bound."""
        return value >= bound if self.more_is_better else value <= bound


METRICS = {
    metric.name: metric
    for metric in (
        Metric("agreement", "min_agreement", "verify", ("parity", "top1_agreement"), high=1),
        # Of zero, or of less than that, nothing is a multiple.
        Metric("drop", "max_drop", "verify", ("accuracy", "drop"), "", -1, 1, relative=False),
        Metric("top1", "min_top1", "verify", ("accuracy", "top1"), high=1),
        Metric("cosine", "min_cosine", "verify", ("parity", "cosine_min"), "", -1, 1),
        # Further down than squares of float32 can be apart.
        Metric("sqnr", "min_sqnr", "verify", ("parity", "sqnr_db"), "dB", -2000),
        Metric("p50", "max_p50", "bench", ("latency_s", "p50"), "s"),
        Metric("p99", "max_p99", "bench", ("latency_s", "p99"), "s"),
        Metric("throughput", "min_throughput", "bench", ("throughput_ips",), "images/s"),
        Metric(
            "utilisation", "min_utilisation", "bench", ("budget", "utilisation"), asked=WINOGRAD
        ),
        Metric("engine_bytes", "max_engine_bytes", "any", ("engine_bytes",), "bytes"),
        Metric("resident_bytes", "max_resident_bytes", "bench", ("resident_bytes",), "bytes"),
        Metric("energy", "max_energy", "bench", ("energy", "joules_per_image"), "J"),
    )
}
"""Every figure that can be bounded, by name, in the order of a verdict."""


@dataclass(frozen=True)
class Policy:
    """The bounds; None is no bound.

    Attributes:
        min_agreement: share of images with the reference's best class, below 1.
        max_drop: reference top-1 minus top-1, as a share: 0.005 is half a point.
        min_top1: share of labelled images that are right, below 1.
        min_cosine: smallest cosine similarity of any image's scores.
        min_sqnr: mean signal to quantization noise of the scores, in decibels.
        max_p50: median latency, in seconds.
        max_p99: 99th percentile of latency, in seconds.
        min_throughput: images a second.
        min_utilisation: achieved MAC rate over the measured peak.
        max_engine_bytes: size of the engine's files.
        max_resident_bytes: most memory that measuring held.
        max_energy: joules an image.
        max_ratio: by metric's name, how many times worse than the baseline's it may be: 1.05 is
            5% slower, larger, or fewer a second; of ``sqnr``, 5% more power of noise.
    """

    min_agreement: float | None = None
    max_drop: float | None = None
    min_top1: float | None = None
    min_cosine: float | None = None
    min_sqnr: float | None = None
    max_p50: float | None = None
    max_p99: float | None = None
    min_throughput: float | None = None
    min_utilisation: float | None = None
    max_engine_bytes: float | None = None
    max_resident_bytes: float | None = None
    max_energy: float | None = None
    max_ratio: Mapping[str, float] = field(default_factory=dict)

    def bound(self, metric: Metric) -> float | None:
        """The bound of a figure itself; None where it has none."""
        value: float | None = getattr(self, metric.bound)
        return value


BOUNDS = tuple(each.name for each in fields(Policy) if each.name != MAX_RATIO)
"""The keys that hold a number, as flags and settings name them."""

DEFAULT = Policy(min_agreement=0.99)
"""Held when no bound is given at all: an INT8 VGG that decides one image in a hundred otherwise
than its reference deserves a look."""


@dataclass(frozen=True)
class Policies:
    """What flags and settings say, for any target.

    Attributes:
        given: bounds of every target, by their keys, and ``max_ratio``; None is no bound.
        first: the keys that a target's own table does not change: they were given as flags.
        targets: by target, the keys of its own table.
        ratios: of ``max_ratio``, those that were given as flags.
    """

    given: Mapping[str, Any]
    first: Collection[str] = frozenset()
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)

    def of(self, target: str) -> Policy:
        """The policy of a target; `DEFAULT` where nothing is bounded."""
        own = self.targets.get(target, {})
        bounds = {**self.given, **{k: v for k, v in own.items() if k not in self.first}}
        general, of_target = (said.get(MAX_RATIO) or {} for said in (self.given, own))
        return make({**bounds, MAX_RATIO: {**general, **of_target, **self.ratios}})


def make(bounds: Mapping[str, Any], where: str = "the policy") -> Policy:
    """A policy from bounds by key; `DEFAULT` when there is none.

    Raises:
        ConfigError: for an unknown key, or a bound that is no number or cannot be met.
    """
    given = {key: value for key, value in bounds.items() if value is not None and value != {}}
    if not given:
        return DEFAULT
    ratios = given.pop(MAX_RATIO, {})
    for key, value in given.items():
        require_known(key, (*BOUNDS, MAX_RATIO), where)
        _check(key, value, where)
    if not isinstance(ratios, dict):
        raise ConfigError(
            f"{where}: {MAX_RATIO} is wrong",
            got=repr(ratios),
            expected="a table of metrics, such as p99 = 1.05",
            fix="make it a table",
        )
    for name, value in ratios.items():
        require_known(
            name, [m.name for m in METRICS.values() if m.relative], f"{where}, {MAX_RATIO}"
        )
        _number(f"{MAX_RATIO}.{name}", value, where)
        if value <= 0:
            raise ConfigError(
                f"{where}: {MAX_RATIO}.{name} is wrong",
                got=value,
                expected="above 0; 1.05 allows 5% more",
                fix="mend the flag or the setting",
            )
    return Policy(**given, max_ratio=dict(ratios))


def split(
    settings: Mapping[str, Any], known_targets: Collection[str], where: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """The tables below ``[gate]`` of settings, apart from all else.

    Args:
        settings: as `config.load` gave them.
        known_targets: names that a target's table can have.
        where: the file, for errors.

    Returns:
        the settings without them, ``max_ratio``, and each target's table.

    Raises:
        ConfigError: for an unknown target or key, or a bound that cannot be.
    """
    gate = settings.get("gate", {})
    if not isinstance(gate, dict):
        return dict(settings), {}, {}
    flat = {key: value for key, value in gate.items() if key not in (MAX_RATIO, TARGETS)}
    ratios, targets = gate.get(MAX_RATIO, {}), gate.get(TARGETS, {})
    bounds = {key: value for key, value in flat.items() if key in BOUNDS}
    make({**bounds, MAX_RATIO: ratios}, f"{where}: [gate]")
    if not isinstance(targets, dict):
        raise ConfigError(
            f"{where}: gate.{TARGETS} is wrong",
            got=repr(targets),
            expected="tables such as [gate.targets.ov-int8]",
            fix="make it a table of tables",
        )
    for name, table in targets.items():
        require_known(name, known_targets, f"{where}: [gate.{TARGETS}]")
        if not isinstance(table, dict):
            raise ConfigError(
                f"{where}: gate.{TARGETS}.{name} is wrong",
                got=repr(table),
                expected="a table of bounds",
                fix="make it a table",
            )
        make(table, f"{where}: [gate.{TARGETS}.{name}]")
    return {**settings, "gate": flat}, dict(ratios), {k: dict(v) for k, v in targets.items()}


def ratios(words: Collection[str]) -> dict[str, float]:
    """``max_ratio`` from words such as ``p99=1.05``.

    Raises:
        ConfigError: for a word of another form, and for two of one metric.
    """
    found: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip()
        if name in found:
            raise ConfigError(
                f"--max-ratio bounds {name} twice",
                got=", ".join(words),
                expected="one ratio for each metric",
                fix="drop one of them",
            )
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(
                "--max-ratio is wrong",
                got=repr(word),
                expected="METRIC=RATIO, such as p99=1.05",
                fix="mend the flag",
            )
    return found


def _number(key: str, value: Any, where: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < HUGE:
        raise ConfigError(
            f"{where}: bound {key} is wrong",
            got=reprlib.repr(value),
            expected=f"a number below {HUGE:g}",
            fix="mend the flag or the setting",
        )


def _check(key: str, value: Any, where: str) -> None:
    """Refuse what every figure keeps, and what none can be, or be shown to be."""
    _number(key, value, where)
    metric = next(each for each in METRICS.values() if each.bound == key)
    exact = metric.name == "cosine"  # that every image has 1 is seen, where a share of 1 is not
    high = min(metric.high, metric.asked)
    if metric.low < value < high or (exact and value == high):
        return
    if high == HUGE:
        expected = f"above {metric.low:g}"
    elif metric.name in ("agreement", "top1") and value == 1:
        # One more image may always be another.
        expected = "below 1: no number of images shows that all would"
    else:
        expected = f"above {metric.low:g} and {'at most' if exact else 'below'} {high:g}"
        expected += "; divide percent by 100" if metric.low == 0 else ""
    raise ConfigError(
        f"{where}: bound {key} is wrong",
        got=value,
        expected=expected,
        fix="mend the flag or the setting",
    )
