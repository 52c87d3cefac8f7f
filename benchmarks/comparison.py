"""Compare two results of ``bench``: which is faster, and how sure that is.

Latencies are compared by their medians. Throughput is compared by the rates that were measured; how
much these vary is told by the rates of successive stretches of each run. Servers are compared by
their medians under one rate of arrivals, else by the rates that were found for one bound. Two
results of their own are of different moments, and whatever changed on the machine between them is
in the ratio; results of one interleaved run are paired, query by query, and that cancels (see
`against`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy import forms, machine, results
from vggdeploy.benchmarks import bootstrap
from vggdeploy.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggdeploy.benchmarks.bootstrap import Ratio

    Result = Mapping[str, Any]

_DEVICE = ("device", "device")
_FOUND, _RATE, _BOUND = (("server", key) for key in ("found", "rate", "p99_bound_s"))

FASTER, SLOWER, NO_DIFFERENCE = "faster", "slower", "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """The first result beside the second.

    Attributes:
        metric: ``latency`` (lower is better), ``throughput`` or ``rate`` (higher is).
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


def require_comparable(a: Result, b: Result, *, across_machines: bool = False) -> tuple[str, ...]:
    """Make sure that two measurements are of the same scenario, batch, network, device and load.

    A network is the same by its name and its multiply-accumulates: other weights of it take as
    long, and that a retrained one is as fast as before is worth knowing. A load is the same by the
    rate of arrivals that was given, or by the bound that one was found for; what was found may be
    two rates (`rates_apart`).

    Args:
        a, b: results of ``bench``.
        across_machines: allows another device.

    Returns:
        another device as a caution, where that was allowed.

    Raises:
        ResultError: naming what differs and both values.
    """
    load = ("bounds on the 99th percentile", _BOUND) if _found(a) else ("arrivals a second", _RATE)
    same: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("scenario", ("scenario",)),
        ("batch", ("batch",)),
        ("model", ("model", "name")),
        ("model's multiply-accumulates", ("budget", "macs")),
        ("ways to the arrivals", _FOUND),
        load,
        ("device", _DEVICE),
    )
    for name, path in same:
        ours, theirs = (forms.at(result, path) for result in (a, b))
        if ours == theirs:
            continue
        if path is _DEVICE and across_machines:
            return (f"different devices: {_said(ours)} and {_said(theirs)}",)
        raise ResultError(
            f"the results are of different {name}",
            got=f"{_said(ours)} and {_said(theirs)}",
            expected="one",
            fix="compare measurements of the same",
        )
    return ()


def rates_apart(a: Result, b: Result) -> tuple[float, float] | None:
    """The rates of arrivals of two comparable measurements, where they were found and are not one;
    None else. Then latencies are of two loads."""
    rates = [float(forms.at(result, _RATE)) for result in (a, b) if _found(result)]
    return (rates[0], rates[1]) if len(set(rates)) > 1 else None


def _found(result: Result) -> bool:
    return bool(forms.at(result, _FOUND))


def _said(value: Any) -> str:
    if isinstance(value, bool):  # of arrivals
        return "found" if value else "given"
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
        ResultError: when they are of different scenarios, loads, batches, networks, devices or
            machines.
    """
    first, second = bench_part(a, "the first result"), bench_part(b, "the second result")
    for part, what in ((first, "the first result"), (second, "the second result")):
        results.require_possible(part, what)
    with _readable():
        cautions = list(require_comparable(first, second, across_machines=across_machines))
        cautions += list(machine.require_same(first, second, across_machines=across_machines))
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
    """The ratio of two comparable measurements, and what it says.

    Of servers whose rates were found it is that of the rates, which come from a few trials and have
    no interval: it shows no difference.
    """
    if _found(a):
        rates = bootstrap.Ratio(forms.at(a, _RATE) / forms.at(b, _RATE), None)
        return Comparison("rate", rates, False, NO_DIFFERENCE)
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


WHAT = {"latency": "median latency", "throughput": "throughput", "rate": "rate of arrivals"}
"""The figures that are compared, by metric."""


def words(result: Result) -> str:
    """The verdict of a comparison in a sentence."""
    metric, ends = result["metric"], result["ci95"]
    if ends is not None:
        sure = f"95%: {ends[0]:.3f} to {ends[1]:.3f}"
    elif metric == "rate":
        sure = "found by trials, which have no interval: bench both with one --rate"
    else:
        sure = "too few samples for an interval"
    head = {
        FASTER: "A is faster than B",
        SLOWER: "A is slower than B",
        NO_DIFFERENCE: "no difference shown",
    }[result["verdict"]]
    whose = "A's" if result["verdict"] == NO_DIFFERENCE else "its"
    return f"{head}: {whose} {WHAT[metric]} is {result['ratio']:.3f} times B's ({sure})"


_FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "latency": ("p50", ("latency_s", "p50")),
    "throughput": ("images_per_s", ("throughput_ips",)),
    "rate": ("queries_per_s", _RATE),
}
"""Of each metric, what a side's figure is called and where it is."""


def _side(result: Result, metric: str) -> dict[str, Any]:
    name, path = _FIGURES[metric]
    figure: Any = result
    for key in path:
        figure = figure[key]
    return {
        **{key: result[key] for key in ("bundle", "target", "digest")},
        "samples": len(result["samples_s"]),
        name: figure,
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
