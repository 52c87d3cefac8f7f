"""Gates: measured figures against bounds; the verdict that a CI job ends with.

A figure comes from a sample, so a bound is met when the whole 95% interval meets it, missed when
all of it misses, and else the gate is inconclusive and says how much more would decide. So it is of
a bound that has no figure to be held against: a missing measurement never passes.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vggdeploy import evidence, forms
from vggdeploy.benchmarks import comparison
from vggdeploy.errors import ResultError
from vggdeploy.machine import require_same
from vggdeploy.policy import METRICS
from vggdeploy.results import require_possible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vggdeploy.evidence import Evidence, Interval
    from vggdeploy.policy import Metric, Policy

    Result = Mapping[str, Any]

Verdict = Literal["pass", "fail", "inconclusive"]

_RANKED: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")


@dataclass(frozen=True)
class Criterion:
    """One bound and what became of it.

    Attributes:
        name: the bound's key in a policy, or ``max_ratio.`` and a metric.
        value: the figure, or how many times worse than the baseline's it is; None without one.
        interval: 95% interval of the value; None where it is exact or missing.
        unit: of bound and value; empty for shares and ratios.
        note: why it could not be told, and what would tell it.
        needed: how many images or queries would decide, by unit; empty where none would, or
            nothing is to be decided.
        execution: ``native`` or ``emulated``, for what a verification found; empty for the rest.
    """

    name: str
    bound: float
    value: float | None
    verdict: Verdict
    interval: Interval | None = None
    unit: str = ""
    note: str = ""
    needed: Mapping[str, int] | None = None
    execution: str = ""


@dataclass(frozen=True)
class Verdicts:
    """Every criterion, and the verdict over all: the worst of them.

    Attributes:
        digest: of the bundle.
        target: of the bundle, and so of the policy.
        judged: ``data`` or ``probes``; None where nothing was verified.
        images: how many were judged.
        cautions: what the results, and the baseline's, do not have in common, where that was allowed.
        execution: ``native``, or ``emulated`` where accuracy was judged without the device.
        unstable: why the speed figures are not to be trusted; empty when they are.
    """

    verdict: Verdict
    criteria: tuple[Criterion, ...]
    execution: str | None
    unstable: tuple[str, ...]
    digest: str
    target: str
    judged: str | None
    images: int
    cautions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON form of a gate's result."""
        return {"kind": "gate", **asdict(self)}


def judge(
    results: Sequence[Result],
    policy: Policy,
    *,
    baseline: Sequence[Result] | None = None,
    across_machines: bool = False,
) -> Verdicts:
    """Hold results of one bundle, verified and measured on one machine, against a policy.

    Where a bundle was built does not count, nor where it was emulated: that is not of a machine.

    Args:
        results: of build, verify, bench or run.
        policy: what they are held against.
        baseline: results of the same target that ratios are taken to.
        across_machines: allows a verification, or a baseline, on another machine than the
            measurement's.

    Raises:
        ResultError: when the results are of different bundles or machines, of a kind that has no
            figures, or incomplete.
    """
    now = by_kind(results)
    then = by_kind(baseline) if baseline is not None else None
    digests = {kind: _look(result, "digest", str) for kind, result in now.items()}
    if len(set(digests.values())) > 1:
        raise ResultError(
            "the results are of different bundles",
            got=", ".join(f"{kind} of {digest[:16]}..." for kind, digest in digests.items()),
            expected="one digest",
            fix="verify and bench the same bundle",
        )
    bench, verify = now.get("bench"), now.get("verify")
    unstable = tuple(map(str, _look(bench, "unstable_because", list))) if bench else ()
    cautions: tuple[str, ...] = ()
    if bench and verify and _look(verify, "execution", str) == "native":
        # What decides speed alone may have been set between the two.
        cautions = require_same(verify, bench, across_machines=across_machines, speed=False)
    if verify and then and "verify" in then and _of(policy, "verify"):
        ways = [_look(each, "execution", str) for each in (then["verify"], verify)]
        if len(set(ways)) > 1:
            cautions += (f"the baseline was {ways[0]}, and this is {ways[1]}",)
    if baseline is not None and not policy.max_ratio:
        cautions += ("nothing is held against the baseline: no max_ratio is asked for",)
    if bench:
        cautions += comparable(bench, policy, then, across_machines=across_machines)
    criteria = []
    for metric in METRICS.values():
        bound = policy.bound(metric)
        if bound is not None:
            criteria.append(_absolute(metric, bound, now))
        if metric.name in policy.max_ratio:
            criteria.append(_relative(metric, policy.max_ratio[metric.name], now, then))
    worst: Verdict = min((c.verdict for c in criteria), key=_RANKED.index, default="inconclusive")
    return Verdicts(
        worst,
        tuple(criteria),
        execution=_look(verify, "execution", str) if verify else None,
        unstable=unstable,
        digest=next(iter(digests.values()), ""),
        target=target_of(results),
        judged=_look(verify, "judged", str) if verify else None,
        images=int(_look(_look(verify, "parity", dict), "n", int)) if verify else 0,
        cautions=cautions,
    )


