"""Compare two results of ``bench``: which is faster, and how sure that is.

Latencies are compared by their medians. Throughput is compared by the rates that were measured; how
much these vary is told by the rates of successive stretches of each run. Two results of their own
are of different moments, and whatever changed on the machine between them is in the ratio; results
of one interleaved run are paired, query by query, and that cancels (see `against`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy import machine
from vggdeploy.benchmarks import bootstrap
from vggdeploy.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vggdeploy.benchmarks.bootstrap import Ratio

    Result = Mapping[str, Any]

FASTER, SLOWER, NO_DIFFERENCE = "faster", "slower", "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """The first result beside the second.

    Attributes:
        metric: ``latency`` (lower is better) or ``throughput`` (higher is).
        ratio: the first's figure over the second's.
        paired: whether the samples were interleaved.
        verdict: of the first: ``faster`` or ``slower`` where the whole interval says so.
    """

    metric: str
    ratio: Ratio
    paired: bool
    verdict: str


def bench_part(result: Result, name: str) -> Result:
    """The measurement in a result of ``bench`` or ``run``.

    Raises:
        ResultError: when there is none.
    """
    kind = result.get("kind")
    found = result.get("bench") if kind == "run" else result
    if kind not in ("bench", "run") or not found:
        raise ResultError(
            f"{name} holds no measurement",
            got=f"a result of {kind!r}" if kind != "run" else "a run that measured nothing",
            expected="a result of bench, or of a run that benched",
            fix="give another file, or run 'vggdeploy bench'",
        )
    part: Result = found
    return part


def require_comparable(a: Result, b: Result) -> None:
    """Make sure that two measurements are of the same scenario, batch and network.

    A network is the same by its name and its multiply-accumulates: other weights of it take as
    long, and that a retrained one is as fast as before is worth knowing.

    Raises:
        ResultError: naming what differs and both values.
    """
    for name, path in (
        ("scenario", ("scenario",)),
        ("batch", ("batch",)),
        ("model", ("model", "name")),
        ("model's multiply-accumulates", ("budget", "macs")),
    ):
        ours, theirs = (_at(result, path) for result in (a, b))
        if ours != theirs:
            raise ResultError(
                f"the results are of different {name}",
                got=f"{_said(ours)} and {_said(theirs)}",
                expected="one",
                fix="compare measurements of the same",
            )


def _at(result: Result, path: Sequence[str]) -> Any:
    found: Any = result
    for key in path:
        found = found.get(key) if hasattr(found, "get") else None
    return found


def _said(value: Any) -> str:
    return "nothing" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def compare(
    a: Result, b: Result, *, across_machines: bool = False, paired: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Compare `a` with `b`, results of ``bench`` or ``run``.

    Args:
        across_machines: allows results of different machines.
        paired: whether the samples of both were taken in turn.
        seed: of the bootstrap.

    Returns:
        the result's JSON form: ``metric``, ``ratio`` (of the first over the second), ``ci95`` (None
        where there are too few samples), ``verdict``, and ``cautions``.

    Raises:
        ResultError: when they are of different scenarios, batches, networks or machines.
    """
    first, second = bench_part(a, "the first result"), bench_part(b, "the second result")
    require_comparable(first, second)
    with _readable():
        cautions = list(machine.require_same(first, second, across_machines=across_machines))
        for name, part in (("first", first), ("second", second)):
            cautions += [f"the {name}: {why}" for why in part["unstable_because"]]
            if part.get("partial"):
                cautions.append(f"the {name} was interrupted")
        found = judge(first, second, paired=paired, seed=seed)
        ends = found.ratio.ci95
        return {
            "kind": "compare",
            "a": _side(first, found.metric),
            "b": _side(second, found.metric),
            "scenario": first["scenario"],
            "batch": first["batch"],
            "metric": found.metric,
            "ratio": found.ratio.value,
            "ci95": list(ends) if ends else None,
            "paired": paired,
            "verdict": found.verdict,
            "cautions": cautions,
            "system": first["system"],
        }


def judge(a: Result, b: Result, *, paired: bool = False, seed: int = 0) -> Comparison:
    """The ratio of two comparable measurements, and what it says."""
    if a["scenario"] == "throughput":
        found = _rates(a, b, seed)
        return Comparison("throughput", found, False, verdict(found, higher_is_better=True))
    found = bootstrap.ratio(a["samples_s"], b["samples_s"], paired=paired, seed=seed)
    return Comparison("latency", found, paired, verdict(found, higher_is_better=False))


def verdict(found: Ratio, *, higher_is_better: bool) -> str:
    """What a ratio says of the first: nothing, while its interval holds 1."""
    if found.ci95 is None or found.ci95[0] <= 1 <= found.ci95[1]:
        return NO_DIFFERENCE
    return FASTER if (found.ci95[0] > 1) is higher_is_better else SLOWER


def _rates(a: Result, b: Result, seed: int) -> Ratio:
    """The ratio of two throughputs, each as its run says it; its interval is as wide as that of the
    mean seconds of successive stretches."""
    value = float(a["throughput_ips"] / b["throughput_ips"])
    first, second = stretches(a), stretches(b)
    found = bootstrap.ratio(second, first, paired=False, statistic="mean", seed=seed)
    if found.ci95 is None:
        return bootstrap.Ratio(value, None)
    low, high = (end * value / found.value for end in found.ci95)
    return bootstrap.Ratio(value, (low, high))


def stretches(result: Result) -> list[float]:
    """Seconds a query of successive stretches of a throughput run (`bootstrap.stretches`); a single
    one where the run does not say when its queries ended."""
    return bootstrap.stretches(result.get("started_s") or [], result["samples_s"]) or [1.0]


def words(result: Result) -> str:
    """The verdict of a comparison in a sentence."""
    what = "median latency" if result["metric"] == "latency" else "throughput"
    ends = result["ci95"]
    sure = (
        "too few samples for an interval"
        if ends is None
        else f"95%: {ends[0]:.3f} to {ends[1]:.3f}"
    )
    head = {
        FASTER: "A is faster than B",
        SLOWER: "A is slower than B",
        NO_DIFFERENCE: "no difference shown",
    }[result["verdict"]]
    return f"{head}: its {what} is {result['ratio']:.3f} times B's ({sure})".replace(
        "shown: its", "shown: A's"
    )


def _side(result: Result, metric: str) -> dict[str, Any]:
    figure = result["latency_s"]["p50"] if metric == "latency" else result["throughput_ips"]
    return {
        **{key: result[key] for key in ("bundle", "target", "digest")},
        "samples": len(result["samples_s"]),
        "p50" if metric == "latency" else "images_per_s": figure,
    }


@contextlib.contextmanager
def _readable() -> Any:
    try:
        yield
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ResultError(
            "a result has no usable figures",
            got=f"{type(error).__name__}: {error}",
            expected="JSON that 'vggdeploy bench --json' wrote",
            fix="measure again with this version",
        ) from error
