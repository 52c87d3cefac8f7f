"""Gates: measured figures against bounds; the verdict that a CI job ends with.

A bound that was asked for and has no figure to be held against makes the gate inconclusive: a
missing measurement never passes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from vggdeploy.errors import ConfigError, ResultError
from vggdeploy.machine import require_same

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Result = Mapping[str, Any]

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Policy:
    """The bounds; None is no bound.

    Attributes:
        min_agreement: share of images with the reference's best class, 0 to 1.
        max_drop: reference top-1 minus top-1, as a share: 0.005 is half a point.
        min_top1: share of labelled images that are right.
        min_cosine: smallest cosine similarity of any image's scores.
        min_sqnr: mean signal to quantization noise of the scores, in decibels.
        max_p50: median latency, in seconds.
        max_p99: 99th percentile of latency, in seconds.
        min_throughput: images a second.
        min_utilisation: achieved MAC rate over the measured peak.
        max_engine_bytes: size of the engine's files.
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


DEFAULT = Policy(min_agreement=0.99)
"""Held when no bound is given at all: an INT8 VGG that decides one image in a hundred otherwise
than its reference deserves a look."""


@dataclass(frozen=True)
class Criterion:
    """One bound and what became of it.

    Attributes:
        note: why it could not be told.
        execution: ``native`` or ``emulated``, for what a verification found; empty for the rest.
    """

    name: str
    bound: float
    value: float | None
    verdict: Verdict
    note: str = ""
    execution: str = ""


@dataclass(frozen=True)
class Verdicts:
    """Every criterion, and the verdict over all: the worst of them.

    Attributes:
        digest: of the bundle.
        judged: ``data`` or ``probes``; None where nothing was verified.
        images: how many were judged.
        cautions: what the machines of the results do not have in common, where that was allowed.
        execution: ``native``, or ``emulated`` where accuracy was judged without the device.
        unstable: why the speed figures are not to be trusted; empty when they are.
    """

    verdict: Verdict
    criteria: tuple[Criterion, ...]
    execution: str | None
    unstable: tuple[str, ...]
    digest: str
    judged: str | None
    images: int
    cautions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON form of a gate's result."""
        return {"kind": "gate", **asdict(self)}


_FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "min_agreement": ("verify", ("parity", "top1_agreement")),
    "max_drop": ("verify", ("accuracy", "drop")),
    "min_top1": ("verify", ("accuracy", "top1")),
    "min_cosine": ("verify", ("parity", "cosine_min")),
    "min_sqnr": ("verify", ("parity", "sqnr_db")),
    "max_p50": ("bench", ("latency_s", "p50")),
    "max_p99": ("bench", ("latency_s", "p99")),
    "min_throughput": ("bench", ("throughput_ips",)),
    "min_utilisation": ("bench", ("budget", "utilisation")),
    "max_engine_bytes": ("any", ("engine_bytes",)),
}
"""For each bound, the kind of result that has its figure, and where."""

_HUGE = 1e30
_RANGES = {
    "min_agreement": (0.0, 1.0),
    "max_drop": (-1.0, 1.0),
    "min_top1": (0.0, 1.0),
    "min_cosine": (-1.0, 1.0),
    "min_sqnr": (-_HUGE, _HUGE),
}
"""What a figure can be; 0 to a huge number where nothing is said."""

_P99_SAMPLES = 368
"""With fewer, the 99th percentile has no 95% interval: 0.99 ** 368 is the first power below 0.025."""

_SPEED = ("max_p50", "max_p99", "min_throughput", "min_utilisation")


def policy(bounds: Mapping[str, Any]) -> Policy:
    """A policy from bounds by name; `DEFAULT` when there is none.

    Raises:
        ConfigError: for a bound that is no number or cannot be met.
    """
    given = {name: value for name, value in bounds.items() if value is not None}
    if not given:
        return DEFAULT
    for name, value in given.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ConfigError(
                f"bound {name} is wrong",
                got=repr(value),
                expected="a finite number",
                fix="mend the flag or the setting",
            )
        share = name in ("min_agreement", "min_top1", "min_cosine")
        if (share and not 0 <= value <= 1) or (name == "max_drop" and not -1 <= value <= 1):
            raise ConfigError(
                f"bound {name} is wrong",
                got=value,
                expected="a share, 0 to 1",
                fix="divide percent by 100",
            )
        if name.startswith("max_") and name != "max_drop" and value <= 0:
            raise ConfigError(
                f"bound {name} is wrong",
                got=value,
                expected="above 0",
                fix="mend the flag or the setting",
            )
    return Policy(**given)