def comparable(
    bench: Result, policy: Policy, then: Mapping[str, Result] | None, *, across_machines: bool
) -> tuple[str, ...]:
    """Make sure that a measurement can be held against the baseline's, if a policy asks for it.

    Args:
        bench: the measurement; its scenario, batch, network, device, load and machine are looked
            at.
        policy: what it is held against.
        then: the baseline's results by kind, if there are any.
        across_machines: allows another machine, and another device.

    Returns:
        what the machines do not have in common, where that is allowed.

    Raises:
        ResultError: when they are of different scenarios, batches, networks, devices, loads or
            machines.
    """
    if not then or "bench" not in then or not _of(policy, "bench"):
        return ()
    cautions = comparison.require_comparable(then["bench"], bench, across_machines=across_machines)
    return cautions + require_same(then["bench"], bench, across_machines=across_machines)


def by_kind(results: Sequence[Result]) -> dict[str, Result]:
    """Results of build, verify and bench by their kind, a run's parts in place of the run.

    Raises:
        ResultError: for another kind, or two of one.
    """
    found: dict[str, Result] = {}
    for result in _parts(results):
        kind = str(_look(result, "kind"))
        if kind not in ("build", "verify", "bench"):
            raise ResultError(
                "a result has nothing to gate",
                got=f"kind {kind!r}",
                expected="results of build, verify, bench or run",
                fix="give another file",
            )
        if kind in found:
            raise ResultError(
                f"there are two results of kind {kind!r}",
                got="two",
                expected="one of each",
                fix="give one",
            )
        require_possible(result, f"a result of {kind}")
        found[kind] = result
    return found


def target_of(results: Sequence[Result]) -> str:
    """The target that results are of; empty where they do not say."""
    for result in _parts(results):
        if isinstance(result, dict) and isinstance(result.get("target"), str):
            return str(result["target"])
    return ""


def _of(policy: Policy, kind: str) -> bool:
    """Whether a policy takes ratios of what a kind of result has."""
    return any(METRICS[name].kind == kind for name in policy.max_ratio)


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


def _absolute(metric: Metric, bound: float, now: Mapping[str, Result]) -> Criterion:
    """A figure against a bound of its own."""
    result, value, why = _figure(metric, now)
    made = _Made(metric, metric.bound, bound, metric.unit, result)
    if result is None or value is None:
        return made.unknown(why)
    return made.judged(_evidence(metric, result, value), met=lambda x: metric.meets(x, bound))


def _relative(
    metric: Metric, bound: float, now: Mapping[str, Result], then: Mapping[str, Result] | None
) -> Criterion:
    """A figure against the baseline's."""
    result, value, why = _figure(metric, now)
    made = _Made(metric, f"max_ratio.{metric.name}", bound, "", result)
    if then is None:
        return made.unknown("there is no baseline of this target: give one with --baseline")
    if result is None or value is None:
        return made.unknown(why)
    other, before, why = _figure(metric, then)
    made = replace(made, then=other)
    if other is None or before is None:
        return made.unknown(f"the baseline has no such figure: {why}")
    if metric.kind == "verify" and (apart := _apart(result, other)):
        return made.unknown(apart)
    with _readable(metric):
        rates = comparison.rates_apart(result, other)
        ratio = evidence.beside(
            metric, _evidence(metric, result, value), _evidence(metric, other, before)
        )
    if rates and metric.name in _SPEED:
        return made.unknown(
            f"arrivals decide it, and {rates[0]:.6g} and {rates[1]:.6g} a second were found: bench "
            f"both with --rate {min(rates):.6g}"
        )
    if not math.isfinite(ratio.value):
        return made.unknown("the figure, or the baseline's, is not above zero: there is no ratio")
    return made.judged(ratio, met=lambda x: x <= bound)


def _apart(result: Result, other: Result) -> str:
    """Why a verification cannot be held against the baseline's; empty where it can, as far as both
    say of what they are."""
    for what, path in (
        ("is of another network", ("model", "name")),
        ("judged other images", ("judged",)),
        ("judged other images", ("images_sha256",)),
    ):
        ours, theirs = (forms.at(each, path) for each in (result, other))
        if None not in (ours, theirs) and ours != theirs:
            return f"the baseline {what}: make one of what is judged here"
    return ""


def _evidence(metric: Metric, result: Result, value: float) -> Evidence:
    with _readable(metric):
        found = evidence.of(metric, result, value)
        if not all(map(math.isfinite, (*(found.interval or ()), found.seconds))):
            raise ValueError(f"interval {found.interval} of {found.seconds} s")
        return found


@contextlib.contextmanager
def _readable(metric: Metric) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise ResultError(
            f"a result does not say how sure its {metric.name} is",
            got=f"{type(error).__name__}: {error}",
            expected="JSON that a command's --json wrote",
            fix="run the command again with this version",
        ) from error


