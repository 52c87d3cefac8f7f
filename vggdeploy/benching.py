"""Measure a bundle by its path: what ``vggdeploy bench`` does, without what builds need."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import bundle, speed
from vggdeploy import results as files
from vggdeploy.benchmarks import BenchOptions, comparison
from vggdeploy.benchmarks import bench as measure
from vggdeploy.benchmarks.bench import pair
from vggdeploy.errors import ConfigError, PartialError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Reporter, Target


def options(flags: Mapping[str, Any]) -> BenchOptions:
    """The options of a measurement from the command's flags, by name.

    Raises:
        ConfigError: for flags that cannot be read, or a folder of logs that is there already.
    """
    names = [field.name for field in dataclasses.fields(BenchOptions)]
    given = {name: flags[name] for name in names if name in flags}
    given["batches"] = _sizes(flags["batches"])
    free = flags["batch"] is None
    given |= {"batch": 1 if free else flags["batch"], "free_batch": free}
    chosen = BenchOptions(**given)
    if chosen.mlperf:
        logs = chosen.logs or _beside(flags["json"], flags["bundle"])
        if logs.exists() and not (logs.is_dir() and (flags["force"] or not any(logs.iterdir()))):
            raise ConfigError(
                f"{logs} exists",
                got="a folder with files in it" if logs.is_dir() else "a file",
                expected="a free path",
                fix="give --force, or another --logs" if logs.is_dir() else "give another --logs",
            )
        chosen = dataclasses.replace(chosen, logs=logs)
    chosen.check()
    return chosen


def _sizes(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(",")) if text is not None else ()
    except ValueError as error:
        raise ConfigError(
            "--batches cannot be read", got=text, expected="numbers such as 1,2,4,8", fix="mend it"
        ) from error


def _beside(result: str | None, path: Path) -> Path:
    """Where logs go: beside the result that is written, else where the command is run."""
    if result in (None, files.STDOUT):
        return Path(f"{path.resolve().name}.mlperf")
    return Path(str(result)).with_suffix(".mlperf")


def bench(
    path: Path, options: BenchOptions, reporter: Reporter, trusted: Path | None = None
) -> dict[str, Any]:
    """Measure the bundle at `path`; see `benchmarks.bench`.

    Args:
        path: the bundle.
        options: how.
        reporter: told the progress.
        trusted: public keys, one of which must have signed it; see `bundle.open_bundle`.

    Returns:
        its result, with ``tuned`` (whether settings that the bundle was tuned to were used) and
        ``cautions``.

    Raises:
        MissingError: when it does not run on this machine; nothing is measured by emulation.
    """
    options.check()
    opened = bundle.open_bundle(path, trusted)
    target = speed.native(opened, options.device, "bench")
    options, said = with_tuned(opened, target, options)
    return {**measure(opened, target, options, reporter), **said}


def against(
    path: Path,
    other: Path,
    options: BenchOptions,
    reporter: Reporter,
    seed: int = 0,
    trusted: Path | None = None,
) -> dict[str, Any]:
    """Measure the bundles at `path` and `other` query by query in turn, and compare them.

    Args:
        path: the bundle.
        other: what it is compared with.
        options: how both are measured.
        reporter: told the progress.
        seed: of the bootstrap.
        trusted: public keys, one of which must have signed each; see `bundle.open_bundle`.

    Returns:
        what `comparison.compare` returns, with ``results``: ``a`` and ``b``, as `bench` gives them,
        and ``partial``.

    Raises:
        As `bench`.
        ResultError: for bundles of different networks.
    """
    options.check()
    sides, notes, models = [], [], []
    for each in (path, other):
        opened = bundle.open_bundle(each, trusted)
        target = speed.native(opened, options.device, "bench")
        own, said = with_tuned(opened, target, options)
        sides.append((opened, target, own))
        notes.append(said)
        models.append(_outline(opened, options))
    comparison.require_comparable(*models)
    found = pair(sides, reporter)
    a, b = (
        {**result, **said, "advice": _in_turns(result["advice"], rival)}
        for result, said, rival in zip(found, notes, (other, path), strict=True)
    )
    compared = comparison.compare(a, b, paired=True, seed=seed)
    return {**compared, "results": {"a": a, "b": b}, "partial": a["partial"] or b["partial"]}


def _in_turns(advice: Sequence[str], rival: Path) -> list[str]:
    """What is advised of a measurement, where it was one in turn with another bundle."""
    flag = shlex.join(["--against", str(rival)])
    return [f"{line} {flag}" if line.startswith("vggdeploy bench ") else line for line in advice]


def _outline(opened: Bundle, options: BenchOptions) -> dict[str, Any]:
    """What `comparison.require_comparable` looks at."""
    macs = opened.budget()["total"]["macs"]
    return {
        "scenario": options.scenario,
        "batch": options.size,
        "model": opened.manifest["model"],
        "budget": {"macs": options.size * macs},
    }


def with_tuned(
    opened: Bundle, target: Target, options: BenchOptions
) -> tuple[BenchOptions, dict[str, Any]]:
    """Options with what the bundle was tuned to on this machine, where that is wanted; and what a
    result says of it: ``tuned`` and ``cautions``."""
    if not options.tuned:
        return options, {"tuned": False, "cautions": []}
    free = options.free_batch and options.scenario == "throughput"
    chosen, cautions = speed.tuned(
        opened, target, options.goal, options.device, None if free else options.size
    )
    queue = None
    if options.scenario == "latency":
        # Beside it: what was found for latency is nothing to fill a queue with.
        queue, _ = speed.tuned(opened, target, "throughput", options.device, options.size)
    if chosen is not None and free:
        options = dataclasses.replace(options, batch=chosen.batch)
    if chosen is not None or queue is not None:
        options = dataclasses.replace(
            options,
            settings=chosen.settings if chosen else options.settings,
            beside=queue.settings if queue else options.settings,
        )
    return options, {"tuned": chosen is not None, "cautions": list(cautions)}


def refuse_partial(result: Mapping[str, Any] | None, destination: str | None) -> None:
    """End a command whose measurement was interrupted, after its result was written.

    Raises:
        PartialError: when `result` is partial.
    """
    if result is None or not result["partial"]:
        return
    samples = result["a"]["samples"] if result["kind"] == "compare" else len(result["samples_s"])
    raise PartialError(
        "the measurement was interrupted",
        got=f"{samples} samples, "
        + (f"kept in {destination} as partial" if destination else "shown and not kept"),
        expected="a whole measurement",
        fix="run it again for a whole one",
    )