def judge(results: Sequence[Result], bounds: Policy, *, across_machines: bool = False) -> Verdicts:
    """Hold results of one bundle, verified and measured on one machine, against `bounds`.

    Where a bundle was built does not count, nor where it was emulated: that is not of a machine.

    Args:
        results: of build, verify, bench or run.
        bounds: what they are held against.
        across_machines: allows a verification on another machine than the measurement's.

    Raises:
        ResultError: when the results are of different bundles or machines, of a kind that has no
            figures, or incomplete.
    """
    by_kind: dict[str, Result] = {}
    for result in _parts(results):
        kind = str(_look(result, "kind"))
        if kind not in ("build", "verify", "bench"):
            raise ResultError(
                f"a result of kind {kind!r} has nothing to gate",
                expected="results of build, verify, bench or run",
                fix="give another file",
            )
        if kind in by_kind:
            raise ResultError(
                f"there are two results of kind {kind!r}", expected="one of each", fix="give one"
            )
        by_kind[kind] = result
    digests = {kind: _look(result, "digest", str) for kind, result in by_kind.items()}
    if len(set(digests.values())) > 1:
        raise ResultError(
            "the results are of different bundles",
            got=", ".join(f"{kind} of {digest[:16]}..." for kind, digest in digests.items()),
            expected="one digest",
            fix="verify and bench the same bundle",
        )
    bench, verify = by_kind.get("bench"), by_kind.get("verify")
    unstable = tuple(map(str, _look(bench, "unstable_because", list))) if bench else ()
    cautions: tuple[str, ...] = ()
    if bench and verify and _look(verify, "execution", str) == "native":
        # What decides speed alone may have been set between the two.
        cautions = require_same(verify, bench, across_machines=across_machines, speed=False)
    criteria = tuple(
        _executed(_criterion(field.name, float(bound), by_kind, bool(unstable)), verify)
        for field in fields(bounds)
        if (bound := getattr(bounds, field.name)) is not None
    )
    ranked: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    worst: Verdict = min((c.verdict for c in criteria), key=ranked.index, default="inconclusive")
    return Verdicts(
        worst,
        criteria,
        execution=_look(verify, "execution", str) if verify else None,
        unstable=unstable,
        digest=next(iter(digests.values()), ""),
        judged=_look(verify, "judged", str) if verify else None,
        images=int(_look(_look(verify, "parity", dict), "n", int)) if verify else 0,
        cautions=cautions,
    )


def _parts(results: Sequence[Result]) -> list[Result]:
    """The results themselves, a run's parts in place of the run."""
    found: list[Result] = []
    for result in results:
        if _look(result, "kind") == "run":
            parts = [_look(result, part) for part in ("build", "verify", "bench")]
            # What a run emulated it did not measure.
            found += [part for part in parts if part is not None]
        else:
            found.append(result)
    return found


def _executed(criterion: Criterion, verify: Result | None) -> Criterion:
    """A criterion that says how what it judges was executed."""
    if verify is None or _FIGURES[criterion.name][0] != "verify":
        return criterion
    return replace(criterion, execution=str(_look(verify, "execution", str)))


def _criterion(name: str, bound: float, by_kind: Mapping[str, Result], unstable: bool) -> Criterion:
    kind, path = _FIGURES[name]
    holder = next(iter(by_kind.values()), None) if kind == "any" else by_kind.get(kind)
    value: Any = holder
    if kind == "bench" and holder is not None and _look(holder, "partial", bool):
        return Criterion(name, bound, None, "inconclusive", "the measurement was interrupted")
    for key in path:
        # A verification without labels has no accuracy; what is below it is not missing.
        value = None if value is None else _look(value, key)
    if value is None:
        missing = f"no {kind} result was given" if holder is None else "the images have no labels"
        return Criterion(name, bound, None, "inconclusive", missing)
    low, high = _RANGES.get(name, (0.0, _HUGE))
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ResultError(
            f"the figure {'.'.join(path)} of a result is wrong",
            got=repr(value)[:40],
            expected=f"a number of {low:g} to {high:g}",
            fix="run the command again",
        )
    if name == "max_engine_bytes" and not value:
        none = "there is no engine yet: the bundle is portable"
        return Criterion(name, bound, None, "inconclusive", none)
    if kind == "verify" and (note := _look(holder, "note", str)):
        # What was asked to be judged was not.
        return Criterion(name, bound, value, "inconclusive", str(note))
    samples = len(_look(holder, "samples_s", list)) if name == "max_p99" else _P99_SAMPLES
    met = value >= bound if name.startswith("min_") else value <= bound
    if met and unstable and name in _SPEED:
        return Criterion(name, bound, value, "inconclusive", "the measurement was unstable")
    if met and samples < _P99_SAMPLES:
        few = (
            f"{samples} samples do not show a 99th percentile: bench with --queries {_P99_SAMPLES}"
        )
        return Criterion(name, bound, value, "inconclusive", few)
    return Criterion(name, bound, value, "pass" if met else "fail")


def _look(result: Any, key: str, kind: type = object) -> Any:
    """A key of a result, of a kind.

    Raises:
        ResultError: when it is not there, or of another kind.
    """
    try:
        value = result[key]
        if not isinstance(value, kind):
            raise TypeError(type(value).__name__)
        return value
    except (KeyError, TypeError, IndexError) as error:
        raise ResultError(
            f"a result has no usable {key!r}",
            expected="JSON that a command's --json wrote",
            fix="run the command again with this version",
        ) from error