def _figure(
    metric: Metric, results: Mapping[str, Result]
) -> tuple[Result | None, float | None, str]:
    """The result that has a figure, the figure, and why there is none.

    Raises:
        ResultError: for a figure that cannot be.
    """
    if metric.kind == "any":
        result = next(iter(results.values()), None)
    else:
        result = results.get(metric.kind)
    if result is None:
        return None, None, f"no {metric.kind} result was given"
    if metric.kind == "bench" and _look(result, "partial", bool):
        return result, None, "the measurement was interrupted"
    value: Any = result
    for key in metric.path:
        # A verification without labels has no accuracy; what is below it is not missing.
        value = None if value is None else _look(value, key)
    if value is None:
        return result, None, _ABSENT.get(metric.name, "it was not measured")
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    if not valid or not metric.low <= value <= metric.high:
        raise ResultError(
            f"the figure {'.'.join(metric.path)} of a result is wrong",
            got=repr(value)[:40],
            expected=f"a number of {metric.low:g} to {metric.high:g}",
            fix="run the command again",
        )
    if metric.name == "engine_bytes" and not value:
        return result, None, "there is no engine yet: the bundle is portable"
    return result, value, ""


_ABSENT = {
    "drop": "the images have no labels",
    "top1": "the images have no labels",
    "energy": "this machine does not tell what it draws",
}


@dataclass(frozen=True)
class _Made:
    """A criterion as far as it is known before the figure is judged; `then` has the baseline's."""

    metric: Metric
    name: str
    bound: float
    unit: str
    result: Result | None
    then: Result | None = None

    @property
    def execution(self) -> str:
        if self.metric.kind != "verify" or self.result is None:
            return ""
        return str(_look(self.result, "execution", str))

    def unknown(self, note: str) -> Criterion:
        """Without a figure."""
        return Criterion(
            self.name, self.bound, None, "inconclusive", unit=self.unit, note=note,
            execution=self.execution,
        )  # fmt: skip

    def judged(self, found: Evidence, met: Callable[[float], bool]) -> Criterion:
        """With what was found."""
        verdict, note, needed = self._verdict(found, met)
        return Criterion(
            self.name, self.bound, found.value, verdict, found.interval, self.unit, note, needed,
            self.execution,
        )  # fmt: skip

    def _verdict(
        self, found: Evidence, met: Callable[[float], bool]
    ) -> tuple[Verdict, str, dict[str, int] | None]:
        assert self.result is not None
        for whose, each in (("", self.result), ("the baseline: ", self.then)):
            if self.metric.kind == "verify" and each and (note := _look(each, "note", str)):
                # What was asked to be judged was not.
                return "inconclusive", f"{whose}{note}", None
        if self._unstable(self.then):
            # Nor does a fail show anything then: what it is beside may be what is wrong.
            return "inconclusive", "the baseline was measured unstable: make another", None
        ends = found.interval or (found.value, found.value)
        kept = [met(end) for end in ends]
        if found.lacking:
            return "inconclusive", found.lacking, None
        if not any(kept):
            return "fail", "", None
        if self._unstable(self.result):
            return "inconclusive", "the measurement was unstable", None
        if all(kept):
            return "pass", "", None
        count = found.needed(lambda tried: met(tried[0]) == met(tried[1]))
        low, high = ends
        undecided = f"{found.amount:,.0f} {found.unit} leave {low:.6g} to {high:.6g}"
        if count is None:
            return "inconclusive", f"{undecided}: it is too near to its bound to be told", None
        said = f"{undecided}: about {count:,} like these would decide{self._how(found, count)}"
        return "inconclusive", said, {found.unit: count}

    def _unstable(self, result: Result | None) -> bool:
        speed = result is not None and self.metric.name in _SPEED
        return speed and bool(_look(result, "unstable_because", list))

    def _how(self, found: Evidence, count: int) -> str:
        """The time that many queries take, or where images come from."""
        if self.metric.kind == "verify":
            both = ", and make the baseline of the same ones" if self.then else ""
            return f": verify on more images (--data){both}"
        seconds = count / found.amount * found.seconds
        number = {evidence.QUERIES: count, evidence.SECONDS: math.ceil(seconds)}.get(found.flag)
        flag = found.flag if number is None else f"{found.flag} {number}"
        return f" ({seconds:.3g} s): bench {'both ' if self.then else ''}with {flag}"


_SPEED = ("p50", "p99", "throughput", "utilisation", "energy")
"""What an unstable measurement does not show, nor one under another load."""


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
        kind_of = forms.at(result, ("kind",))
        whose = f"a result of {kind_of}" if isinstance(kind_of, str) else "a result"
        raise ResultError(
            f"{whose} has no usable {key!r}",
            got="none" if isinstance(error, KeyError) else error,
            expected="JSON that a command's --json wrote",
            fix="run the command again with this version",
        ) from error
